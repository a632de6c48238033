"""The 60 mutations that `draw.py` drew with seed 20260 from what cosmic-ray 8.7.0 proposed for this code: 5,059 changes at
1,326 places of 26 files.

SUMMARY

Six change nothing that a program could tell, and so are no entries:

- 2, algorithms/base.py, ObjectiveConfig: `kl_loss` without `@property`. A Protocol's members are there for the type
  checker; nothing inherits them or looks them up.
- 24, kl_estimators.py, _VocabularyKL.backward: `log_softmax(+1)` for `log_softmax(-1)`. The rows are [N, V] there, as
  `vocabulary_kl` reshapes them: dimension 1 is the last.
- 33, learner.py, Learner.save_state: `self.rank >= 0` for `self.rank == 0`. All ranks write the same bytes to the same
  file (version and layout are equal on all of them) before the barrier that ends the method.
- 39, losses.py, constrained_logprobs: -1.0 for 0.0 where a token is not allowed. It is multiplied by exp(-inf) = 0 in the
  sum and in its gradient.
- 42 and 43, micro_batches.py: `slots=False` of Choices and MicroBatch. They are frozen, so no attribute can be added with
  or without slots.

Numbers are those of the draw; 5, 6, 9, 11 and 48 stand at lines that were rewritten since, as the same change there.
"""

from __future__ import annotations

from tests.mutations.runner import Mutation

DRAWN = (
    Mutation(
        "0: leave-one-out counts groups in place of episodes",
        "advantages:leave_one_out",
        "rewards.shape[1]",
        "rewards.shape[0]",
        "test_advantages.py::test_leave_one_out_by_hand",
    ),
    Mutation(
        "1: the last return is not computed",
        "advantages:discounted_returns",
        "range(len(rewards) - 1, -1, -1)",
        "range(len(rewards) - 2, -1, -1)",
        "test_ppo.py::test_discounted_returns_by_hand",
    ),
    Mutation(
        "3: the score that is reported is the first turn's",
        "algorithms.base:EpisodeAlgorithm.objective_metrics",
        "discounted_scores(scores, 1.0)",
        "discounted_scores(scores, 0.0)",
        "test_wiring.py::test_later_turns_count_less_by_the_written_discount",
    ),
    Mutation(
        "4: whitening by episode and by batch change places",
        "algorithms.ppo:PPO._whitened",
        'if kind == "episode"',
        'if not kind == "episode"',
        "test_ppo.py::test_advantages_are_whitened_over_trained_tokens",
    ),
    Mutation(
        "5: the number to keep is taken where none is given",
        "algorithms.rejection_sampling:RejectionSampling.prepare",
        "config.keep or max(",
        "not config.keep or max(",
        "test_rejection_sampling.py::test_fraction_and_more_than_there_are",
    ),
    Mutation(
        "6: the same, by another operator",
        "algorithms.rejection_sampling:RejectionSampling.prepare",
        "config.keep or max(",
        "config.keep and max(",
        "test_rejection_sampling.py::test_fraction_and_more_than_there_are",
    ),
    Mutation(
        "7: ties and all that is worse are kept",
        "algorithms.rejection_sampling:choose_best",
        "values[order] >= values[kept[-1]]",
        "values[order] <= values[kept[-1]]",
        "test_rejection_sampling.py::test_ties_and_duplicates",
    ),
    Mutation(
        "8: the turns that are kept weigh nothing",
        "algorithms.rejection_sampling:cross_entropy_sequences",
        "weight = 1.0 /",
        "weight = 0.0 /",
        "test_rejection_sampling.py::test_loss_is_the_mean_cross_entropy_of_what_was_chosen",
    ),
    Mutation(
        "9: targets are not put in their places",
        "algorithms.sequences:training_sequence",
        "in zip(places, pieces, strict=True):\n            values[place]",
        "in []:\n            values[place]",
        "test_ppo.py::test_rewards_are_minus_kl_plus_the_score_at_the_turns_end",
    ),
    Mutation(
        "10: group_sum is unknown",
        "algorithms.sequences:token_weights",
        'if reduction == "group_sum":',
        'if not reduction == "group_sum":',
        "test_advantages.py::test_weights_normalise_by_global_counts",
    ),
    Mutation(
        "11: minibatches that carry loss have scale 1",
        "algorithms.sequences:_scale",
        "own if own else 1.0",
        "own if own == 0 else 1.0",
        "test_minibatch_scales.py::test_a_token_counts_the_same_in_short_and_long_answers",
    ),
    Mutation(
        "12: prompts count where they are not asked for",
        "algorithms.sequences:counted_tokens",
        "if not include_prompt:",
        "if not not include_prompt:",
        "test_advantages.py::test_prompt_counts_where_asked",
    ),
    Mutation(
        "13: sampled and exact KL losses change places",
        "batch_loss:token_kl_losses",
        "if exact is None:",
        "if not exact is None:",
        "test_kl.py::test_places_without_loss_add_nothing_however_unlikely_their_token",
    ),
    Mutation(
        "14: constrained and free KL losses change places",
        "batch_loss:token_kl_losses",
        "if choices is None:",
        "if not choices is None:",
        "test_wiring.py::test_the_written_kl_loss_is_in_the_loss_at_its_controllers_coefficient",
    ),
    Mutation(
        "15: constrained and free distributions change places",
        "batch_loss:distribution",
        "if batch.choices is None:",
        "if not batch.choices is None:",
        "test_kl.py::test_no_gradient_flows_through_the_rewards_penalty",
    ),
    Mutation(
        "16: a schedule ends one update late",
        "controllers:scheduled",
        "max(length - 1, 1)",
        "max(length / 1, 1)",
        "test_controllers.py::test_schedules",
    ),
    Mutation(
        "17: a schedule stays at its start",
        "controllers:scheduled",
        "max(length - 1, 1), 1.0)",
        "max(length - 1, 1), 0.0)",
        "test_controllers.py::test_schedules",
    ),
    Mutation(
        "18: the horizon that a warning names",
        "controllers:immobility",
        "iterations / math.log(LEAST_FACTOR)\n    return",
        "iterations ** math.log(LEAST_FACTOR)\n    return",
        "test_controllers.py::test_a_horizon_that_makes_it_immobile_is_warned_of",
    ),
    Mutation(
        "19: constrained places are charged over the vocabulary",
        "kl:_exact_kl",
        "if turn.allowed is None:",
        "if not turn.allowed is None:",
        "test_rollout.py::test_constrained_turns_are_scored_over_the_vocabulary_where_all_of_it_was_allowed",
    ),
    Mutation(
        "20: k2 without its half",
        "kl_estimators:sampled_values",
        "k.square() / 2",
        "k.square() / 1",
        "test_kl.py::test_values_on_a_bandit_by_hand",
    ),
    Mutation(
        "21: KL losses are uncorrected by default",
        "kl_estimators:KLLoss",
        "correction: bool = True",
        "correction: bool = False",
        "test_kl.py::test_corrected_losses_have_the_exact_gradient",
    ),
    Mutation(
        "22: the vocabulary's KL has another shape",
        "kl_estimators:vocabulary_kl",
        "logits.shape[:-1]",
        "logits.shape[:-2]",
        "test_kl.py::test_sums_over_the_vocabulary_on_a_bandit_by_hand",
    ),
    Mutation(
        "23: the KL among allowed tokens is summed over tokens",
        "kl_estimators:constrained_kl",
        "-reference.exp() * gaps).sum(-1)",
        "-reference.exp() * gaps).sum(-2)",
        "test_kl.py::test_constrained_kl_is_that_of_the_allowed_tokens",
    ),
    Mutation(
        "25: pieces are cut by the number of rows",
        "kl_estimators:_pieces",
        "rows.shape[-1]",
        "rows.shape[-2]",
        "test_kl.py::test_memory_is_bounded_by_pieces",
    ),
    Mutation(
        "26: the explained variance is over tokens without value loss too",
        "learner:Learner.update",
        "packed.value_weights != 0",
        "packed.value_weights != -1",
        "test_wiring.py::test_an_update_minimises_the_written_objective",
    ),
    Mutation(
        "27: no optimizer step is taken",
        "learner:Learner._step",
        "in self._engines.values():\n            engine.finish()",
        "in []:\n            engine.finish()",
        "test_ppo_learner.py::test_the_entropy_bonus_raises_the_entropy",
    ),
    Mutation(
        "28: a value head and a value network change places",
        "learner:Learner._backward",
        'if "value" not in self._engines:',
        'if not "value" not in self._engines:',
        "test_ppo_learner.py::test_bf16_trains_both_networks",
    ),
    Mutation(
        "29: no values where any are asked for",
        "learner:Learner.values",
        "if not queries:",
        "if not not queries:",
        "test_ppo_learner.py::test_bf16_trains_both_networks",
    ),
    Mutation(
        "30: no rank has the weights",
        "learner:Learner.weights",
        "if self.rank == 0 else None",
        "if self.rank < 0 else None",
        "test_learner.py::test_bf16_holds_to_the_mean_and_sends_its_bits",
    ),
    Mutation(
        "31: nothing is saved into a folder that is there",
        "learner:Learner.save_state",
        "exist_ok=True",
        "exist_ok=False",
        "test_learner.py::test_a_resumed_bf16_learner_equals_an_uninterrupted_one",
    ),
    Mutation(
        "32: no engine's state is saved",
        "learner:Learner.save_state",
        "in self._engines.items():",
        "in []:",
        "test_learner.py::test_a_resumed_bf16_learner_equals_an_uninterrupted_one",
    ),
    Mutation(
        "34: the policy gradient's sign, by the tool",
        "losses:PolicyGradientLoss.__call__",
        "return -weights * advantages",
        "return +weights * advantages",
        "test_losses.py::test_policy_gradient_with_a_cap",
    ),
    Mutation(
        "35: bits of values and returns",
        "losses:ValueObjective.clipped",
        "(values - returns)",
        "(values & returns)",
        "test_losses.py::test_value_loss_by_hand",
    ),
    Mutation(
        "36: logits are divided by a temperature of 1 alone",
        "losses:scaled_logits",
        "if temperature == 1.0",
        "if not temperature == 1.0",
        "test_losses.py::test_selected_logprobs_by_hand",
    ),
    Mutation(
        "37: entropies over rows as long as a sequence",
        "losses:entropies",
        "logits.reshape(-1, logits.shape[-1])",
        "logits.reshape(-1, logits.shape[1])",
        "test_losses.py::test_entropies_by_hand_and_in_pieces",
    ),
    Mutation(
        "38: entropies are summed over rows",
        "losses:_entropies_at_once",
        "* logprobs).sum(-1)",
        "* logprobs).sum(-0)",
        "test_losses.py::test_entropies_by_hand_and_in_pieces",
    ),
    Mutation(
        "40: the choice is looked up among the rows",
        "losses:constrained_logprobs",
        "logprobs.gather(-1, chosen",
        "logprobs.gather(-0, chosen",
        "test_losses.py::test_constrained_logprobs_by_hand",
    ),
    Mutation(
        "41: plans of any sequences are refused",
        "micro_batches:plan_micro_batches",
        "if not lengths or",
        "if not not lengths or",
        "test_micro_batches.py::test_a_plan_by_hand",
    ),
    Mutation(
        "44: constrained batches are free",
        "micro_batches:_choices",
        "if not counts.any():",
        "if not not counts.any():",
        "test_micro_batches.py::test_choices_are_where_decoding_was_constrained",
    ),
    Mutation(
        "45: a start beyond the end passes",
        "packed_sequences:pack_tokens",
        "starts >= lengths",
        "starts == lengths",
        "test_micro_batches.py::test_a_malformed_sequence_is_named",
    ),
    Mutation(
        "46: the range that a message names",
        "packed_sequences:pack_tokens",
        "{lengths[i] - 1}",
        "{lengths[i] % 1}",
        "test_micro_batches.py::test_a_malformed_sequence_is_named",
    ),
    Mutation(
        "47: index -1 passes",
        "packed_sequences:check_minibatches",
        "indices.min() < 0",
        "indices.min() < -1",
        "test_micro_batches.py::test_a_senseless_minibatch_is_named",
    ),
    Mutation(
        "48: scales that are not finite pass, others do not",
        "packed_sequences:check_minibatches",
        "if not np.isfinite(list(numbers.values())).all():",
        "if not not np.isfinite(list(numbers.values())).all():",
        "test_micro_batches.py::test_a_senseless_minibatch_is_named",
    ),
    Mutation(
        "49: arrays of the wrong length pass",
        "packed_sequences:_shape_fault",
        "for name in names:",
        "for name in []:",
        "test_micro_batches.py::test_a_malformed_sequence_is_named",
    ),
    Mutation(
        "50: allowed sets of another number of tokens pass",
        "packed_sequences:_shape_fault",
        "len(counts) != scored or allowed.offsets[0] or",
        "len(counts) != scored and allowed.offsets[0] or",
        "test_micro_batches.py::test_a_malformed_sequence_is_named",
    ),
    Mutation(
        "51: free turns have no KL over the vocabulary",
        "rollout:with_vocabulary_kl",
        "turn.allowed is None or",
        "turn.allowed is not None or",
        "test_rollout.py::test_constrained_turns_are_scored_over_the_vocabulary_where_all_of_it_was_allowed",
    ),
    Mutation(
        "52: games are reported as texts, and texts as games",
        "rollout:rollout_metrics",
        "if any(turn.before.commands for turn in turns):",
        "if not any(turn.before.commands for turn in turns):",
        "test_rollout.py::test_texts_and_games_are_counted_by_hand",
    ),
    Mutation(
        "53: a power in place of the clipped share",
        "update_statistics:TokenStatistics.metrics",
        "clipped / count",
        "clipped**count",
        "test_losses.py::test_statistics_by_hand",
    ),
    Mutation(
        "54: errors where nothing is valued",
        "update_statistics:value_statistics",
        "finite = scored & errors",
        "finite = scored ^ errors",
        "test_losses.py::test_value_statistics_by_hand",
    ),
    Mutation(
        "55: bits of what was clipped",
        "update_statistics:value_statistics",
        "clipped & scored",
        "clipped >> scored",
        "test_losses.py::test_value_statistics_by_hand",
    ),
    Mutation(
        "56: the first step's values count twice",
        "update_statistics:update_metrics",
        "step.statistics.values for step in steps[1:]",
        "step.statistics.values for step in steps[0:]",
        "test_losses.py::test_update_metrics_are_means_over_all_tokens_of_all_steps",
    ),
    Mutation(
        "57: a head's output layer is a method",
        "value:ValueHead",
        "    @property\n    def output",
        "    def output",
        "test_value.py::test_a_new_head_starts_at_zero_and_learns",
    ),
    Mutation(
        "58: models that look ahead pass",
        "value:_check_causal",
        "for token in (0, 1)",
        "for token in (0, 0)",
        "test_value.py::test_a_model_that_looks_ahead_is_refused",
    ),
    Mutation(
        "59: a value folder's path",
        "value:write_value",
        "(folder / DESCRIPTION)",
        "(folder // DESCRIPTION)",
        "test_value.py::test_a_network_of_its_own_is_read_again",
    ),
)
