"""What a person sees while a run goes on: a bar on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from rayrlhf.terminal_output import plain_console

_FACTS = (("reward", "objective/score", ""), ("won", "rollout/won", ""), ("KL", "objective/kl", " nats"))


class Progress:
    """Shows iteration, reward, share of games won, KL and the time left. Use it in a `with`, `update` it every iteration."""

    def __init__(
        self,
        iterations: int,
        console: Console | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """iterations: of the whole run. console: standard error by default. clock: in seconds.

        interval_s: least time between two plain lines.
        """
        self._iterations = iterations
        self._console = console or plain_console(stderr=True)
        self._interval_s = interval_s
        self._clock = clock
        # (iterations done, when): the last 20 tell the speed. A resumed run's first update says where it stands, and
        # what came before any update is no iteration.
        self._ends: deque[tuple[int, float]] = deque(maxlen=21)
        self._printed_at = float("-inf")
        self._bar: Bar | None = None
        if self._console.is_terminal:
            columns = (TextColumn("iteration"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task("", total=iterations)

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """iteration: the one just done, counted from 0. metrics: those recorded of it."""
        done = iteration + 1
        if self._ends and self._ends[-1][0] >= done:
            self._ends.clear()  # the run went back to a checkpoint
        self._ends.append((done, self._clock()))
        facts = [f"{label} {metrics[name]:.2f}{unit}" for label, name, unit in _FACTS if name in metrics]
        if done < self._iterations and len(self._ends) > 1:
            facts.append(f"{duration(self._seconds_left(done))} left")
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description="  ".join(facts))
        elif done == self._iterations or self._ends[-1][1] - self._printed_at >= self._interval_s:
            self.message("  ".join([f"iteration {done}/{self._iterations}", *facts]))
            self._printed_at = self._ends[-1][1]

    def message(self, text: str) -> None:
        """Prints a line of its own, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _seconds_left(self, done: int) -> float:
        first, then = self._ends[0]
        return (self._ends[-1][1] - then) / (done - first) * (self._iterations - done)


def duration(seconds: float) -> str:
    """1:05 (minutes:seconds), from an hour on 2:01:05."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
