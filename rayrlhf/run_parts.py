"""From a config to the parts of a run: environments, the model it starts from, settings of workers and learner.

`trainer.train` puts the parts together; nothing but it and these functions reads a whole config.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayrlhf.config import ModelConfig, RewardPart, RunConfig
from rayrlhf.environments import EnvironmentSettings, has_held_out_games, open_environments, takes_prompts
from rayrlhf.errors import ConfigError
from rayrlhf.examples import make_examples
from rayrlhf.kl_estimators import over_vocabulary
from rayrlhf.learner_group import LearnerSettings
from rayrlhf.losses import Objective
from rayrlhf.model_config import fingerprint
from rayrlhf.policy import check_model, context_length, load_tokenizer, resolve_model, vocabulary_fingerprint
from rayrlhf.prompts import Prompts, load_prompts
from rayrlhf.reading import expanded
from rayrlhf.reward_models.sidecar import read_sidecar
from rayrlhf.reward_models.task_form import check_task
from rayrlhf.run_folder import RunFolder, path_of
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.scratch import environment_texts, make_scratch_model
from rayrlhf.types import Split
from rayrlhf.worker import WorkerSettings

logger = logging.getLogger(__name__)


def check_agent(config: RunConfig) -> None:
    """Raises ConfigError for what cannot be trained, and for examples that cannot be played."""
    if config.agent.actions == "rank":
        raise ConfigError(
            "agent.actions: rank is to evaluate and to play with: its probabilities are of whole commands, not of "
            "tokens, and the learner has no loss for them; train with constrained"
        )
    make_examples(config.agent.examples)


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """What a run starts from, checked."""

    model: ModelConfig
    prompts: Prompts


def starting_point(config: RunConfig, model: ModelConfig) -> StartingPoint:
    """The model that the policy starts from and the prompts in its tokens. Raises ModelError, PromptError.

    Its path is resolved: a run of another name whose newest checkpoint it is may go on meanwhile. A run that is resumed
    starts from the checkpoint that it started from, as long as that is there.
    """
    kept = RunFolder(path_of(config)).kept_model(model.path)
    model = model.model_copy(update={"path": resolve_model(str(kept or model.path))})
    tokenizer = load_tokenizer(model)
    prompts = Prompts((), dropped=0, cut=0, source="the environment")
    if takes_prompts(config.environment.name):
        prompts = load_prompts(
            config.environment.prompts, tokenizer, context_length(model), config.rollout.max_new_tokens
        )
    check_model(model, tokenizer)
    return StartingPoint(model, prompts)


def check_started_from(folder: RunFolder, model: ModelConfig) -> None:
    """Raises RunFolderError where a resumed run would start from another model than it did; of a hub's the hub knows."""
    if Path(model.path).is_dir():
        folder.check_model(model.path, fingerprint(Path(model.path)))


def scratch_model(config: RunConfig, environments: Mapping[Split, EnvironmentSettings], folder: Path) -> ModelConfig:
    """The model of `model.scratch` in `folder`, made there unless a run that is resumed has made it."""
    assert config.model.scratch is not None
    if not folder.is_dir():
        with contextlib.closing(open_environments(environments["train"], [])) as games:
            make_scratch_model(config.model.scratch, environment_texts(games), config.seed, folder)
    return config.model.at(folder)


def reward_parts(config: RunConfig) -> list[RewardPart]:
    """The parts of the reward. A learned one is told the policy's vocabulary, after its task was held against the run's.

    Raises:
        ConfigError: a reward model was trained on texts of another form (SPEC LMHP-36).
        ModelError: its folder, or the policy's tokenizer, cannot be used.
    """
    return [_learned_part(part, config) if part.learned else part for part in config.reward]


def _learned_part(part: RewardPart, config: RunConfig) -> RewardPart:
    path = part.parameters.get("path")
    if not isinstance(path, str):
        raise ConfigError("reward reward_model: give the folder of a reward model as `path`")
    folder = expanded(path, ConfigError).resolve()  # actors have working directories of their own
    for warning in check_task(path, read_sidecar(folder).task, config):
        logger.warning(warning)
    given: dict[str, object] = {"path": str(folder)}
    if "vocabulary" not in part.parameters and config.model.scratch is None:
        given["vocabulary"] = vocabulary_fingerprint(load_tokenizer(config.model))
    return RewardPart.model_validate({**part.model_dump(), **given})


def environment_settings(config: RunConfig) -> dict[Split, EnvironmentSettings]:
    """How the environments of each split are made; not every environment has held-out games."""
    splits: tuple[Split, ...] = ("train", "held_out") if has_held_out_games(config.environment.name) else ("train",)
    return {split: EnvironmentSettings.of(config.environment, split, config.seed) for split in splits}


def worker_settings(
    config: RunConfig, start: StartingPoint, environments: Mapping[Split, EnvironmentSettings]
) -> WorkerSettings:
    rollout = config.rollout
    return WorkerSettings(
        model=start.model,
        environments=environments,
        prompts=start.prompts.items,
        agent=config.agent,
        max_turns=config.environment.max_turns,
        sampling=SamplingSettings(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            score_prompt=config.algorithm.include_prompt or getattr(config.algorithm, "train_prompt", False),
        ),
        device=device_of(config, rollout.gpus_per_worker),
        dtype="bfloat16" if precision_of(config) == "bf16" else "float32",
        threads=max(1, math.floor(rollout.cpus_per_worker)),
        vocabulary_kl=over_vocabulary(config.algorithm.kl.estimator),
        response=config.response,
    )


def learner_settings(config: RunConfig, model: ModelConfig, objective: Objective, device: str) -> LearnerSettings:
    return LearnerSettings(
        model=model,
        objective=objective,
        value=getattr(config.algorithm, "value", None) if objective.value is not None else None,
        optimizer=config.optimizer,
        learner=config.learner.model_copy(update={"precision": precision_of(config)}),
        temperature=config.rollout.temperature,
        iterations=config.schedule_length,
        device=device,
    )


def device_of(config: RunConfig, gpus: float) -> str:
    """Where an actor with so many GPUs computes. Raises ConfigError for `device: cuda` without any."""
    if config.device == "cuda" and not gpus:
        raise ConfigError("device: cuda needs rollout.gpus_per_worker and learner.gpus_per_rank above 0")
    return "cuda" if gpus and config.device != "cpu" else "cpu"


def logprob_gap(config: RunConfig) -> tuple[str, float]:
    """The metric that says how far learner and sampler disagree, and where the learner stops the run (SPEC X-5)."""
    bf16 = precision_of(config) == "bf16"
    limit = config.learner.logprob_gap_limit(bf16, config.rollout.temperature)
    return f"learner/logprob_gap_{'mean' if bf16 else 'max'}", limit


def precision_of(config: RunConfig) -> str:
    """fp32 or bf16: `auto` is bf16 where the learner has GPUs."""
    if config.learner.precision != "auto":
        return config.learner.precision
    return "bf16" if device_of(config, config.learner.gpus_per_rank) == "cuda" else "fp32"
