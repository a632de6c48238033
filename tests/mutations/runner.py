"""Applies mutations to copies of the package, and runs the tests that are to catch them.

The checkout is only read: each process works in a copy of its own under a temporary folder, so a run that is killed
leaves nothing behind in it. What is slow to import is imported once; every run of tests is a fork of that process, in
which the package itself is imported from the copy.
"""

from __future__ import annotations

import ast
import compileall
import contextlib
import importlib
import json
import os
import py_compile
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("rayrlhf", "envs", "rewards", "tune", "tests", "pyproject.toml")
HEAVY = (
    "torch", "torch.distributed", "torch.utils.checkpoint", "numpy", "scipy.stats", "scipy.optimize", "pydantic",
    "transformers", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "tokenizers",
    "transformers.models.gpt2.modeling_gpt2", "safetensors.torch", "ray", "ray.train", "ray.tune", "pytorch_lightning",
    "lightning_fabric", "deepspeed", "hypothesis", "pytest", "gymnasium", "ruamel.yaml", "rich.console",
)  # fmt: skip
TIMEOUT_S = 300.0  # of one run of tests; a test of the suite may take twice as long on a busy machine
BROKEN = {"SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError"}
"""Exceptions that say of a mutated file that it is no program, and nothing of the tests."""


@dataclass(frozen=True)
class Mutation:
    """One wrong line, and who is to notice it."""

    name: str
    place: str  # module:function under `rayrlhf`, as in `algorithms.ppo:PPO.prepare`; a class or constant will do
    old: str  # code that occurs once in the function
    new: str  # what stands there instead
    tests: str | tuple[str, ...]  # node ids under `tests/`; one failing is enough

    @property
    def node_ids(self) -> tuple[str, ...]:
        return tuple(f"tests/{test}" for test in ([self.tests] if isinstance(self.tests, str) else self.tests))

    @property
    def file(self) -> str:
        """The module's file, from the root of the checkout."""
        return f"rayrlhf/{self.place.partition(':')[0].replace('.', '/')}.py"

    def applied(self, source: str) -> str:
        """The module's source with the change. Raises ValueError where the place or the code is not there, once."""
        start, end = _span(source, self.place.partition(":")[2])
        count = source.count(self.old, start, end)
        if count != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {count} times in {self.place}, not once")
        at = source.index(self.old, start, end)
        mutated = source[:at] + self.new + source[at + len(self.old) :]
        if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
            raise ValueError(f"{self.name}: the change changes nothing")
        return mutated


def _span(source: str, qualified: str) -> tuple[int, int]:
    """Where a function, class or assigned name stands in a source: its first and last character."""
    scope: Any = ast.parse(source)
    for name in qualified.split("."):
        found = [node for node in scope.body if name in _names(node)]
        if len(found) != 1:
            raise ValueError(f"{qualified}: there is not one {name}, but {len(found)}")
        scope = found[0]
    lines = source.splitlines(keepends=True)
    start = sum(map(len, lines[: scope.lineno - 1]))
    return start, start + sum(map(len, lines[scope.lineno - 1 : scope.end_lineno]))


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@dataclass(frozen=True)
class Verdict:
    """What came of a run of tests."""

    outcome: str  # passed, failed, or why it says nothing: broken, timed out, no tests
    seconds: float
    said: str = ""  # which test failed first and how, or the end of what was printed

    @property
    def state(self) -> str:
        """Of a mutation: what a failed test means is that it was caught."""
        return {"passed": "SURVIVED", "failed": "caught"}.get(self.outcome, self.outcome.upper())


@dataclass(frozen=True)
class Job:
    """Tests to be run, under a mutation or none."""

    node_ids: tuple[str, ...]
    mutation: Mutation | None = None


def baselines(mutations: Sequence[Mutation]) -> list[Job]:
    """The tests of all mutations without any, file by file."""
    files: dict[str, dict[str, None]] = {}
    for node_id in (node_id for mutation in mutations for node_id in mutation.node_ids):
        files.setdefault(node_id.partition("::")[0], {})[node_id] = None
    return [Job(tuple(node_ids)) for node_ids in files.values()]


def run(
    jobs: Sequence[Job], folder: Path, processes: int, imported: Sequence[str] = HEAVY
) -> Iterator[tuple[Job, Verdict]]:
    """Runs the jobs in copies under `folder`, so many at a time; yields each as it ends. imported: once, for all.

    Raises ValueError, before anything runs, for a mutation that cannot be applied.
    """
    for job in jobs:
        if job.mutation is not None:
            job.mutation.applied((ROOT / job.mutation.file).read_text())
    _import(imported)
    waiting, free = list(reversed(jobs)), [_copy(folder / str(number)) for number in range(processes)]
    running: dict[int, tuple[Job, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, copy = waiting.pop(), free.pop()
                running[_start(job, copy)] = job, copy, time.monotonic()
            time.sleep(0.02)
            for pid in list(running):
                job, copy, began = running[pid]
                seconds = time.monotonic() - began
                ended, _ = os.waitpid(pid, os.WNOHANG)
                if not ended and seconds < TIMEOUT_S:
                    continue
                del running[pid]
                _end(pid, ended != 0)
                _restore(job, copy)
                free.append(copy)
                yield job, _verdict(copy, seconds) if ended else Verdict("timed out", seconds)
    finally:
        for pid in running:
            _end(pid, False)


def _import(names: Sequence[str]) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in names:
        importlib.import_module(name)
    assert not any(name.partition(".")[0] == "rayrlhf" for name in sys.modules), (
        "the package itself is to be forked for"
    )


def _copy(folder: Path) -> Path:
    """A copy of what is mutated and tested; its compiled files say by hash, not by time, whether they are current."""
    folder.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "rayrlhf", quiet=2, invalidation_mode=checked)
    return folder


def _start(job: Job, copy: Path) -> int:
    if job.mutation is not None:
        file = copy / job.mutation.file
        file.write_text(job.mutation.applied(file.read_text()))
    (copy / "result.json").unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _test(job, copy)
    finally:
        os._exit(1)


def _restore(job: Job, copy: Path) -> None:
    if job.mutation is not None:
        shutil.copy(ROOT / job.mutation.file, copy / job.mutation.file)


def _end(pid: int, reaped: bool) -> None:
    """Ends what is left of a fork and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not reaped:
        os.waitpid(pid, 0)


class _Watch:
    """A plugin of pytest that notes what failed."""

    def __init__(self) -> None:
        self.passed = 0
        self.wrong: list[tuple[str, str, str]] = []  # node id, exception, message

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        self.wrong.append((node.nodeid, call.excinfo.typename, str(call.excinfo.value)[:2000]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed


def _test(job: Job, copy: Path) -> None:
    """In a fork: runs the tests from the copy, and leaves there what came of it."""
    import pytest

    with (copy / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    sys.path_importer_cache.clear()
    watch = _Watch()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", f"--rootdir={copy}"]
    code = int(pytest.main([*options, *job.node_ids], plugins=[watch]))
    imported = sys.modules["rayrlhf"].__file__ if "rayrlhf" in sys.modules else str(copy)
    assert str(imported).startswith(str(copy)), f"{imported} is not of the copy"
    result = {"code": code, "passed": watch.passed, "wrong": watch.wrong}
    (copy / "result.json").write_text(json.dumps(result))
    os._exit(0)


def _verdict(copy: Path, seconds: float) -> Verdict:
    printed = (copy / "output.txt").read_text(errors="replace")[-2000:]
    if not (copy / "result.json").exists():
        return Verdict("broken", seconds, printed)
    result = json.loads((copy / "result.json").read_text())
    if result["code"] == 0:
        return Verdict("passed" if result["passed"] else "no tests", seconds)
    if result["code"] != 1 or not result["wrong"]:
        return Verdict("broken", seconds, printed)
    node_id, exception, message = result["wrong"][0]
    said = f"{node_id.partition('::')[2]}: {exception}: {message.strip().splitlines()[0] if message.strip() else ''}"
    return Verdict("broken" if exception in BROKEN else "failed", seconds, said)
