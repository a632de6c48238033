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
from rayrlhf.environments.assignment import Assignment
from rayrlhf.environments.memo import Transition, TransitionMemo
from rayrlhf.environments.private_folder import PrivateFolder
from rayrlhf.environments.process import EnvironmentProcess
from rayrlhf.environments.real_game import Request
from rayrlhf.errors import EpisodeError
from rayrlhf.types import StepResult

Fault = Literal["exit", "hang", "raise"]


class ProcessEnvironments:
    """Plays in `settings.processes` child processes, many games in each; see `interfaces.Environments`.

    A fault costs the step that it came in a try. Where a process is lost its games are played anew, in two processes
    then, so that games that are often lost do not go on taking each other with them.

    Where states have keys (`GameState.key`) a transition that was seen before is answered from memory, and the slots
    of one seed share a real game. When a step comes that is not known, it goes to where that slot is: onward, by steps
    that it remembers, or from the start. Without keys each slot has a real game of its own.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        prompts: Sequence[str] = (),
        *,
        memo_entries: int = 50_000,
        check_every: int = 32,
        load_timeout_s: float = 120.0,
        recycle_after: int = 2_000,
        recycle_growth_mb: int = 512,
    ) -> None:
        """Starts the processes; the games in them are built as `reset` needs them.

        memo_entries: how many transitions are remembered; 0: none.
        check_every: of the times that a real game would go to a slot's state by other steps than the slot's, this many
            make one at which it plays the slot's episode from the start instead, which finds keys that are wrong.
        load_timeout_s: how long importing an environment and building one game may take.
        recycle_after: episodes after which a process is replaced by a new one, at the next reset.
        recycle_growth_mb: megabytes by which a process may have grown since its first reset, likewise.
        """
        self._settings = settings
        self._prompts = tuple(prompts)
        self._first_seed = first_seeds(settings, prompts)
        self._memo = TransitionMemo(memo_entries) if memo_entries else None
        self._assignment = Assignment(self._memo, settings.processes, check_every)
        self._load_timeout_s = load_timeout_s
        self._recycle_after = recycle_after
        self._recycle_growth_mb = recycle_growth_mb
        self._counts = _no_counts()
        self._asked = 0  # resets and steps of the batch under way
        self._faults = 0  # in it
        self._folder = PrivateFolder("games")
        # Linux ends a child with the thread that started it: this one lives as long as this object.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="environment-hosts")
        self._started = 0  # hosts, since the beginning
        self._hosts: list[EnvironmentProcess | None] = [self._new_host() for _ in range(settings.processes)]

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        """See `interfaces.Environments`. Raises EpisodeError where a game cannot be built or started."""
        start = time.perf_counter()
        self._assignment.deal([self._first_seed(seed) for seed in seeds])
        self._recycle_hosts()
        self._asked, self._faults = len(seeds), 0
        self._answer(range(len(seeds)))
        self._counts["env/wait_seconds"] += time.perf_counter() - start
        return [slot.results[0] for slot in self._assignment.slots]

    def step(self, actions: Mapping[int, str]) -> dict[int, StepResult]:
        """See `interfaces.Environments`.

        Raises EpisodeError where a step failed `max_retries` + 1 times, or one that was answered before 2 `max_retries`
        + 1 times in a row; where there were more faults in the batch than `max_retries` a step; where an environment
        broke its contract, and where a game that was played again went another way. After an error only `reset` and
        `close` are of use.
        """
        start = time.perf_counter()
        self._asked += len(actions)
        for number, action in actions.items():
            self._assignment.slots[number].ask(action)
        played = self._answer(actions)
        self._counts["env/steps"] += len(actions)
        self._counts["env/memo_hits"] += len(actions) - played
        self._counts["env/wait_seconds"] += time.perf_counter() - start
        return {number: self._assignment.slots[number].results[-1] for number in actions}

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
        return self._assignment.slots[number].transition() if self._memo is not None else None

    def _without_hits(self, numbers: Collection[int]) -> list[int]:
        """Gives the slots their results where these are remembered; returns the others, in order."""
        others = []
        for number in sorted(numbers):
            transition = self._remembered_as(number)
            hit = self._memo.get(transition) if self._memo is not None and transition is not None else None
            if hit is None:
                others.append(number)
            else:
                self._assignment.slots[number].results.append(hit)
        return others

    def _play(self, numbers: Collection[int]) -> None:
        """Has real games play what these slots were asked, each in its host."""
        waiting = set(numbers)
        try:
            while waiting or any(host is not None and host.queue for host in self._hosts):
                for index in range(len(self._hosts)):
                    self._hand_out(index, waiting)
                for index in self._wait():
                    self._hear(index, waiting)
        except BaseException:  # Ctrl-C too: answers on their way must not be taken for those of later questions
            for index, host in enumerate(self._hosts):
                if host is not None and host.queue:
                    self._lose(index)
            raise

    def _hand_out(self, index: int, waiting: set[int]) -> None:
        """Asks an idle host for what its games can play next: of each, for the slot that it is nearest to."""
        host = self._hosts[index]
        if host is not None and host.queue:
            return
        requests = self._assignment.requests(index, waiting)
        if requests:
            if host is None:
                host = self._hosts[index] = self._new_host()
            host.ask(requests)
            waiting.difference_update(request.slot.number for request in requests)

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

    def _hear(self, index: int, waiting: set[int]) -> None:
        """Takes one answer of a host, which is about the first request of its queue."""
        host = self._hosts[index]
        assert host is not None
        request = host.queue[0]
        try:
            kind, content = host.channel.receive(host.deadline)
        except (EOFError, OSError) as end:
            late = isinstance(end, TimeoutError)
            self._fault("hang" if late else "exit", request, host.lateness() if late else host.ending())
            waiting.update(self._lose(index))
            self._split(index)
            return
        if kind == "failed":
            raise EpisodeError(f"{self._named(request)}: {content}")
        if kind == "built":
            host.built.add(request.slot.game.number)
        elif kind == "raised":
            self._fault("raise", request, content)
            request.slot.game.lose_place()
            host.built.discard(request.slot.game.number)
            waiting.add(host.queue.popleft().slot.number)
        elif content.truncated and not request.route.own:
            self._assignment.distrust_keys()  # they may leave out a count of steps: on the slot's own way it may go on
            waiting.update(self._lose(index))
            return
        else:
            self._take(request, content)
            if request.is_done():
                host.queue.popleft()
                request.slot.faults.clear()
        host.expect()

    def _take(self, request: Request, result: StepResult) -> None:
        """Keeps a slot's next result; of a game on its way there, compares it with what was answered before."""
        slot, known = request.slot, request.known
        slot.faults.pop(request.asked, None)
        if known is not None:
            changed = difference(known, result)
            if not changed and not request.route.own and known.state.key != result.state.key:
                changed = f"the key {known.state.key!r}, and then {result.state.key!r}"
            if changed:
                raise EpisodeError(
                    f"{self._named(request)}: the environment is not deterministic and cannot be replayed: for equal "
                    f"seeds and actions, or for equal state keys and actions, it answered {changed}."
                )
        else:
            transition = slot.transition()
            if self._memo is not None and transition is not None and _is_memorable(transition, result):
                self._memo.put(transition, result)
            slot.results.append(result)
        if result.truncated:
            self._assignment.distrust_keys()
        request.slot.game.note(request.action, result)
        request.answered += 1

    def _fault(self, fault: Fault, request: Request, what: str) -> None:
        """Counts one retry of the step that failed; raises EpisodeError where there were too many.

        A step that was answered before can be: it has twice the retries, on the way to a next result whose own stay
        untouched. A game that fails everywhere ends with the budget that all steps of the batch have together.
        """
        retries, faults = self._settings.max_retries, request.slot.faults
        failed = faults[request.asked] = faults.get(request.asked, 0) + 1
        if failed > (retries if request.known is None else 2 * retries):
            tries = "once" if failed == 1 else f"{failed} times, the last time"
            raise EpisodeError(f"{self._named(request)} failed {tries}: {what}")
        self._faults += 1
        if self._faults > retries * self._asked:
            raise EpisodeError(
                f"{self._named(request)} failed: {what} That is fault {self._faults} in {self._asked} resets and steps, "
                f"of which each may be tried again {retries} times (environment.max_retries): the environment fails too "
                "often to be played."
            )
        self._counts[f"env/retries_{fault}"] += 1

    def _named(self, request: Request) -> str:
        """What a game was asked, for messages."""
        return f"environment `{self._settings.name}`, {request.what()}"

    def _new_host(self) -> EnvironmentProcess:
        self._started += 1
        folder = self._folder.path / str(self._started)
        timeouts_s = (self._settings.step_timeout_s, self._load_timeout_s)
        return self._starter.submit(EnvironmentProcess, self._settings, self._prompts, folder, *timeouts_s).result()

    def _lose(self, index: int) -> list[int]:
        """Gives a host up: its games have to be played anew. Returns the slots that it has not answered for."""
        self._assignment.lose(index)
        host = self._hosts[index]
        assert host is not None
        host.discard()
        self._hosts[index] = None
        return [request.slot.number for request in host.queue]

    def _split(self, index: int) -> None:
        """Spreads the games of a lost host over two."""
        self._assignment.split(index)
        while len(self._hosts) < self._assignment.processes:
            self._hosts.append(None)

    def _recycle_hosts(self) -> None:
        """Replaces the processes that have played long enough or have grown too much, and ends those in excess."""
        while len(self._hosts) > self._assignment.processes:
            excess = self._hosts.pop()
            if excess is not None:
                excess.stop()
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
