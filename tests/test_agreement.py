"""Sampler and learner agree about log-probabilities before the first optimizer step, on the shipped model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrlhf.algorithm_config import AdamWConfig
from rayrlhf.config import LearnerConfig, ModelConfig
from rayrlhf.learner import Learner
from rayrlhf.losses import Objective, PolicyGradientLoss
from rayrlhf.policy import load_policy, load_tokenizer, resolve_model
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler
from rayrlhf.types import TrainingBatch, TrainingSequence

MODEL = ModelConfig(path="tiny-stories")
TEXTS = ["Once upon a time", "Once upon a time there was a", "The", "One day, a big brown bear"]


def sampled_sequences(temperature: float, dtype: torch.dtype) -> list[TrainingSequence]:
    """200 samples of mixed lengths: four prompts of different lengths, and limits of 8 to 64 new tokens."""
    tokenizer = load_tokenizer(MODEL)
    policy = load_policy(MODEL, dtype)
    prompts = [np.asarray(tokenizer(text)["input_ids"]) for text in TEXTS]
    sequences = []
    for number, limit in enumerate((8, 20, 33, 47, 64)):
        sampler = TransformersSampler(policy, tokenizer.eos_token_id, SamplingSettings(limit, temperature))
        batch = [prompts[i % 4] for i in range(40)]
        for prompt, generation in zip(batch, sampler.sample(batch, range(40 * number, 40 * number + 40))):
            scored = len(generation.logprobs)
            sequences.append(
                TrainingSequence(
                    input_ids=np.concatenate([prompt, generation.response_ids]),
                    start=len(prompt),
                    advantages=np.ones(scored, np.float32),
                    behaviour_logprobs=generation.logprobs,
                    weights=np.full(scored, 1 / 200, np.float32),
                )
            )
    assert len({len(sequence) for sequence in sequences}) > 5
    return sequences


def gaps(temperature: float, precision: str, cap: float | None = None) -> dict[str, float]:
    """Metrics of one update over the 200 sequences."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = LearnerConfig.model_validate({"ranks": 1, "zero_stage": 0, "precision": precision})
    objective = Objective(PolicyGradientLoss(cap))
    learner = Learner(
        resolve_model(MODEL.path), objective, AdamWConfig(), config, temperature, iterations=1, device="cpu"
    )  # fmt: skip
    metrics = learner.update(TrainingBatch.one_step(sampled_sequences(temperature, dtype)), 0).metrics
    learner.close()
    return dict(metrics)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_fp32_agrees_on_every_token(temperature: float) -> None:
    """X-5, X-6: at most 1e-4 nats on any token of 200 sequences of mixed lengths."""
    metrics = gaps(temperature, "fp32")
    print(f"fp32, temperature {temperature}: largest gap {metrics['learner/logprob_gap_max']:.2g} nats")
    assert metrics["learner/logprob_gap_max"] <= 1e-4
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-4)


def test_bf16_agrees_on_the_mean_and_is_corrected() -> None:
    """X-5: bf16 at sampler and learner: at most 0.02 nats on the mean, a metric, with truncated importance sampling."""
    metrics = gaps(1.0, "bf16", cap=2.0)
    print(f"bf16: mean gap {metrics['learner/logprob_gap_mean']:.2g}, largest {metrics['learner/logprob_gap_max']:.2g}")
    assert 1e-6 < metrics["learner/logprob_gap_mean"] <= 0.02
