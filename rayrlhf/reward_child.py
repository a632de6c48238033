"""The child process in which `RewardProcess` runs rewards, and the channel of pickled messages between the two.

Child and parent are the same program on the same machine: each unpickles only what the other wrote.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayrlhf.reward_mixture import RewardMixture

_LENGTH = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1
_EXIT_GRACE_S = 1.0

DUMP_SIGNAL = signal.SIGUSR1
"""Makes the child write the stack of each thread, even where one of them holds the interpreter's lock."""


class Channel:
    """Messages over a stream socket: eight bytes of length, then the pickled message."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, message: Any, deadline: float | None = None) -> None:
        """Raises TimeoutError past `deadline` (of `time.monotonic`), OSError where nobody listens any more."""
        self._connection.settimeout(_left(deadline))
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._connection.sendall(_LENGTH.pack(len(payload)) + payload)

    def receive(self, deadline: float | None = None) -> Any:
        """Raises TimeoutError past `deadline` (of `time.monotonic`), EOFError where the other end is gone."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        return pickle.loads(self._read(length, deadline))

    def close(self) -> None:
        self._connection.close()

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._connection.settimeout(_left(deadline))
            try:
                chunk = self._connection.recv(min(size - len(data), 1 << 20))
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError("the other end is gone")
            data += chunk
        return data


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline, for `settimeout`, to which 0 would mean something else."""
    return None if deadline is None else max(deadline - time.monotonic(), 1e-6)


def main(connection_fd: int, dump_fd: int, parent_pid: int) -> None:
    """Builds the rewards of the first message, then answers each batch of trajectories until the parent is gone.

    Answers: ("running" | "idle", key) around a part's code; ("built", keys); ("scored", scores); ("failed", message).
    """
    _die_with_parent(parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Signals that reach a whole process group are for the parent to act on. A handler that does nothing rather
        # than SIG_IGN, which programs that a reward starts would inherit.
        signal.signal(number, lambda *_: None)
    faulthandler.enable(file=dump_fd)
    faulthandler.register(DUMP_SIGNAL, file=dump_fd, all_threads=True)
    sys.argv = ["rayrlhf"]
    # `stdout` was made to lead to stderr: what a reward prints is seen, line by line.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    channel = Channel(socket.socket(fileno=connection_fd))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(channel, requests), daemon=True).start()
    _serve(channel, requests)


def _serve(channel: Channel, requests: queue.SimpleQueue[Any]) -> None:
    from rayrlhf.errors import RewardError
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
        except RewardError as error:
            channel.send(("failed", str(error)))
    if mixture is not None:
        mixture.close()


def _read_requests(channel: Channel, requests: queue.SimpleQueue[Any]) -> None:
    """Runs in a thread of its own, so that a parent's end is noticed while a reward computes."""
    try:
        while True:
            requests.put(channel.receive())
    except EOFError:
        requests.put(None)
        time.sleep(_EXIT_GRACE_S)
        os._exit(1)


def _die_with_parent(parent_pid: int) -> None:
    """On Linux the kernel kills this process when its parent ends, SIGKILL included and whoever holds the GIL.

    Elsewhere the end of the channel has to do, which a reward that holds the GIL delays.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
