"""Which real game plays for which episode: one for all of a seed where states have keys, else one for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rayrlhf.environments.memo import TransitionMemo
from rayrlhf.environments.real_game import RealGame, Request, Slot

_BUILD_COST = 10  # in steps: to open another of TextWorld's files takes about seven, to build a game for it more


class Assignment:
    """The slots of the episodes under way and the real games that play for them.

    A slot that shares a game leaves it for one of its own once it has paid as much for resets of the shared one: so
    sharing costs little where doors close behind the player and no way leads back.
    """

    def __init__(self, memo: TransitionMemo | None, processes: int, check_every: int) -> None:
        """memo: where the ways of games are looked up; None: each slot has a game of its own, and its own way."""
        self._memo = memo
        self._processes = processes
        self._check_every = check_every
        self._detours = 0  # times that a game would have gone by other steps than the slot's
        self._games: list[RealGame] = []  # by number; game n is in process n modulo the number of processes
        self.slots: list[Slot] = []

    def deal(self, seeds: Sequence[int]) -> None:
        """Makes the slots of new episodes."""
        self._games, self.slots = [], []
        shared: dict[int, RealGame] = {}
        for number, seed in enumerate(seeds):
            if self._memo is None or seed not in shared:
                shared[seed] = self._new_game()
            self.slots.append(Slot(number, seed, shared[seed]))

    def requests(self, process: int, waiting: Collection[int]) -> list[Request]:
        """What the games of an idle process are asked next: each for the one of its slots that it is nearest to."""
        nearest: dict[RealGame, Request] = {}
        for number in sorted(waiting):
            slot = self.slots[number]
            self._leave_useless_game(slot)
            if slot.game.number % self._processes == process:
                route = slot.own_route() if self._memo is None else slot.cheapest_route(self._memo)
                if slot.game not in nearest or route.cost < nearest[slot.game].route.cost:
                    nearest[slot.game] = Request(slot, route)
        return [self._settled(request) for request in nearest.values()]

    def lose(self, process: int) -> None:
        """The games of this process are gone."""
        for game in self._games[process :: self._processes]:
            game.lose_place()

    def distrust_keys(self) -> None:
        """From now on no slot depends on how others play: it may be that keys do not tell all."""
        self._memo = None

    def _leave_useless_game(self, slot: Slot) -> None:
        if slot.game.owner in (None, slot.number):
            return
        # Without a key there is no way; the start of a seed is asked for twice where it has none.
        if self._memo is None or not slot.key or slot.detour_cost >= _BUILD_COST:
            slot.game = self._new_game()

    def _settled(self, request: Request) -> Request:
        """The request that is made, once in a while one that checks keys; keeps account of what sharing costs."""
        slot, route = request.slot, request.route
        shared = slot.game.owner not in (None, slot.number)
        slot.game.owner = slot.number
        if not route.own:
            self._detours += 1
            if self._detours % self._check_every == 0:
                return Request(slot, slot.replay())
        if shared and route.seed is not None:
            slot.detour_cost += route.cost
        return request

    def _new_game(self) -> RealGame:
        game = RealGame(len(self._games))
        self._games.append(game)
        return game
