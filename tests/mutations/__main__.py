"""`python -m tests.mutations [WORD...]`: runs every mutation whose name or place has one of the words; all by default.

Exit code 1 where one survives, cannot be applied, or breaks the program, or where a test fails without any.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.drawn import DRAWN
from tests.mutations.guards import GUARDS
from tests.mutations.runner import HEAVY, Job, Mutation, Verdict, baselines, run
from tests.mutations.table import MUTATIONS


def main(
    words: Sequence[str], mutations: Sequence[Mutation] = (*MUTATIONS, *DRAWN, *GUARDS), imported: Sequence[str] = HEAVY
) -> int:
    """Runs and prints; the exit code. imported: what all runs of tests share."""
    wanted = [m for m in mutations if not words or any(word in f"{m.name} {m.place}" for word in words)]
    if not wanted:
        print(f"no mutation has one of {', '.join(words)} in its name or place", file=sys.stderr)
        return 1
    began, wrong, caught = time.monotonic(), [], 0
    jobs = [*baselines(wanted), *(Job(mutation.node_ids, mutation) for mutation in wanted)]
    with tempfile.TemporaryDirectory(prefix="rayrlhf-mutations-") as folder:
        try:
            for job, verdict in run(jobs, Path(folder), os.cpu_count() or 1, imported):
                caught += job.mutation is not None and verdict.outcome == "failed"
                expected = "passed" if job.mutation is None else "failed"
                if job.mutation is not None or verdict.outcome != expected:
                    print(_line(job, verdict), flush=True)
                if verdict.outcome != expected:
                    wrong.append((job, verdict))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    for job, verdict in wrong:
        print(f"\n{_line(job, verdict)}\n{verdict.said}")
    seconds = time.monotonic() - began
    print(f"{len(wanted)} mutations, {caught} caught, {len(wrong)} lines to look at, in {seconds:.0f} s")
    return int(bool(wrong))


def _line(job: Job, verdict: Verdict) -> str:
    if job.mutation is None:
        return f"without any mutation: {verdict.outcome} {verdict.seconds:6.1f} s  {job.node_ids[0].partition('::')[0]}"
    return f"{verdict.state:<10} {verdict.seconds:6.1f} s  {job.mutation.place:<52} {job.mutation.name}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its forks and copies go with it
    sys.exit(main(sys.argv[1:]))
