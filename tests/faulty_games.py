"""A word game with a memory, and the ways it can go wrong; tests load it as `tests.faulty_games:Name`."""

from __future__ import annotations

import functools
import os
import random
import time
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import gymnasium

from rayrlhf.errors import EpisodeError
from rayrlhf.text_space import TextSpace

ROOMS = 7


class Corridor:
    """A row of rooms, the coin in the last: `east` and `west` move, anything else is written on the wall.

    Where the walk starts follows from the seed. The wall is part of the state, so that a replay has to be complete.
    """

    def __init__(self, keyed: bool = True) -> None:
        self.keyed = keyed
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.seed = seed or 0
        self.steps = 0
        self.room = self.seed % (ROOMS - 1)
        self.wall = ""
        self.over = False
        return self.text(), self.info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.over:
            raise EpisodeError("the game is over")
        self.steps += 1
        move = {"east": 1, "west": -1}.get(action)
        if move is None:
            self.wall += action
        else:
            self.room = max(0, self.room + move)
        self.over = self.room == ROOMS - 1
        return self.text(), float(self.over), self.over, False, self.info(valid=move is not None)

    def text(self) -> str:
        return f"Room {self.room}. On the wall: {self.wall!r}"

    def info(self, valid: bool = True) -> dict[str, Any]:
        won = self.room == ROOMS - 1
        key = f"{self.room} {crc32(self.wall.encode('utf-8', 'surrogatepass'))}" if self.keyed else ""
        return {
            "commands": ["east", "west"],
            "score": float(won),
            "max_score": 1,
            "won": won,
            "valid": valid,
            "key": key,
        }


class Faulty(Corridor):
    """Fails in about one of `one_in` resets and steps, each once: a file in `folder` says that it has happened.

    Which ones, and how, follows from the seed and the number of the step; `kinds` are exit, hang, raise.
    """

    def __init__(self, folder: str, kinds: list[str], one_in: int = 20, keyed: bool = False) -> None:
        super().__init__(keyed)
        self.folder = folder
        self.kinds = kinds
        self.one_in = one_in

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.fail(seed or 0, 0)
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.fail(self.seed, self.steps + 1)
        return super().step(action)

    def fail(self, seed: int, step: int) -> None:
        number = crc32(f"{seed}/{step}".encode())
        if number % self.one_in:
            return
        kind = self.kinds[number // self.one_in % len(self.kinds)]
        try:
            Path(self.folder, f"{seed}-{step}.{kind}").touch(exist_ok=False)
        except FileExistsError:
            return
        print("the game says goodbye", flush=True)
        fail_by(kind)


class Unlucky(Corridor):
    """Fails at the steps of these numbers, counted over all that any game of its class was asked, replays included."""

    def __init__(self, folder: str, kind: str, fails_at: list[int]) -> None:
        super().__init__(keyed=False)
        self.calls = Path(folder, "calls")
        self.kind = kind
        self.fails_at = fails_at

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if count_up(self.calls) in self.fails_at:
            fail_by(self.kind)
        return super().step(action)


class AtTimes:
    """A walk of so many rooms. Of all tries of its steps one in `one_in` fails, whatever step of whatever episode.

    Which ones follows from `stream`, seed, step and number of the try, so that a test of it does not depend on luck.
    """

    def __init__(self, folder: str, kind: str, length: int, one_in: int = 20, stream: str = "") -> None:
        self.folder = folder
        self.kind = kind
        self.length = length
        self.one_in = one_in
        self.stream = stream

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.seed, self.room = seed or 0, 0
        return f"{self.seed}: room 0", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.room += 1
        if self.kind != "never":
            place = f"{self.stream}-{self.seed}-{self.room}"
            number = count_up(Path(self.folder, place))
            if random.Random(f"{place} {number}").random() < 1 / self.one_in:
                Path(self.folder, f"{place}-{number}.{self.kind}").touch()
                fail_by(self.kind)
        return f"{self.seed}: room {self.room}", 1.0, self.room >= self.length, False, {}


def count_up(path: Path) -> int:
    """How often it was called with this path, by any process; no two calls get the same number."""
    with path.open("ab", buffering=0) as file:
        file.write(b".")
        return file.tell()  # behind what this process wrote


class Diary(Faulty):
    """Writes down all that happens to any game of its class: built, reset, and each action."""

    def __init__(self, folder: str, kinds: list[str], one_in: int = 1 << 32, keyed: bool = True) -> None:
        super().__init__(folder, kinds, one_in, keyed)
        self.write("built")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.write("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.write(action)
        return super().step(action)

    def write(self, entry: str) -> None:
        with Path(self.folder, "diary").open("a") as diary:
            diary.write(f"{entry}\n")


class AlwaysFails(Corridor):
    """Its second step fails at every try."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.steps == 1:
            fail_by(self.kind)
        return super().step(action)


def fail_by(kind: str) -> None:
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(3600)
    raise RuntimeError("the dragon ate the game")


class Forgetful(Corridor):
    """Not deterministic: says how often any of its process was reset."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        Forgetful.resets += 1
        return super().reset(seed=seed, options=options)

    def text(self) -> str:
        return f"{super().text()} ({Forgetful.resets})"


class WrongKey(Corridor):
    """Its key leaves out the wall, which the observation shows."""

    def info(self, valid: bool = True) -> dict[str, Any]:
        return {**super().info(valid), "key": f"{self.room}"}


class Truncates(Corridor):
    """Ends by itself after three steps, which its key does not tell."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.steps == 3, info


class Writes(Corridor):
    """Writes a file of a fixed name beside it, as TextWorld's `save` does, and shows the folder's."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        Path("saved.qzl").write_text(action)
        _, *rest, info = super().step(action)
        return os.getcwd(), *rest, info  # type: ignore[return-value]


class Says(Corridor):
    """Answers one step with what breaks the contract."""

    def __init__(self, what: Literal["bytes", "nan", "int flag", "four", "commands", "won", "twice", "key"]) -> None:
        super().__init__()
        self.what = what

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        answers: dict[str, Any] = {
            "bytes": (observation.encode(), reward, terminated, truncated, info),
            "nan": (observation, float("nan"), terminated, truncated, info),
            "int flag": (observation, reward, 0, truncated, info),
            "four": (observation, reward, terminated, info),
            "commands": (observation, reward, terminated, truncated, {**info, "commands": "east"}),
            "won": (observation, reward, terminated, truncated, {**info, "won": 1}),
            "twice": (observation, reward, terminated, truncated, {**info, "commands": ["east", "west", "east"]}),
            "key": (observation, reward, terminated, truncated, {**info, "key": 3}),
        }
        return answers[self.what]


class GymCorridor(gymnasium.Env[str, str]):
    """The corridor as Gymnasium has it."""

    def __init__(self, keyed: bool = True, space: gymnasium.Space[Any] | None = None) -> None:
        self.game = Corridor(keyed)
        self.observation_space = self.action_space = space or TextSpace()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return self.game.reset(seed=seed)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self.game.step(action)


class Sloppy(GymCorridor):
    """Has the alphabet that `gymnasium.spaces.Text` has by default, hangs on a backslash, names a command that it does
    not understand and a key that lacks the wall, goes on after its end, and cannot close."""

    def __init__(self) -> None:
        super().__init__(space=gymnasium.spaces.Text(100))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action.startswith("\\"):
            fail_by("hang")
        *answer, info = super().step(action)
        self.game.over = False
        return *answer, {**info, "key": f"{self.game.room}", "commands": ["east", "west", "sing"]}  # type: ignore[return-value]

    def close(self) -> None:
        raise OSError("the door is stuck")


class WhereBuilt(Corridor):
    """Says where it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.built_in = os.getcwd()

    def text(self) -> str:
        return self.built_in


class Taking(Corridor):
    """Takes what a run fills, and says it."""

    def __init__(self, prompts: tuple[str, ...] = ("none",), split: str = "", depth: int = 1) -> None:
        super().__init__()
        self.taken = f"{prompts} {split} {depth}"

    def text(self) -> str:
        return self.taken


class OldStep(GymCorridor):
    """As before Gymnasium 0.26: four values of a step."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class Unpacks(GymCorridor):
    """Takes a line apart that has too few words."""

    def step(self, action: str) -> Any:
        _, _, _, _, _ = ["only", "four", "words", "here"]


class OldReset(GymCorridor):
    """As before Gymnasium 0.26: the observation alone."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class OldSeed(GymCorridor):
    """As before Gymnasium 0.26: seeds are set by a method of their own."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()[0]


def make_corridor(keyed: bool = True) -> gymnasium.Env[str, str]:
    """A function that makes environments: the corridor with a limit."""
    return gymnasium.wrappers.TimeLimit(GymCorridor(keyed), 3)


unkeyed = functools.partial(make_corridor, keyed=False)
SINGLE = GymCorridor()


def crc32_of(text: str = "") -> int:
    """Makes no environment."""
    return crc32(text.encode())


gymnasium.register("OldStep-v0", entry_point="tests.faulty_games:OldStep", max_episode_steps=9)
gymnasium.register("Unpacks-v0", entry_point="tests.faulty_games:Unpacks", max_episode_steps=9)
gymnasium.register("Corridor-v0", entry_point="tests.faulty_games:GymCorridor", kwargs={"keyed": True})
gymnasium.register("ShortCorridor-v0", entry_point="tests.faulty_games:GymCorridor", max_episode_steps=3)
gymnasium.register(
    "NumberCorridor-v0", entry_point="tests.faulty_games:GymCorridor", kwargs={"space": gymnasium.spaces.Discrete(2)}
)
