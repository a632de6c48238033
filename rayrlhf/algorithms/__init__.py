"""Algorithms, one small file each over the pure functions of `advantages.py`, `kl.py` and `losses.py`."""

from __future__ import annotations

from rayrlhf.algorithms.grpo import GRPO
from rayrlhf.algorithms.reinforce import Reinforce
from rayrlhf.algorithms.rloo import RLOO
from rayrlhf.config import AlgorithmConfig, GRPOConfig, ReinforceConfig, RLOOConfig


def build_algorithm(config: AlgorithmConfig) -> RLOO | Reinforce | GRPO:
    match config:
        case RLOOConfig():
            return RLOO(config)
        case GRPOConfig():
            return GRPO(config)
        case ReinforceConfig():
            return Reinforce(config)
