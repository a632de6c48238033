"""Games side by side in processes of their own: one that hangs, crashes, raises or leaks costs a retry, not the run.

A lost game is played again from its seed with the actions it was given, so what the policy was shown stays true.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal

from rayrlhf.environments import EnvironmentSettings, difference, first_seeds
from rayrlhf.environments.memo import Transition, TransitionMemo
from rayrlhf.environments.private_folder import PrivateFolder
from rayrlhf.environments.process import EnvironmentProcess, Slot
from rayrlhf.errors import EpisodeError
from rayrlhf.types import StepResult

Fault = Literal["exit", "hang", "raise"]


class ProcessEnvironments:
    """Plays in `settings.processes` child processes, many games in each; see `interfaces.Environments`.

    Where states have keys (`GameState.key`) a transition that was seen before is answered from memory. The real game
    is behind then, and catches up when a step comes that is not known.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        prompts: Sequence[str] = (),
        *,
        memo_entries: int = 50_000,
        load_timeout_s: float = 120.0,
        recycle_after: int = 2_000,
        recycle_growth_mb: int = 512,
    ) -> None:
        """Starts the processes; the games in them are built as `reset` needs them.

        memo_entries: how many transitions are remembered; 0: none.
        load_timeout_s: how long importing an environment and building one game may take.
        recycle_after: episodes after which a process is replaced by a new one, at the next reset.
        recycle_growth_mb: megabytes by which a process may have grown since its first reset, likewise.
        """
        self._settings = settings
        self._prompts = tuple(prompts)
        self._first_seed = first_seeds(settings, prompts)
        self._memo = TransitionMemo(memo_entries) if memo_entries else None
        self._load_timeout_s = load_timeout_s
        self._recycle_after = recycle_after
        self._recycle_growth_mb = recycle_growth_mb
        self._slots: list[Slot] = []
        self._counts = _no_counts()
        self._folder = PrivateFolder("games")
        # Linux ends a child with the thread that started it: this one lives as long as this object.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="environment-hosts")
        self._started = 0  # hosts, since the beginning
        self._hosts: list[EnvironmentProcess | None] = [self._new_host() for _ in range(settings.processes)]

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        """See `interfaces.Environments`. Raises EpisodeError where a game cannot be built or started."""
        start = time.perf_counter()
        self._recycle_hosts()
        self._slots = [Slot(self._first_seed(seed)) for seed in seeds]
        self._answer(range(len(seeds)))
        self._counts["env/wait_seconds"] += time.perf_counter() - start
        return [slot.results[0] for slot in self._slots]

    def step(self, actions: Mapping[int, str]) -> dict[int, StepResult]:
        """See `interfaces.Environments`.

        Raises EpisodeError where a step failed `max_retries` + 1 times, where an environment broke its contract, and
        where a game that was played again went another way. After an error only `reset` and `close` are of use.
        """
        start = time.perf_counter()
        for number, action in actions.items():
            self._slots[number].ask(action)
        played = self._answer(actions)
        self._counts["env/steps"] += len(actions)
        self._counts["env/memo_hits"] += len(actions) - played
        self._counts["env/wait_seconds"] += time.perf_counter() - start
        return {number: self._slots[number].results[-1] for number in actions}

    def counts(self) -> Mapping[str, float]:
        """Since the last call: env/steps, env/memo_hits (steps answered from memory), env/retries_exit,
        env/retries_hang, env/retries_raise, env/wait_seconds (wall time in `reset` and `step`)."""
        counted, self._counts = self._counts, _no_counts()
        return counted

    @property
    def pids(self) -> list[int]:
        """Process ids of the children."""
        return [host.pid for host in self._hosts if host is not None]

    def close(self) -> None:
        """Ends the processes and removes their folders; may be called twice."""
        for index, host in enumerate(self._hosts):
            if host is not None:
                host.stop()
                self._hosts[index] = None
        self._starter.shutdown()
        self._folder.close()

    def __enter__(self) -> ProcessEnvironments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, numbers: Collection[int]) -> int:
        """Finds the result that each of these slots lacks; returns how many had to be played.

        Of slots with the same transition one plays first: mostly the others find its result in the memory then.
        """
        unknown = self._without_hits(numbers)
        first: dict[Transition, int] = {}
        leaders = [
            number
            for number in unknown
            if (transition := self._remembered_as(number)) is None or first.setdefault(transition, number) == number
        ]
        self._play(leaders)
        followers = self._without_hits(set(unknown).difference(leaders))
        self._play(followers)
        return len(leaders) + len(followers)

    def _remembered_as(self, number: int) -> Transition | None:
        """What the slot's next result is remembered under; None where it is not."""
        return self._slots[number].transition() if self._memo is not None else None

    def _without_hits(self, numbers: Collection[int]) -> list[int]:
        """Gives the slots their results where these are remembered; returns the others, in order."""
        others = []
        for number in sorted(numbers):
            transition = self._remembered_as(number)
            hit = self._memo.get(transition) if self._memo is not None and transition is not None else None
            if hit is None:
                others.append(number)
            else:
                self._slots[number].results.append(hit)
        return others

    def _play(self, numbers: Collection[int]) -> None:
        """Has the real games of these slots catch up with all that they were asked, each in its host."""
        due = set(numbers)
        try:
            while due:
                for index in range(len(self._hosts)):
                    self._hand_out(index, due)
                for index in self._wait():
                    self._hear(index, due)
        except BaseException:  # Ctrl-C too: answers on their way must not be taken for those of later questions
            for index, host in enumerate(self._hosts):
                if host is not None and host.queue:
                    self._lose(index)
            raise

    def _hand_out(self, index: int, due: Collection[int]) -> None:
        """Asks an idle host for all that its slots are due."""
        mine = sorted(number for number in due if number % len(self._hosts) == index)
        host = self._hosts[index]
        if not mine or (host is not None and host.queue):
            return
        if host is None:
            host = self._hosts[index] = self._new_host()
        host.ask({number: self._slots[number] for number in mine})

    def _wait(self) -> list[int]:
        """The hosts that have said something or are late, once there is one."""
        busy = {index: host for index, host in enumerate(self._hosts) if host is not None and host.queue}
        poll = select.poll()
        for host in busy.values():
            poll.register(host.channel.fileno(), select.POLLIN)
        patience_s = min(host.deadline for host in busy.values()) - time.monotonic()
        ready = {fd for fd, _ in poll.poll(max(0, math.ceil(patience_s * 1000)))}
        now = time.monotonic()
        return [index for index, host in busy.items() if host.channel.fileno() in ready or host.deadline <= now]

    def _hear(self, index: int, due: set[int]) -> None:
        """Takes one answer of a host, which is about the first slot of its queue."""
        host = self._hosts[index]
        assert host is not None
        number = host.queue[0]
        slot = self._slots[number]
        try:
            kind, content = host.channel.receive(host.deadline)
        except TimeoutError:
            self._fault("hang", slot, host.lateness())
            self._lose(index)
            return
        except (EOFError, OSError):
            self._fault("exit", slot, host.ending())
            self._lose(index)
            return
        if kind == "failed":
            raise EpisodeError(f"{self._asked(slot)}: {content}")
        if kind == "built":
            host.built.add(number)
        elif kind == "played":
            self._take(slot, content)
        else:
            self._fault("raise", slot, content)
            slot.played = 0
            host.built.discard(number)
            host.queue.popleft()
        if slot.is_level():
            host.queue.popleft()
            due.discard(number)
            slot.faults = 0
        host.expect()

    def _take(self, slot: Slot, result: StepResult) -> None:
        """Keeps the result of a game that has caught up; until then, compares it with what was shown before."""
        if slot.played < len(slot.results):
            changed = difference(slot.results[slot.played], result)
            if changed:
                raise EpisodeError(
                    f"{self._asked(slot)}: the environment is not deterministic and cannot be replayed: for equal "
                    f"seeds and actions, or for equal state keys and actions, it answered {changed}."
                )
        else:
            transition = slot.transition()
            if self._memo is not None and transition is not None and _is_memorable(transition, result):
                self._memo.put(transition, result)
            slot.results.append(result)
        slot.played += 1

    def _fault(self, fault: Fault, slot: Slot, what: str) -> None:
        """Counts one retry of the slot's step; raises EpisodeError where there were too many."""
        if slot.faults == self._settings.max_retries:
            tries = "once" if slot.faults == 0 else f"{slot.faults + 1} times, the last time"
            raise EpisodeError(f"{self._asked(slot)} failed {tries}: {what}")
        slot.faults += 1
        self._counts[f"env/retries_{fault}"] += 1

    def _asked(self, slot: Slot) -> str:
        """What the slot's game was asked, for messages."""
        where = f"environment `{self._settings.name}`, seed {slot.seed}"
        return f"{where}, step {slot.played}, action {slot.actions[slot.played - 1]!r}" if slot.played else where

    def _new_host(self) -> EnvironmentProcess:
        self._started += 1
        folder = self._folder.path / str(self._started)
        timeouts_s = (self._settings.step_timeout_s, self._load_timeout_s)
        return self._starter.submit(EnvironmentProcess, self._settings, self._prompts, folder, *timeouts_s).result()

    def _lose(self, index: int) -> None:
        """Gives a host up: its slots' games have to be played anew."""
        for slot in self._slots[index :: len(self._hosts)]:
            slot.played = 0
        host = self._hosts[index]
        if host is not None:
            host.discard()
            self._hosts[index] = None

    def _recycle_hosts(self) -> None:
        """Replaces the processes that have played long enough or have grown too much."""
        for index, host in enumerate(self._hosts):
            if host is None:
                continue
            if host.episodes >= self._recycle_after or host.growth_mb() > self._recycle_growth_mb:
                host.stop()
                self._hosts[index] = self._new_host()
            else:
                host.forget_prints()


def _no_counts() -> dict[str, float]:
    names = ("steps", "memo_hits", "retries_exit", "retries_hang", "retries_raise", "wait_seconds")
    return {f"env/{name}": 0.0 for name in names}


def _is_memorable(transition: Transition, result: StepResult) -> bool:
    """A limit on steps may have truncated the episode, which a state's key does not tell; a start without key says
    nothing of how the game plays."""
    return not result.truncated and (isinstance(transition, tuple) or result.state.key != "")
