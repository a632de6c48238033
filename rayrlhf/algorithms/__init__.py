"""Algorithms, one small file each over the pure functions of `advantages.py`, `kl.py` and `losses.py`."""

from __future__ import annotations

from rayrlhf.algorithm_config import (
    AlgorithmConfig,
    GRPOConfig,
    PPOConfig,
    ReinforceConfig,
    RejectionSamplingConfig,
    RLOOConfig,
)
from rayrlhf.algorithms.grpo import GRPO
from rayrlhf.algorithms.ppo import PPO
from rayrlhf.algorithms.reinforce import Reinforce
from rayrlhf.algorithms.rejection_sampling import RejectionSampling
from rayrlhf.algorithms.rloo import RLOO


def build_algorithm(config: AlgorithmConfig, iterations: int = 1) -> RLOO | Reinforce | GRPO | PPO | RejectionSampling:
    """iterations: `RunConfig.schedule_length`, which a schedule is spread over."""
    match config:
        case RLOOConfig():
            return RLOO(config, iterations)
        case GRPOConfig():
            return GRPO(config, iterations)
        case ReinforceConfig():
            return Reinforce(config, iterations)
        case PPOConfig():
            return PPO(config, iterations)
        case RejectionSamplingConfig():
            return RejectionSampling(config, iterations)
