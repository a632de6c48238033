"""Runs a command of the user's on a text, which goes to its standard input: no shell, a time limit, nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from rayrlhf.errors import PreferenceError


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    status: int | None  # exit status, negative where a signal ended it; None where the time limit did
    output: bytes  # what it wrote to its standard output; empty where the time limit ended it


def run_on(command: Sequence[str], data: bytes, seconds: float) -> Ran:
    """Runs the command with `data` as its standard input; after `seconds` it is killed, with all that it started.

    Raises:
        PreferenceError: it cannot be started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a process group of its own, and no terminal to read keys from
        )
    except (OSError, ValueError) as error:
        raise PreferenceError(f"the command `{' '.join(command)}` cannot be started: {error}") from error
    with process:
        try:
            output, _ = process.communicate(data, timeout=seconds)
        except BaseException as error:  # Ctrl-C as well: a player goes on else
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return Ran(None, b"")
            raise
    return Ran(process.returncode, output)
