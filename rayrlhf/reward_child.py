"""The child process in which `RewardProcess` runs rewards."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from rayrlhf.child_process import Channel, enter_child

if TYPE_CHECKING:
    from rayrlhf.reward_mixture import RewardMixture


def main(connection_fd: int, dump_fd: int, parent_pid: int) -> None:
    """Builds the rewards of the first message, then answers each batch of trajectories until the parent is gone.

    Answers: ("running" | "idle", key) around a part's code; ("built", keys); ("scored", scores); ("failed", message).
    """
    _serve(*enter_child(connection_fd, dump_fd, parent_pid))


def _serve(channel: Channel, requests: queue.SimpleQueue[Any]) -> None:
    from rayrlhf.errors import UserError
    from rayrlhf.reward_mixture import RewardMixture

    def watch(key: str, running: bool) -> None:
        channel.send(("running" if running else "idle", key))

    mixture: RewardMixture | None = None
    while (request := requests.get()) is not None:
        try:
            if mixture is None:
                mixture = RewardMixture(request, watch)
                channel.send(("built", mixture.keys))
            else:
                channel.send(("scored", mixture.score(request)))
        except UserError as error:
            channel.send(("failed", str(error)))
    if mixture is not None:
        mixture.close()
