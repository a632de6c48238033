"""`rayrlhf imitate`: a policy learns the known solutions of games by cross-entropy, before reinforcement learning.

It goes through the learner of a run (Ray, Fabric, DeepSpeed), with advantage 1 for what the solution says: the gradient
is that of cross-entropy on the responses, over the tokens that the game's commands allowed where a run would constrain
the policy too.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rayrlhf.agent_text import make_prompter
from rayrlhf.algorithms.sequences import training_batch
from rayrlhf.cluster import get, ray_session
from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.environments import open_environments, prepare_environment
from rayrlhf.errors import ConfigError, LearnerError, RunFolderError
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.losses import Objective, PolicyGradientLoss
from rayrlhf.policy import check_policy, context_length, end_ids, load_policy, load_tokenizer, score_allowed
from rayrlhf.progress import Progress
from rayrlhf.room import check_start
from rayrlhf.run_parts import device_of, environment_settings, learner_settings, scratch_model
from rayrlhf.types import TrainingSequence
from rayrlhf.walkthroughs import Demonstration, walkthroughs
from rayrlhf.weights import load_into
from rayrlhf.worker_death import LEARNER_MEMORY, Died


@dataclass(frozen=True, slots=True)
class ImitationSettings:
    """How long, and in which steps."""

    games: int  # training games whose solutions are shown
    epochs: int  # passes over all turns
    turns_per_step: int  # turns behind one optimizer step


def imitate(config: RunConfig, output: Path, settings: ImitationSettings) -> Path:
    """Trains the policy that `config` would start from on walkthroughs of its games; returns the model's folder.

    Raises:
        RunFolderError: `output` exists.
        ConfigError: the environment is no game with commands.
        EpisodeError: the environment knows no solutions.
        LearnerError: a rank of the learner died.
    """
    if output.exists():
        raise RunFolderError(f"{output} exists: give a folder that does not, or remove it")
    check_start({"learner.ranks": config.learner.ranks})
    environments = environment_settings(config)
    prepare_environment(environments["train"])
    with contextlib.ExitStack() as stack:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent)))
        start = scratch_model(config, environments, work / "start") if config.model.scratch else config.model
        tokenizer = load_tokenizer(start)
        prompter = make_prompter(
            config.agent, tokenizer, (), context_length(start), config.rollout.max_new_tokens, end_ids(start, tokenizer)
        )
        games = stack.enter_context(contextlib.closing(open_environments(environments["train"])))
        shown = walkthroughs(games, prompter, settings.games)
        if not shown:
            raise ConfigError(f"environment {config.environment.name} showed no turn to learn from")
        progress = stack.enter_context(Progress(settings.epochs))
        progress.message(f"{len(shown)} turns of {settings.games} solutions, {settings.epochs} epochs")
        stack.enter_context(ray_session(config))
        objective = Objective(PolicyGradientLoss(importance_cap=None))
        paced = config.model_copy(update={"iterations": settings.epochs, "schedule_iterations": None})
        group = LearnerGroup(learner_settings(paced, start, objective, device_of(config, config.learner.gpus_per_rank)))
        stack.callback(group.close)
        group.start()
        try:
            _train(group, start, shown, config.rollout.temperature, settings, config.seed, progress)
            group.save(work / "model", work / "state", None)
        except Died as error:
            advice = error.advice(LEARNER_MEMORY)
            raise LearnerError(f"the learner died: {error}{advice}; nothing was written: begin anew") from error
        shutil.move(work / "model", output)
    return output


def _train(
    group: LearnerGroup,
    start: ModelConfig,
    shown: Sequence[Demonstration],
    temperature: float,
    settings: ImitationSettings,
    seed: int,
    progress: Progress,
) -> None:
    """One update an epoch. The policy's own log-probabilities go with it: the learner checks that it has its weights."""
    torch.set_num_threads(1)
    policy = load_policy(start)
    check_policy(start, policy, load_tokenizer(start))
    for epoch in range(settings.epochs):
        batch = training_batch(
            training_sequences(policy, shown, temperature),
            "token_mean",
            epochs=1,
            minibatches=max(1, round(len(shown) / settings.turns_per_step)),
            target_kl=None,
            seed=seed + epoch,
        )
        report = group.update(batch, epoch)
        load_into(policy, get(group.publish().ref, group.config.timeout_s)[0])
        progress.message(f"epoch {epoch + 1}: cross-entropy {report.metrics['learner/loss']:.3f} nats a choice")
        progress.update(epoch, {})


def training_sequences(
    policy: torch.nn.Module, shown: Sequence[Demonstration], temperature: float
) -> list[TrainingSequence]:
    """A sequence a turn, whose loss is the cross-entropy of its response's choices on the mean over all of them."""
    ids = [np.concatenate([demonstration.prompt_ids, demonstration.response_ids]) for demonstration in shown]
    starts = [len(demonstration.prompt_ids) for demonstration in shown]
    scores = score_allowed(policy, ids, starts, [demonstration.allowed for demonstration in shown], temperature)
    chosen = [~demonstration.allowed.forced for demonstration in shown]
    weight = 1.0 / sum(int(tokens.sum()) for tokens in chosen)
    return [
        TrainingSequence(
            input_ids=tokens,
            start=start,
            advantages=choices.astype(np.float32),
            behaviour_logprobs=logprobs,
            weights=(choices * weight).astype(np.float32),
            allowed=demonstration.allowed,
        )
        for tokens, start, choices, (_, logprobs), demonstration in zip(ids, starts, chosen, scores, shown, strict=True)
        if choices.any()
    ]
