"""`rayrlhf generate`: samples from a run's latest checkpoint or from any model, scored by any reward. No Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from rayrlhf.checkpoint import newest_model
from rayrlhf.config import ModelConfig, PromptsConfig, RewardPart
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.reward_process import RewardProcess
from rayrlhf.rollout import deal_specs
from rayrlhf.run_folder import RunFolder
from rayrlhf.sample_episodes import Sampled, sample_episodes
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.terminal_output import plain_console, say
from rayrlhf.trust import NOBODY, Trust, trusted_model
from rayrlhf.types import EpisodeScore, Trajectory

REWARD_TIMEOUT_S = 60.0


def generate(
    source: str,
    prompt: str | None,
    rewards: list[str],
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    trust: Trust = NOBODY,
) -> None:
    """Prints `samples` episodes of the model or run `source`, with their scores where rewards are named.

    Without a prompt a run's own prompts are used, and a model starts from nothing. Equal seeds give equal texts.
    """
    trajectories = sample(source, prompt, samples, max_new_tokens, temperature, seed, trust)
    scores: list[EpisodeScore] | None = None
    if rewards:
        with RewardProcess([RewardPart(name=name) for name in rewards], REWARD_TIMEOUT_S) as process:
            scores = process.score(trajectories)
    show(plain_console(), trajectories, scores)


def sample(
    source: str,
    prompt: str | None,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    trust: Trust = NOBODY,
) -> list[Trajectory]:
    """Plays single-turn episodes with the model or the run's latest checkpoint `source`, cut as its rewards see them."""
    model, prompts_config, response = find_model(source, trust)
    if prompt == "":
        say("--prompt is empty: the model starts from its BOS or EOS token alone", error=True)
    if prompt is not None:
        prompts_config = PromptsConfig(text=prompt or None)
    sampled = Sampled(prompts_config, SamplingSettings(max_new_tokens, temperature), response)
    return sample_episodes(model, sampled, deal_specs(seed, 0, samples, 1, samples))


def find_model(source: str, trust: Trust = NOBODY) -> tuple[ModelConfig, PromptsConfig, ResponseConfig]:
    """The model to load for a run's folder (its latest checkpoint) or a model's name, with its prompts and rules."""
    folder = Path(source)
    if not (folder / "checkpoints").is_dir():
        return trusted_model(ModelConfig(path=source), source, trust), PromptsConfig(), NO_RULES
    config = RunFolder.open(folder).read_config()
    model = ModelConfig(path=str(newest_model(folder / "checkpoints")))
    return trusted_model(model, source, trust), config.environment.prompts, config.response


def show(console: Console, trajectories: list[Trajectory], scores: list[EpisodeScore] | None) -> None:
    for number, trajectory in enumerate(trajectories):
        title = f"{number + 1}"
        if scores is not None:
            parts = ", ".join(f"{name} {value:g}" for name, value in scores[number].parts.items())
            title = f"{number + 1}: {parts}"
        shown = Text(trajectory.turns[0].observation, style="dim")
        shown.append(trajectory.turns[0].action, style="default")
        console.print(Panel(shown, title=Text(title), title_align="left"))
    if scores is not None:
        for name in scores[0].parts:
            values = np.array([score.parts[name] for score in scores])
            error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
            console.print(f"{name}: mean {values.mean():.2f}{error} over {len(values)} samples")
