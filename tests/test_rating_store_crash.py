"""Two raters write and are killed, again and again: what was acknowledged is there (GWERN-1)."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from rayrlhf.preferences.store import FILE_NAME, RatingStore

ROUNDS, WRITERS = 30, 2
ROOT = Path(__file__).resolve().parent.parent

# Forks a writer for each name that it is told, and answers with its process id: so Python starts once, not 60 times.
NURSERY = """
import os, signal, sys
from pathlib import Path
from rayrlhf.preferences.records import Comparison, Item
from rayrlhf.preferences.store import RatingStore
assert "torch" not in sys.modules

def write(path, name):
    items = [Item("Once", " upon"), Item("Once", " a time")]
    said = os.open(path.with_name(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with RatingStore(path) as store:
        store.add_items(items)
        while True:
            verdict = Comparison((items[0].id, items[1].id), 0, rater=name)
            store.add(verdict)
            os.write(said, verdict.id.encode() + b"\\n")

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no burial
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write(Path(sys.argv[1]), line.strip())
    print(child, flush=True)
"""


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def has_spoken(said: Path) -> bool:
    return said.exists() and said.stat().st_size > 0


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_no_acknowledged_rating_is_lost(tmp_path: Path) -> None:
    """GWERN-1, done-when: 30 rounds of kill -9 while two raters write; the first round also makes the store."""
    path = tmp_path / FILE_NAME
    drawn = random.Random(0)
    names = [[f"{number}-{index}" for index in range(WRITERS)] for number in range(ROUNDS)]
    command = [sys.executable, "-c", NURSERY, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for pair in names:
            nursery.stdin.write("".join(f"{name}\n" for name in pair))
            nursery.stdin.flush()
            writers = [int(nursery.stdout.readline()) for _ in pair]
            for said in [tmp_path / name for name in pair]:
                wait_for("a writer says nothing", partial(has_spoken, said))
            time.sleep(drawn.uniform(0.0, 0.05))
            for writer in writers:
                os.kill(writer, signal.SIGKILL)
            for writer in writers:
                wait_for("a writer does not die", partial(is_gone, writer))
        nursery.stdin.close()
    with RatingStore(path) as store:
        found = store.comparisons()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for name in [name for pair in names for name in pair]:
        acknowledged = [line.decode() for line in (tmp_path / name).read_bytes().split(b"\n")[:-1]]
        stored = [verdict.id for verdict in found if verdict.rater == name]
        assert acknowledged
        assert stored[: len(acknowledged)] == acknowledged, "an acknowledged verdict is lost, or out of order"
        assert len(stored) <= len(acknowledged) + 1  # the one that was written and not yet acknowledged
