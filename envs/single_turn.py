"""The single-turn environment: it shows a prompt, takes one answer, and is over. The reward comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from rayrlhf.environments.order import epoch_order
from rayrlhf.errors import EpisodeError
from rayrlhf.text_space import TextSpace


class SingleTurn(gymnasium.Env[str, str]):
    """One prompt, one answer (SPEC LMHP-30).

    The prompts come in an endless sequence of epochs, each a shuffle of its own, that follow from the run's seed:
    `reset(seed=n)` shows the prompt at position n of it, so n = 0, 1, 2, ... meets every prompt equally often, and equal
    seeds show equal prompts whatever was played before. `reset()` without a seed goes one position on.
    """

    metadata = {"render_modes": [], "in_process": True}  # noqa: RUF012 - Gymnasium's own attribute
    render_mode = None

    def __init__(self, prompts: Sequence[str] = ("",), run_seed: int = 0) -> None:
        """Takes the texts to show, in any order; one empty text is the episode without a prompt.

        run_seed: of the run; what each epoch's shuffle follows from.

        Raises:
            EpisodeError: there is none.
        """
        if isinstance(prompts, str) or not prompts:
            raise EpisodeError("rayrlhf/SingleTurn-v0 needs prompts, a list of at least one text")
        self.prompts = tuple(prompts)
        self._run_seed = run_seed
        self.observation_space = TextSpace()
        self.action_space = TextSpace()
        self._next = 0  # position that reset() without a seed shows
        self._playing = False
        self._epoch = -1
        self._order: np.ndarray[Any, np.dtype[np.int64]] = np.empty(0, dtype=np.int64)  # [prompts] of that epoch

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Returns the prompt and `{"prompt": its index in prompts}`."""
        super().reset(seed=seed)
        position = self._next if seed is None else seed
        self._next = position + 1
        self._playing = True
        index = self._prompt_at(position)
        return self.prompts[index], {"prompt": index}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the answer: nothing follows, and the environment itself has no opinion of it.

        Raises:
            EpisodeError: no prompt was shown, or it has its answer already.
        """
        if not self._playing:
            raise EpisodeError("rayrlhf/SingleTurn-v0: step() without a prompt to answer; call reset() first")
        self._playing = False
        return "", 0.0, True, False, {}

    def _prompt_at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.prompts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._run_seed, epoch, len(self.prompts))
        return int(self._order[place])
