"""Ends a process just before one of its system calls, or refuses calls of one kind: Linux on x86-64 and ARM64.

Written with ctypes over ptrace and seccomp, so that no tool has to be installed. A thread that is traced stops at every
system call; those that can change files or folders are counted, and at the n-th the process is killed: the call is not
made. What was never traced (other threads, child processes) runs as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

_TRACEME, _SYSCALL, _SETOPTIONS, _SEIZE, _INTERRUPT = 0, 24, 0x4200, 0x4206, 0x4207
_GET_SYSCALL_INFO = 0x420E
_O_TRACESYSGOOD, _O_EXITKILL = 1, 0x100000
_ENTRY = 1  # of ptrace_syscall_info.op
_WALL = 0x40000000  # of waitpid: threads too

CHANGING = {
    "x86_64": {
        1: "write", 18: "pwrite64", 20: "writev", 40: "sendfile", 76: "truncate", 77: "ftruncate", 82: "rename",
        83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink", 88: "symlink", 74: "fsync", 75: "fdatasync",
        257: "openat", 2: "open", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat",
        285: "fallocate", 296: "pwritev", 316: "renameat2", 326: "copy_file_range",
    },
    "aarch64": {
        64: "write", 68: "pwrite64", 66: "writev", 71: "sendfile", 45: "truncate", 46: "ftruncate", 34: "mkdirat",
        35: "unlinkat", 36: "symlinkat", 37: "linkat", 38: "renameat", 82: "fsync", 83: "fdatasync", 56: "openat",
        47: "fallocate", 70: "pwritev", 276: "renameat2", 285: "copy_file_range",
    },
}  # fmt: skip
"""Number -> name of the system calls after which files or folders may be other than before, for each machine."""

_FIRST_PATH = {"open", "creat", "mkdir", "rmdir", "unlink", "rename", "truncate", "link", "symlink"}
_SECOND_PATH = {"openat", "mkdirat", "unlinkat", "renameat", "renameat2", "linkat"}


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that a traced thread is about to make."""

    name: str
    path: str  # that it names, or of the open file that it works on; "" where it has neither


def why_not() -> str | None:
    """Why processes cannot be traced here; None where they can."""
    if sys.platform != "linux" or platform.machine() not in CHANGING:
        return f"system calls are traced on Linux on x86-64 and ARM64 alone, not on {sys.platform} {platform.machine()}"
    try:
        calls = killed_before(10**9, lambda: os.close(os.open("/dev/null", os.O_WRONLY)))
    except OSError as error:
        return f"processes cannot be traced here: {error.strerror}"
    return None if calls is None else "processes cannot be traced here"


def killed_before(number: int, body: Callable[[], object], counts: Callable[[Call], bool] | None = None) -> Call | None:
    """Forks; the child runs `body` and is killed just before the `number`-th (from 0) call that counts.

    Returns that call, or None where the child came to its end before it. counts: which of the calls in `CHANGING` count;
    None: all. Raises OSError where tracing is refused, AssertionError where the child fails by itself.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            body()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, _WALL)
    if not os.WIFSTOPPED(status):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    _ptrace(_SETOPTIONS, child, _O_TRACESYSGOOD | _O_EXITKILL)
    call, status = _kill_at(child, number, counts)
    assert call is not None or os.waitstatus_to_exitcode(status) == 0, f"the child failed: status {status}"
    return call


def kill_running(process: int, number: int, counts: Callable[[Call], bool]) -> Call | None:
    """Traces the main thread of a process that runs already and kills the process before its `number`-th call that
    counts; returns that call, or None where the process ended before it."""
    _ptrace(_SEIZE, process, _O_TRACESYSGOOD)
    _ptrace(_INTERRUPT, process)
    os.waitpid(process, _WALL)
    return _kill_at(process, number, counts)[0]


def _kill_at(process: int, number: int, counts: Callable[[Call], bool] | None) -> tuple[Call | None, int]:
    """Lets a stopped process go from system call to system call; returns the one it died at, and its last status."""
    left, deliver = number, 0
    while True:
        _ptrace(_SYSCALL, process, deliver)
        _, status = os.waitpid(process, _WALL)
        if not os.WIFSTOPPED(status):
            return None, status
        stop = os.WSTOPSIG(status)
        deliver = 0
        if stop != signal.SIGTRAP | 0x80:
            deliver = 0 if status >> 16 or stop == signal.SIGTRAP else stop  # a signal of its own goes on to it
            continue
        call = _call_at(process)
        if call is None or (counts is not None and not counts(call)):
            continue
        if left == 0:
            os.kill(process, signal.SIGKILL)
            while os.WIFSTOPPED(status):
                _, status = os.waitpid(process, _WALL)
            return call, status
        left -= 1


def _call_at(process: int) -> Call | None:
    """The system call that a stopped thread is about to make, if it is one of `CHANGING`; None at its return."""
    buffer = ctypes.create_string_buffer(88)
    _ptrace(_GET_SYSCALL_INFO, process, ctypes.addressof(buffer), ctypes.sizeof(buffer))
    if buffer.raw[0] != _ENTRY:
        return None
    number, *arguments = struct.unpack_from("<7Q", buffer.raw, 24)
    name = CHANGING[platform.machine()].get(number)
    if name is None:
        return None
    if name in _FIRST_PATH:
        return Call(name, _text_at(process, arguments[0]))
    if name in _SECOND_PATH:
        if name == "openat" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return None
        return Call(name, os.path.join(_folder(process, arguments[0]), _text_at(process, arguments[1])))
    return Call(name, _link(f"/proc/{process}/fd/{arguments[0]}"))


def _folder(process: int, descriptor: int) -> str:
    """The folder that a path of a call with a folder's descriptor starts from."""
    at = ctypes.c_int32(descriptor & 0xFFFFFFFF).value
    return _link(f"/proc/{process}/cwd" if at < 0 else f"/proc/{process}/fd/{at}")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _text_at(process: int, address: int) -> str:
    """The text, ended by a zero byte, in another process's memory."""
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory, contextlib.suppress(OSError):
        memory.seek(address)
        return memory.read(4096).split(b"\0", 1)[0].decode(errors="replace")
    return ""


def _ptrace(request: int, process: int, data: int = 0, length: int | None = None) -> None:
    """length: of a request that fills a buffer at `data`."""
    address, value = (length, data) if length is not None else (0, data)
    if _libc.ptrace(request, process, address, value) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Calls that are refused: a seccomp filter, kept by the process and all it starts.

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD, _EQUALS, _RETURN, _ALLOW, _ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
_LOCKS = {"x86_64": {"fcntl": 72, "flock": 73}, "aarch64": {"fcntl": 25, "flock": 32}}
_LOCK_COMMANDS = (6, 7, 37, 38)  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW


def refuse_locks(error: int) -> None:
    """From here on this process and its children are on file systems that keep no locks: `flock` and the locking
    commands of `fcntl` fail with `error`, such as errno.ENOLCK."""
    numbers = _LOCKS[platform.machine()]
    # offsets in struct seccomp_data: 0 the call's number, 24 the second argument's lower half
    commands = len(_LOCK_COMMANDS)
    lines = [
        (_LOAD, 0, 0, 0),
        (_EQUALS, commands + 3, 0, numbers["flock"]),
        (_EQUALS, 0, commands + 1, numbers["fcntl"]),
        (_LOAD, 0, 0, 24),
        *((_EQUALS, commands - at, 0, command) for at, command in enumerate(_LOCK_COMMANDS)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | error),
    ]
    code = b"".join(struct.pack("<HBBI", *line) for line in lines)
    kept = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(kept)))
    for request, value, address in (
        (_PR_SET_NO_NEW_PRIVS, 1, None),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ):
        if _libc.prctl(request, ctypes.c_ulong(value), ctypes.c_void_p(address), 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
