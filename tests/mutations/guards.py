"""Changes that take away a guard: of what strangers' folders may do, of files, of processes, and of what is refused first.

As `table.py` has them of the math and its wiring. The tests that are to fail are fast ones.
"""

from __future__ import annotations

from tests.mutations.runner import Mutation

ALARMS = "test_alarms.py::"
METRICS = "test_metrics.py::"
POOL = "test_environment_pool.py::"
REJECTION = "test_rejection_sampling.py::"
START_UP = "test_start_up.py::"
STRANGERS = "test_strangers_files.py::"
HOSTILE = "faults/test_hostile.py::test_a_command_treats_what_a_stranger_prepared_as_data"

GUARDS = (
    # Strangers' folders.
    Mutation(
        "a kept batch's rewards run unasked",
        "replay:replay",
        "trust.require(folder, code_of_plugins(config))",
        "pass",
        HOSTILE + "[replay: a reward of the standard library]",
    ),
    Mutation(
        "a run's model runs its code because its config says so",
        "generate:find_model",
        "return trusted_model(model, source, trust), config",
        "return model.model_copy(update={'trust_remote_code': True}), config",
        HOSTILE + "[generate: a model with code, config.yaml trusts it]",
    ),
    Mutation(
        "a run's game is built unasked",
        "play.setting:find_setting",
        "trust.require(source, code_of_environment(setting.environment.name))",
        "pass",
        HOSTILE + "[play: an environment of the folder's own]",
    ),
    Mutation(
        "a transcript's game is built unasked",
        "play.command:play_again",
        "trust.require(file, code_of_environment(header.environment))",
        "pass",
        HOSTILE + "[play: a transcript that names code]",
    ),
    Mutation(
        "an evaluated run's rewards run unasked",
        "evaluate:find_subject",
        "*code_of_environment(config.environment.name), *rewards",
        "*code_of_environment(config.environment.name)",
        HOSTILE + "[evaluate: a reward of the folder's own, with a value network to hold against it]",
    ),
    Mutation(
        "links in a folder are followed",
        "files:_check_entry",
        "stat.S_ISLNK(mode)",
        "False",
        HOSTILE + "[report: samples are a link]",
    ),
    Mutation(
        "what is written goes through links",
        "files:open_own",
        "flags | os.O_NOFOLLOW | os.O_CLOEXEC",
        "flags | os.O_CLOEXEC",
        "test_run_folder.py::test_what_is_written_goes_through_no_link",
    ),
    Mutation(
        "a checkpoint's added files are read",
        "checkpoint:verify",
        "_refuse_added(path, manifest, found.keys() - manifest.files.keys())",
        "pass",
        HOSTILE + "[generate: files that no manifest lists]",
    ),
    Mutation(
        "terminals get control characters",
        "reading:printable",
        "_CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), text.replace('\\r\\n', '\\n'))".replace("'", '"'),
        "text",
        STRANGERS + "test_say_shows_what_a_terminal_would_obey",
    ),
    # Files.
    Mutation(
        "a torn last line stays before what is written next",
        "json_lines:open_append",
        "last and parse(last) is None",
        "False",
        METRICS + "test_a_torn_last_line_is_passed_over_and_then_removed",
    ),
    Mutation(
        "the error that PyTorch has for a full disk is a bug of ours",
        "files:saving",
        "if not is_full(folder):",
        "if True:",
        "test_checkpoint.py::test_pytorchs_own_error_on_a_full_disk_names_the_disk",
    ),
    Mutation(
        "any error of PyTorch's is a full disk",
        "files:saving",
        "if not is_full(folder):",
        "if False:",
        "test_checkpoint.py::test_pytorchs_own_error_on_a_full_disk_names_the_disk",
    ),
    # Processes.
    Mutation(
        "the way back to a step uses up its own tries",
        "environments.pool:ProcessEnvironments._fault",
        "retries if request.known is None else 2 * retries",
        "retries // 2",
        POOL + "test_faults_on_the_way_back_do_not_use_up_a_steps_own_tries",
    ),
    Mutation(
        "a batch may fail without end",
        "environments.pool:ProcessEnvironments._fault",
        "self._faults > retries * self._asked",
        "False",
        POOL + "test_all_steps_of_a_batch_have_a_budget_of_retries_together",
    ),
    Mutation(
        "what outlives its run is left alone",
        "reaper:end_marked",
        "process.kill()",
        "pass",
        START_UP + "test_a_run_within_another_belongs_to_both",
    ),
    Mutation(
        "only a mark at an environment's beginning is seen",
        "reaper:marked",
        "(?:[^\\0]*,)?",
        "",
        START_UP + "test_a_run_within_another_belongs_to_both",
    ),
    Mutation(
        "lost weights end the run",
        "trainer:Trainer.play",
        "range(self.rollouts.config.max_retries)",
        "range(0)",
        "faults/test_objects.py::test_lost_weights_are_published_as_often_as_a_batch_is_tried_again",
    ),
    Mutation(
        "lost weights are not published again",
        "trainer:Trainer.play",
        "weights = self.learner.publish()",
        "pass",
        "faults/test_objects.py::test_lost_weights_are_published_as_often_as_a_batch_is_tried_again",
    ),
    # What is refused first.
    Mutation(
        "training starts on a machine without room",
        "trainer:train",
        "check_start(processes_of(config))",
        "pass",
        START_UP + "test_what_ray_could_not_hold_or_reach_is_refused_before_anything_is_loaded",
    ),
    Mutation(
        "a run goes on from another model",
        "trainer:train",
        "check_started_from(folder, start.model)",
        "pass",
        "test_training.py::test_a_run_whose_model_has_changed_does_not_go_on",
    ),
    Mutation(
        "a cluster without a password where nothing can be kept at home",
        "ray_start:start",
        "_bring_token()",
        "pass",
        "test_ray_session.py::test_a_cluster_of_the_runs_own_takes_its_session_folder_with_it",
    ),
    Mutation(
        "Ray's folder stays where its sockets do not fit",
        "ray_start:start",
        "            _temp_dir=str(folder),\n",
        "",
        "test_ray_session.py::test_a_cluster_of_the_runs_own_takes_its_session_folder_with_it",
    ),
    Mutation(
        "an empty prompt is the run's own",
        "generate:sample",
        "if prompt is not None:",
        "if prompt:",
        "test_response_rules.py::test_an_empty_prompt_starts_from_nothing_and_says_so",
    ),
    # What is said.
    Mutation(
        "an alarm before the first iteration",
        "guard:Guard.not_finite",
        "max(done - 1, 0)",
        "done - 1",
        ALARMS + "test_numbers_that_end_a_run_before_its_first_iteration_are_an_alarm_of_the_first",
    ),
    Mutation(
        "the iteration before the first is named by its number",
        "metrics:iteration_name",
        "if iteration == BASELINE_ITERATION",
        "if False",
        METRICS + "test_nan_never_enters_and_the_metric_is_named",
    ),
    # Scores of another shape.
    Mutation(
        "PPO takes fewer scores than turns",
        "algorithms.ppo:step_rewards",
        "zip(trajectory.turns, steps, score.total, strict=True)",
        "zip(trajectory.turns, steps, score.total)",
        REJECTION + "test_the_rewards_of_steps_and_the_turns_to_choose_from_need_a_score_each",
    ),
    Mutation(
        "rejection sampling takes fewer scores than turns",
        "algorithms.rejection_sampling:RejectionSampling.candidates",
        "zip(trajectory.turns, returns, strict=True)",
        "zip(trajectory.turns, returns)",
        REJECTION + "test_the_rewards_of_steps_and_the_turns_to_choose_from_need_a_score_each",
    ),
    Mutation(
        "rejection sampling takes fewer scores than episodes",
        "algorithms.rejection_sampling:RejectionSampling.candidates",
        "zip(trajectories, scores, strict=True)",
        "zip(trajectories, scores)",
        REJECTION + "test_the_rewards_of_steps_and_the_turns_to_choose_from_need_a_score_each",
    ),
    Mutation(
        "policy gradients take fewer scores than episodes",
        "algorithms.base:EpisodeAlgorithm.shaped_rewards",
        "zip(trajectories, scores, strict=True)",
        "zip(trajectories, scores)",
        REJECTION + "test_a_score_for_every_turn_or_an_error",
    ),
)
