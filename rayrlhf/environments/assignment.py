"""Which real game plays for which episode, in which process: one for all of a seed where states have keys, else one
for each episode."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rayrlhf.environments.memo import TransitionMemo
from rayrlhf.environments.real_game import RealGame, Request, Slot

_BUILD_COST = 10  # in steps: to open another of TextWorld's files takes about seven, to build a game for it more
_MOST_PROCESSES = 8  # that lost games are spread over, where the run asks for fewer


class Assignment:
    """The slots of the episodes under way and the real games that play for them.

    A slot that shares a game leaves it for one of its own once it has paid as much for resets of the shared one: so
    sharing costs little where doors close behind the player and no way leads back.
    """

    def __init__(self, memo: TransitionMemo | None, processes: int, check_every: int) -> None:
        """memo: where the ways of games are looked up; None: each slot has a game of its own, and its own way."""
        self._memo = memo
        self._least_processes = processes
        self.processes = processes  # that the games are in
        self._losses = 0  # of processes, since the episodes were dealt
        self._check_every = check_every
        self._detours = 0  # times that a game would have gone by other steps than the slot's
        self._games: list[RealGame] = []  # by number
        self.slots: list[Slot] = []

    def deal(self, seeds: Sequence[int]) -> None:
        """Makes the slots of new episodes. There are as many processes for them as were lost since the last were dealt,
        of those that there are, but no fewer than were asked for."""
        self.processes = max(self._least_processes, min(self.processes, self._losses))
        self._losses = 0
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
            if slot.game.process == process:
                route = slot.own_route() if self._memo is None else slot.cheapest_route(self._memo)
                if slot.game not in nearest or route.cost < nearest[slot.game].route.cost:
                    nearest[slot.game] = Request(slot, route)
        return [self._settled(request) for request in nearest.values()]

    def lose(self, process: int) -> None:
        """The games of this process are gone."""
        for game in self._games_of(process):
            game.lose_place()

    def split(self, process: int) -> None:
        """Moves half of the games of a lost process, if there are several, to one more process.

        All games of a process are lost with it and have to be played anew, in which they may be lost again: where that
        happens often, each is soon lost by faults of its own alone.
        """
        self._losses += 1
        games = self._games_of(process)
        if len(games) > 1 and self.processes < max(_MOST_PROCESSES, self._least_processes):
            for game in games[1::2]:
                game.process = self.processes
            self.processes += 1

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
        number = len(self._games)
        game = RealGame(number, number % self.processes)
        self._games.append(game)
        return game

    def _games_of(self, process: int) -> list[RealGame]:
        return [game for game in self._games if game.process == process]
