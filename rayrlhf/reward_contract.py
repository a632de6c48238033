"""What every reward has to do, as checks of a reward by its name: `assert_reward("my_rewards:shouting")`.

`rayrlhf rewards test NAME` prints them; the tests of a reward of one's own call them.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np

from rayrlhf.config import RewardPart
from rayrlhf.errors import RewardError
from rayrlhf.plugin_contract import CheckResult, ContractError, checked
from rayrlhf.response_rules import Scorer
from rayrlhf.reward_mixture import build_reward, shortened
from rayrlhf.reward_parameters import named_part
from rayrlhf.reward_process import RewardProcess
from rayrlhf.types import EpisodeScore, Trajectory, Turn

EXAMPLE_TEXTS: tuple[tuple[str, str], ...] = (
    ("Once upon a time", " there was a tiny tiger. Tim took the tall tree to town!"),
    ("Once upon a time", " big brown bears baked bread, and Anna ate an apple."),
    ("", "The quick brown fox jumps over the lazy dog."),
)
"""(prompt, response) pairs of ordinary English."""

ODD_TEXTS: dict[str, tuple[str, str]] = {
    "empty response": ("Once upon a time", ""),
    "empty prompt and response": ("", ""),
    "whitespace alone": (" ", "\n\t \u00a0\u2003"),
    "punctuation alone": ("", "... !? -- ''"),
    "emoji": ("", "😀 👩‍👩‍👧‍👦 🇳🇱 é́́"),
    "right to left": ("", "שלום עולם \u202eمرحبا بالعالم"),
    "no spaces between words": ("", "从前有一只小猫坐在垫子上。"),
    "letters that change length with their case": ("", "İstanbul Straße ŉ ﬃ"),
    "lone surrogates": ("\ud800", "a \udfff b\udc80"),
    "NUL and control characters": ("", "\x00 a\x00b \x07\x1b[31m\x7f"),
}
"""What a language model may well write: name -> (prompt, response)."""

VERY_LONG_TEXT: tuple[str, str] = ("Once upon a time", " and a long tale took its time" * 10_000)


def example_trajectory(prompt: str, response: str, *further: tuple[str, str], index: int = 0) -> Trajectory:
    """An episode made of texts alone, one turn for each (observation, response), for tests and timings.

    Its token ids are made up, one for each word that whitespace separates and a 0 for the EOS; every log-probability
    is -1 nat for the policy and the reference alike; the environment's own rewards are 0.
    """
    turns = tuple(_example_turn(observation, action) for observation, action in ((prompt, response), *further))
    return Trajectory(
        group=0, index=index, environment_seed=0, sampling_seed=index, weights_version=0, turns=turns,
        terminated=True, truncated=False,
    )  # fmt: skip


def check_reward(name: str, timeout_s: float = 10.0, /, **parameters: Any) -> list[CheckResult]:
    """Runs every check on the reward `name` with these parameters.

    timeout_s: how long one batch may take, in seconds. Batches are scored in a child process that is killed then.

    Raises RewardError where the reward cannot be loaded or built; all that goes wrong later is in the results, which end
    with the first one where not even ordinary texts can be scored.
    """
    part = named_part(name, parameters)
    with RewardProcess([part], timeout_s) as process:
        contract = _Contract(part, process, timeout_s)
        scores = checked("ordinary texts score a finite number", contract.score_examples)
        if not scores.passed:
            return [scores]
        results = [
            scores,
            checked("deterministic within a process", contract.check_repeated),
            checked("deterministic between processes", contract.check_fresh_process),
            checked("a batch scores as its episodes one by one", contract.check_one_by_one),
            checked("several turns", contract.check_turns),
        ]
        for title, texts in ODD_TEXTS.items():
            results.append(checked(title, partial(contract.score, example_trajectory(*texts))))
        results.append(checked("very long text", partial(contract.score, example_trajectory(*VERY_LONG_TEXT))))
    results.append(checked("picklable", contract.check_picklable))
    return results


def remembering(process: Scorer) -> list[str]:
    """Keys of the parts that score equal texts otherwise the second time; none where a part fails over the texts."""
    batch = [example_trajectory(*texts, index=index) for index, texts in enumerate(EXAMPLE_TEXTS)]
    try:
        pairs = [*zip(process.score(batch), process.score(batch), strict=True)]
    except RewardError:  # scoring the run's own episodes will tell, where it concerns them
        return []
    return [key for key in process.keys if any(first.parts[key] != again.parts[key] for first, again in pairs)]


def assert_reward(name: str, timeout_s: float = 10.0, /, **parameters: Any) -> None:
    """`check_reward` for a test of one's own: raises AssertionError with a line for each check that failed."""
    failed = [result for result in check_reward(name, timeout_s, **parameters) if not result.passed]
    assert not failed, "\n".join(f"{name}: {result.name}: {result.detail}" for result in failed)


class _Contract:
    def __init__(self, part: RewardPart, process: RewardProcess, timeout_s: float) -> None:
        self._part = part
        self._process = process
        self._timeout_s = timeout_s
        self._batch = [
            example_trajectory(*texts, index=index)
            for index, texts in enumerate([*EXAMPLE_TEXTS, *list(ODD_TEXTS.values())[:3]])
        ]

    def score(self, *trajectories: Trajectory) -> list[EpisodeScore]:
        try:
            return self._process.score(trajectories)
        except RewardError as error:
            texts = [trajectory.text for trajectory in trajectories]
            given = shortened(texts[0]) if len(texts) == 1 else f"a batch of {len(texts)}: {shortened(texts)}"
            raise ContractError(f"{error} Input: {given}") from error

    def score_examples(self) -> None:
        for trajectory in self._batch[: len(EXAMPLE_TEXTS)]:
            self.score(trajectory)

    def check_repeated(self) -> None:
        self._compare(self.score(*self._batch), self.score(*self._batch), "the second time", exact=True)

    def check_fresh_process(self) -> None:
        """Another process has another seed for string hashes, so the order of a set shows."""
        with RewardProcess([self._part], self._timeout_s) as other:
            self._compare(self.score(*self._batch), other.score(self._batch), "in another process", exact=True)

    def check_one_by_one(self) -> None:
        alone = [self.score(trajectory)[0] for trajectory in self._batch]
        self._compare(self.score(*self._batch), alone, "alone", exact=False)
        reverse = self.score(*self._batch[::-1])[::-1]
        self._compare(self.score(*self._batch), reverse, "in reverse order", exact=False)

    def check_turns(self) -> None:
        self.score(example_trajectory("You see a door.", "open door", ("It is open.", "go east"), ("A cave.", "")))

    def check_picklable(self) -> None:
        reward = build_reward(self._part.name, self._part.parameters)
        try:
            pickle.loads(pickle.dumps(reward))
        except Exception as error:
            raise ContractError(f"{type(error).__name__}: {error}") from error

    def _compare(self, one: Sequence[EpisodeScore], other: Sequence[EpisodeScore], how: str, exact: bool) -> None:
        """Learned rewards differ in the last bits with a batch's shape; the same batch has to give the same bits."""
        tolerance = 0.0 if exact else 1e-4
        for trajectory, left, right in zip(self._batch, one, other, strict=True):
            if not np.allclose(left.total, right.total, rtol=tolerance, atol=tolerance):
                raise ContractError(
                    f"scores {left.total.tolist()} and {how} {right.total.tolist()}. "
                    f"Input: {shortened(trajectory.text)}"
                )


def _example_turn(observation: str, action: str) -> Turn:
    prompt_ids = _made_up_ids(observation)
    response_ids = np.append(_made_up_ids(action), 0)
    logprobs = np.full(len(response_ids), -1.0, dtype=np.float32)
    none = np.zeros(0, dtype=np.float32)
    return Turn(
        observation=observation, action=action, prompt_ids=prompt_ids, response_ids=response_ids, logprobs=logprobs,
        filtered_logprobs=logprobs, reference_logprobs=logprobs, prompt_logprobs=none, prompt_reference_logprobs=none,
        reward=0.0, finish="eos",
    )  # fmt: skip


def _made_up_ids(text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    words = (word.encode("utf-8", "surrogatepass") for word in text.split())
    return np.array([1 + crc32(word) % 1000 for word in words], dtype=np.int64)
