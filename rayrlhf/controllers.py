"""What moves a KL coefficient from update to update: nothing, the measured KL, or a schedule. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rayrlhf.kl_config import AdaptiveControllerConfig, KLChannelConfig, ScheduleControllerConfig

LEAST_FACTOR = 2.0
"""An adaptive controller that cannot even change its coefficient by this factor in a whole run is as good as fixed."""


class KLController:
    """The coefficient of one KL channel: the config's, times a factor that the run has led to."""

    def __init__(self, config: KLChannelConfig, iterations: int) -> None:
        """iterations: `RunConfig.schedule_length`, which a schedule without a length of its own is spread over."""
        self._config = config
        self._iterations = iterations
        self._factor = 1.0
        self._updates = 0

    @property
    def coef(self) -> float:
        """What the next update is to use, per nat."""
        controller = self._config.controller
        if isinstance(controller, ScheduleControllerConfig):
            length = controller.iterations or self._iterations
            return self._factor * scheduled(self._config.coef, controller, self._updates, length)
        return self._factor * self._config.coef

    def update(self, kl_per_sequence: float, kl_per_token: float, episodes: int) -> None:
        """Moves on, after an update on `episodes` whose rollouts measured these KLs in nats (SPEC LMHP-20)."""
        self._updates += 1
        controller = self._config.controller
        if isinstance(controller, AdaptiveControllerConfig):
            kl = kl_per_sequence if controller.unit == "sequence" else kl_per_token
            self._factor *= adaptation(kl, controller.target, episodes, controller.horizon, controller.max_error)

    def multiply(self, factor: float) -> None:
        """Raises or lowers the coefficient, for this and all later updates."""
        self._factor *= factor

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self._factor, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._factor, self._updates = float(state["factor"]), int(state["updates"])


def adaptation(kl: float, target: float, episodes: int, horizon: float, max_error: float) -> float:
    """The factor 1 + clip(kl / target - 1, -max_error, max_error) * episodes / horizon of the coefficient.

    Ziegler et al. 2019, section 2.2 (SPEC LMHP-20). kl and target in nats, both a sequence or both a token.
    """
    error = min(max(kl / target - 1, -max_error), max_error)
    return 1 + error * episodes / horizon


def scheduled(start: float, schedule: ScheduleControllerConfig, update: int, length: int) -> float:
    """The coefficient of update 0, 1, ...: `start` at the first, `schedule.final` from the last of `length` on."""
    done = min(update / max(length - 1, 1), 1.0)
    if schedule.shape == "exponential":
        return float(start ** (1 - done) * schedule.final**done)
    if schedule.shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return start + (schedule.final - start) * done


def immobility(config: KLChannelConfig, option: str, episodes: int, iterations: int) -> str | None:
    """A warning where an adaptive coefficient cannot move far enough in a whole run to hold its target (SPEC GWERN-19).

    option: the channel's name in the config; episodes: of one iteration.
    """
    controller = config.controller
    if not isinstance(controller, AdaptiveControllerConfig):
        return None
    a_fold = controller.horizon / (controller.max_error * episodes)  # updates for a factor e
    if iterations / a_fold >= math.log(LEAST_FACTOR):
        return None
    enough = controller.max_error * episodes * iterations / math.log(LEAST_FACTOR)
    return (
        f"warning: {option}.controller.horizon {controller.horizon:g} hardly lets the coefficient move: {a_fold:.0f} "
        f"updates of {episodes} episodes for a factor of e, and this run has {iterations}. For a factor of "
        f"{LEAST_FACTOR:g} over the run set it to {enough:.0f} or less."
    )
