"""Episodes of one seed share a real game, which goes from state to state by remembered steps; no result changes.

Issue "Text games", part 2: "Transitions already seen are memoised in a bounded cache where the game is deterministic".
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from rayrlhf.environments import EnvironmentSettings
from rayrlhf.environments.memo import TransitionMemo
from rayrlhf.environments.pool import ProcessEnvironments
from rayrlhf.errors import EpisodeError
from rayrlhf.types import GameState, StepResult

FORTH, BACK = ["east", "east", "east"], ["west", "west", "west"]


def settings(name: str, /, processes: int = 1, **parameters: Any) -> EnvironmentSettings:
    return EnvironmentSettings(f"tests.faulty_games:{name}", parameters, "train", 1.0, processes=processes)


def diary_of(folder: Path) -> list[str]:
    return (folder / "diary").read_text().splitlines()


def take(environments: ProcessEnvironments, slot: int, *actions: str) -> str:
    """Plays one slot; returns what was shown last."""
    return [environments.step({slot: action})[slot].observation for action in actions][-1]


def play(environments: ProcessEnvironments, seeds: Sequence[int], stream: int, words: str) -> list[list[StepResult]]:
    """All results of one episode for each seed, of at most 15 actions; those follow from stream, slot and turn."""
    episodes = [[result] for result in environments.reset(seeds)]
    for turn in range(15):
        actions = {
            slot: random.Random(f"{stream} {slot} {turn}").choice(words.split())
            for slot, episode in enumerate(episodes)
            if not episode[-1].terminated
        }
        for slot, result in environments.step(actions).items():
            episodes[slot].append(result)
    return episodes


@pytest.mark.parametrize("keyed", [True, False])
def test_slots_of_one_seed_share_a_game_where_states_have_keys(tmp_path: Path, keyed: bool) -> None:
    """Eight episodes of two seeds: two games with keys; without them eight, each playing the steps of one episode."""
    with ProcessEnvironments(settings("Diary", folder=str(tmp_path), kinds=["raise"], keyed=keyed)) as environments:
        episodes = play(environments, [0, 0, 0, 0, 1, 1, 1, 1], 0, "east west")
    diary, steps = diary_of(tmp_path), sum(len(episode) - 1 for episode in episodes)
    assert diary.count("built") == (2 if keyed else 8)
    if keyed:
        assert len(diary) < steps / 3  # 21 and 97: most steps were remembered, and few have to be played again
    else:
        assert (diary.count("reset"), len(diary)) == (8, 16 + steps)


def test_a_game_goes_back_by_steps_that_are_remembered(tmp_path: Path) -> None:
    """The second player's three steps were seen: the game, back at the start, takes them, not a reset, to the fourth.
    From the written wall no way leads back: a reset, and of two ways from there the shorter one."""
    with ProcessEnvironments(settings("Diary", folder=str(tmp_path), kinds=["raise"])) as environments:
        environments.reset([0, 0])
        take(environments, 0, *FORTH, *BACK)
        before = diary_of(tmp_path)
        assert before == ["built", "reset", *FORTH, *BACK]
        assert take(environments, 1, *FORTH, "ball") == "Room 3. On the wall: 'ball'"
        assert diary_of(tmp_path)[len(before) :] == [*FORTH, "ball"]
        before = diary_of(tmp_path)
        assert take(environments, 0, "kite") == "Room 0. On the wall: 'kite'"
        assert diary_of(tmp_path)[len(before) :] == ["reset", "kite"]
        before = diary_of(tmp_path)
        assert take(environments, 1, "west") == "Room 2. On the wall: 'ball'"
        assert diary_of(tmp_path)[len(before) :] == ["reset", *FORTH, "ball", "west"]


def test_a_slot_that_pays_for_resets_gets_a_game_of_its_own(tmp_path: Path) -> None:
    """All write on their walls, which none can undo. Resets and replays cost the players 4 + 6 and 3 + 5 + 7 steps; the
    first has paid the price of a game (10) before its sixth action, and from then on each goes onward."""
    with ProcessEnvironments(settings("Diary", folder=str(tmp_path), kinds=["raise"])) as environments:
        environments.reset([0, 0])
        for turn in range(8):
            environments.step({0: f"a{turn}", 1: f"b{turn}"})
    diary = diary_of(tmp_path)
    shared = "built reset a0 reset b0 b1 reset a0 a1 a2 reset b0 b1 b2 b3 reset a0 a1 a2 a3 a4 reset b0 b1 b2 b3 b4"
    apart = "built reset a0 a1 a2 a3 a4 a5 b5 a6 b6 a7 b7"
    assert diary == f"{shared} {apart}".split()


@pytest.mark.parametrize("kind", ["raise", "exit", "hang"])
def test_a_fault_on_the_way_costs_one_retry_and_a_replay(tmp_path: Path, kind: str) -> None:
    """The game's eighth step fails once: the second on its way back to where the second player is."""
    eighth = crc32(b"0/8")  # `Faulty` fails where this divides the number of a step
    parameters = {"folder": str(tmp_path), "kinds": [kind], "one_in": eighth}
    with ProcessEnvironments(settings("Diary", **parameters)) as environments:
        environments.reset([0, 0])
        take(environments, 0, *FORTH, *BACK)
        before = diary_of(tmp_path)
        assert take(environments, 1, *FORTH, "ball") == "Room 3. On the wall: 'ball'"
        assert diary_of(tmp_path)[len(before) :] == ["east", "east", "built", "reset", *FORTH, "ball"]
        counted = environments.counts()
    assert {name: n for name, n in counted.items() if "retries" in name and n} == {f"env/retries_{kind}": 1}


def test_random_play_is_the_same_with_memory_and_without_with_faults_and_without(tmp_path: Path) -> None:
    """100 episodes of two-way and one-way actions; in one of ten places a game that shares fails, once."""
    batches = [[(batch + slot // 4) % 5 for slot in range(20)] for batch in range(5)]

    def play_all(name: str, memo_entries: int, **parameters: Any) -> tuple[list[Any], Mapping[str, float]]:
        with ProcessEnvironments(settings(name, processes=2, **parameters), memo_entries=memo_entries) as there:
            words = "east west west ball east west kite"
            return [play(there, seeds, batch, words) for batch, seeds in enumerate(batches)], there.counts()

    expected, _ = play_all("Corridor", 0)
    assert play_all("Corridor", 50_000)[0] == expected
    assert play_all("Corridor", 40)[0] == expected
    faulty = {"folder": str(tmp_path), "kinds": ["raise", "raise", "exit"], "one_in": 10, "keyed": True}
    got, counted = play_all("Faulty", 50_000, **faulty)
    assert got == expected
    for kind in ("raise", "exit"):
        assert counted[f"env/retries_{kind}"] == len(list(tmp_path.glob(f"*.{kind}"))) >= 2


def test_a_limit_on_steps_that_keys_leave_out_counts_each_players_own_steps() -> None:
    """The shared game's third step is the second player's first: it does not end that one's episode."""
    with ProcessEnvironments(settings("Truncates")) as environments:
        environments.reset([2, 2])
        take(environments, 0, "east", "west")
        assert not environments.step({1: "ball"})[1].truncated
        assert environments.step({0: "kite"})[0].truncated
        assert [environments.step({1: "ball"})[1].truncated for _ in range(2)] == [False, True]
        assert not any(n for name, n in environments.counts().items() if "retries" in name)


def test_a_way_that_leads_elsewhere_than_remembered_is_named() -> None:
    """The key leaves out the wall; the other player's writing shows on the way to where a step was remembered."""
    with ProcessEnvironments(settings("WrongKey")) as environments:
        environments.reset([0, 0])
        take(environments, 0, "east", "west", "ball")
        with pytest.raises(EpisodeError, match=r"on a remembered way to step 2, action 'east': .* 'ball'"):
            take(environments, 1, "east", "kite")


def leads_to(key: str, terminated: bool = False) -> StepResult:
    return StepResult(f"Here is {key}.", 0.0, terminated, False, GameState(key=key))


def test_ways_are_the_shortest_there_are() -> None:
    """Against the lengths that follow from relaxing all steps until none changes, in 20 random games of 12 states."""
    for game in range(20):
        stream = random.Random(game)
        steps = {(str(stream.randrange(12)), f"{n}"): str(stream.randrange(12)) for n in range(18)}
        memo = TransitionMemo(100)
        for (key, action), reached in steps.items():
            memo.put((key, action), leads_to(reached))
        for start in map(str, range(12)):
            length = {start: 0}
            for _ in range(12):
                for (key, _), reached in steps.items():
                    if key in length:
                        length[reached] = min(length.get(reached, 99), length[key] + 1)
            for end in map(str, range(12)):
                way = memo.way(start, end, 12)
                assert (None if way is None else len(way)) == length.get(end)
                if way:
                    keys = [start, *(result.state.key for _, result in way)]
                    assert keys[-1] == end
                    assert all(steps[key, action] == to for (key, to), (action, _) in zip(pairwise(keys), way))
                    assert memo.way(start, end, len(way) - 1) is None


def test_no_way_leads_through_an_end_or_what_was_forgotten() -> None:
    memo = TransitionMemo(3)
    memo.put(("a", "jump"), leads_to("d", terminated=True))
    memo.put(("a", "east"), leads_to("b"))
    memo.put(("b", "east"), leads_to("c"))
    assert memo.way("a", "d", 9) is None
    assert memo.way("a", "c", 9) == (("east", leads_to("b")), ("east", leads_to("c")))
    assert memo.way("a", "a", 0) == ()
    memo.put(("d", "east"), leads_to("e"))  # instead of the jump
    memo.put(("e", "east"), leads_to("f"))  # instead of the step from a to b
    assert memo.way("a", "c", 9) is None
    assert memo.way("b", "c", 9) == (("east", leads_to("c")),)


def test_a_search_for_a_way_is_bounded() -> None:
    memo = TransitionMemo(1_000)
    for place in range(500):
        memo.put((str(place), "east"), leads_to(str(place + 1)))
    way = memo.way("0", "200", 500)
    assert way is not None
    assert len(way) == 200
    assert memo.way("0", "201", 500) is None
