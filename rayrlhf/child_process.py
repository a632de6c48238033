"""Code of the user's in a child process of its own: starting it, talking to it, learning why it ended, killing it.

Child and parent are the same program on the same machine: each unpickles only what the other wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import pickle
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

from rayrlhf.error_location import is_user_file, shown_path
from rayrlhf.messages import show_plainly

# -P and the parent's own sys.path: the child imports what the parent would, and never the caller's __main__.
_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main(*map(int, sys.argv[3:]))"
)
_LENGTH = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1
_EXIT_GRACE_S = 1.0
_EXIT_WAIT_S = 2.0
_DUMP_WAIT_S = 0.5
_DUMP_SIGNAL = signal.SIGUSR1  # makes the child write its stacks, even where a thread holds the interpreter's lock
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in ', re.MULTILINE)


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

    def fileno(self) -> int:
        return self._connection.fileno()

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


class ChildProcess:
    """One child that runs `main(connection_fd, dump_fd, parent_pid)` of a module, and the channel to it.

    Linux ends a child with the thread that started it: start it in one that lives as long as the child shall.
    """

    def __init__(self, module: str, output: int = 2, lock_fd: int | None = None) -> None:
        """output: the descriptor that what the child prints goes to, the parent's stderr by default.
        lock_fd: a descriptor that the child holds open as long as it lives.
        """
        mine, its = socket.socketpair()
        self._dump_fd, its_dump_fd = os.pipe()
        os.set_blocking(self._dump_fd, False)
        self.channel = Channel(mine)
        arguments = [json.dumps(sys.path), module, str(its.fileno()), str(its_dump_fd), str(os.getpid())]
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,  # `input()` raises EOFError at once
                stdout=output,
                stderr=output,
                pass_fds=(its.fileno(), its_dump_fd, *(() if lock_fd is None else (lock_fd,))),
                start_new_session=True,  # out of reach of Ctrl-C; programs that the child starts can be killed with it
            )
        os.close(its_dump_fd)
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Lets the child end by itself for a moment, then kills it and all that it started."""
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        self.kill()

    def kill(self) -> None:
        """Kills the child and all that it started; may be called twice."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its own group, see start_new_session
        self._process.wait()
        self.channel.close()
        if self._dump_fd >= 0:
            os.close(self._dump_fd)
            self._dump_fd = -1

    def place_of_hang(self) -> str:
        """Asks the child for its stacks, which it can give while it is busy; ` (at FILE:LINE)` of the user's code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, _DUMP_SIGNAL)
        wait_s = _DUMP_WAIT_S
        dump = b""
        while select.select([self._dump_fd], [], [], wait_s)[0]:
            if not (chunk := os.read(self._dump_fd, 1 << 16)):
                break
            dump, wait_s = dump + chunk, 0.05
        return _place(dump)

    def death(self) -> str:
        """Why the child, which does not answer any more, ended: `exit code 1.`; what is left of it is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        code = self._process.poll()
        dump = b""
        with contextlib.suppress(BlockingIOError):
            dump = os.read(self._dump_fd, 1 << 16)
        self.kill()
        if code is None:
            return "it closed its connection."
        if code >= 0:
            return f"exit code {code}."
        hint = " (the system sends it when memory runs out)" if code == -signal.SIGKILL else ""
        return f"exit code {code}, {signal.Signals(-code).name}{hint}{_place(dump)}."


def _place(dump: bytes) -> str:
    """The innermost frame of a user's file in the stacks that `faulthandler` wrote."""
    for frame in _FRAME.finditer(dump.decode("ascii", "replace")):
        if is_user_file(frame["file"]):
            return f" (at {shown_path(frame['file'])}:{frame['line']})"
    return ""


def enter_child(connection_fd: int, dump_fd: int, parent_pid: int) -> tuple[Channel, queue.SimpleQueue[Any]]:
    """What a child's `main` does first: makes it die with its parent, tell messages as its parent does, and dump its
    stacks when it hangs or crashes.

    Returns the channel for answers, and the parent's messages as they come in: None once the parent is gone.
    """
    _die_with_parent(parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Signals that reach a whole process group are for the parent to act on. A handler that does nothing rather
        # than SIG_IGN, which programs that the child starts would inherit.
        signal.signal(number, lambda *_: None)
    show_plainly()
    faulthandler.enable(file=dump_fd)
    faulthandler.register(_DUMP_SIGNAL, file=dump_fd, all_threads=True)
    sys.argv = ["rayrlhf"]
    # What the user's code prints is seen line by line, beside what it writes to stderr.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    channel = Channel(socket.socket(fileno=connection_fd))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(channel, requests), daemon=True).start()
    return channel, requests


def _read_requests(channel: Channel, requests: queue.SimpleQueue[Any]) -> None:
    """Runs in a thread of its own, so that a parent's end is noticed while the child computes."""
    try:
        while True:
            requests.put(channel.receive())
    except EOFError:
        requests.put(None)
        time.sleep(_EXIT_GRACE_S)
        os._exit(1)


def _die_with_parent(parent_pid: int) -> None:
    """On Linux the kernel kills this process when its parent ends, SIGKILL included and whoever holds the GIL.

    Elsewhere the end of the channel has to do, which code that holds the GIL delays.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
