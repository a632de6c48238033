"""Episodes, the real games that play them, and the least that a real game has to play for an episode's next result.

Where states have keys a real game is brought to where an episode is by remembered steps, whoever made them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rayrlhf.environments.memo import Transition, TransitionMemo
from rayrlhf.errors import EpisodeError
from rayrlhf.types import StepResult

Asked = int | tuple[str | None, str]
"""What tells one step from others: its number in the episode; on a remembered way the action and the key it leads to."""

_RESET_COST = 3  # in steps: one of TextWorld's coin collector takes about two, and a way without one is preferred


@dataclass(slots=True, eq=False)
class RealGame:
    """One game in a process, and where it stands."""

    number: int  # no other game of the batch has it
    process: int  # where it is played, by number
    actions: list[str] | None = None  # all since its last reset; None: nothing but a reset can be asked of it
    key: str = ""  # of the state it stands at; "" where that says none
    owner: int | None = None  # the slot that it played for last; None: it has to be reset

    def note(self, action: str | None, result: StepResult) -> None:
        """Keeps where the game stands after a step, or after a reset (action None)."""
        if action is None:
            self.actions = []
        else:
            assert self.actions is not None
            self.actions.append(action)
        self.key = result.state.key
        if result.terminated or result.truncated:
            self.lose_place()

    def lose_place(self) -> None:
        """The game has to be reset."""
        self.actions, self.key, self.owner = None, "", None


@dataclass(frozen=True, slots=True)
class Route:
    """What is asked of a real game so that the last of its answers is a slot's next result."""

    seed: int | None  # that it is reset with first; None: it goes on from where it stands
    actions: tuple[str, ...]
    known: tuple[StepResult, ...]  # all its answers but the last
    own: bool  # by the slot's own actions from the start of its episode, so that nothing is left to keys

    @property
    def cost(self) -> int:
        """Of getting to where the new step is made, in steps."""
        return len(self.known) + (_RESET_COST - 1 if self.seed is not None and self.known else 0)


@dataclass(slots=True, eq=False)
class Slot:
    """One episode: what was asked and what was answered."""

    number: int
    seed: int
    game: RealGame  # that plays for it
    actions: list[str] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)  # of the reset, then of each action
    faults: dict[Asked, int] = field(default_factory=dict)  # of each step on the way to the next result, in a row
    detour_cost: int = 0  # what it has cost to reset a game that stood where another slot had it, in steps

    def ask(self, action: str) -> None:
        if self.results[-1].terminated or self.results[-1].truncated:
            raise EpisodeError(f"the episode of seed {self.seed} is over: action {action!r} comes after its end")
        self.actions.append(action)

    def transition(self) -> Transition | None:
        """What the next result is remembered under; None where the state before says no key."""
        if not self.results:
            return self.seed
        return (self.key, self.actions[-1]) if self.key else None

    @property
    def key(self) -> str:
        """Of the state shown last; "" where it says none, and before the first."""
        return self.results[-1].state.key if self.results else ""

    def replay(self) -> Route:
        """The whole episode from its start."""
        return Route(self.seed, tuple(self.actions), tuple(self.results), own=True)

    def own_route(self) -> Route:
        """Onward where the game has played a beginning of this episode and nothing else; otherwise from the start."""
        played = self.game.actions
        if played is None or len(played) >= len(self.results) or self.actions[: len(played)] != played:
            return self.replay()
        return Route(None, tuple(self.actions[len(played) :]), tuple(self.results[len(played) + 1 :]), own=True)

    def cheapest_route(self, memo: TransitionMemo) -> Route:
        """The own route, or a remembered way from where the game stands or from the start, where that costs less."""
        best = self.own_route()
        if not self.key:
            return best
        for start, seed, known in ((self.game.key, None, ()), (self.results[0].state.key, self.seed, self.results[:1])):
            most_steps = best.cost - 1 - (0 if seed is None else _RESET_COST)
            way = memo.way(start, self.key, most_steps) if start and most_steps >= 0 else None
            if way is not None:
                actions = (*(action for action, _ in way), self.actions[-1])
                best = Route(seed, actions, (*known, *(result for _, result in way)), own=False)
        return best


@dataclass(slots=True, eq=False)
class Request:
    """What the real game of a slot was asked, and how much of it was answered."""

    slot: Slot
    route: Route
    answered: int = 0

    @property
    def action(self) -> str | None:
        """What the next answer is to; None: to the reset."""
        place = self.answered - (self.route.seed is not None)
        return self.route.actions[place] if place >= 0 else None

    @property
    def known(self) -> StepResult | None:
        """What the next answer has to be; None: it is the slot's next result."""
        return self.route.known[self.answered] if self.answered < len(self.route.known) else None

    @property
    def asked(self) -> Asked:
        """Which step the next answer is to."""
        known = self.known
        return self._step() if known is None or self.route.own else (self.action, known.state.key)

    def is_done(self) -> bool:
        return self.answered > len(self.route.known)

    def what(self) -> str:
        """The seed, and the action that the next answer is to, for messages."""
        if self.action is None:
            return f"seed {self.slot.seed}"
        remembered = self.known is not None and not self.route.own
        place = f"on a remembered way to step {len(self.slot.actions)}" if remembered else f"step {self._step()}"
        return f"seed {self.slot.seed}, {place}, action {self.action!r}"

    def _step(self) -> int:
        """Number of the step that the next answer is to, 0 for the reset, on the slot's own way or at its end."""
        left = len(self.route.known) - self.answered  # before the slot's own next step
        return len(self.slot.actions) - left
