"""A reward model that scores: loaded once, it takes trajectories or texts by the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rayrlhf.config import ModelConfig
from rayrlhf.policy import check_vocabulary
from rayrlhf.reward_models.folder import load_reward_network, load_reward_tokenizer
from rayrlhf.reward_models.network import RewardNetwork, score_sequences
from rayrlhf.reward_models.sidecar import read_sidecar
from rayrlhf.reward_models.text_format import TextFormat
from rayrlhf.types import FloatArray, IntArray, Trajectory


class RewardScorer:
    """Equal texts get equal scores, to the last bits of a batch's shape."""

    def __init__(
        self,
        network: RewardNetwork,
        tokenizer: PreTrainedTokenizerBase,
        text_format: TextFormat,
        tokens_per_batch: int = 8192,
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.text_format = text_format
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", tokens_per_batch: int = 8192) -> RewardScorer:
        """Raises ModelError for a folder that is no reward model."""
        sidecar = read_sidecar(folder)
        network = load_reward_network(folder).to(device)
        tokenizer = load_reward_tokenizer(folder)
        check_vocabulary(ModelConfig(path=str(folder)), network.classifier, tokenizer)
        return cls(network, tokenizer, sidecar.text_format, tokens_per_batch)

    def score_texts(self, texts: Sequence[tuple[str, str]]) -> FloatArray:
        """[N] scores of (query, response) pairs."""
        return self._score([self.text_format.encode(self.tokenizer, query, text)[0] for query, text in texts])

    def score(self, trajectories: Sequence[Trajectory], vocabulary: str = "") -> FloatArray:
        """[N] scores of whole episodes: the first observation is the query, all that follows is the response.

        vocabulary: fingerprint of the policy's tokenizer. Where it is the reward model's, a single-turn response is read
        in the tokens that were sampled, without its EOS; else its text is tokenised.
        """
        return self._score([self.encode(trajectory, vocabulary) for trajectory in trajectories])

    def encode(self, trajectory: Trajectory, vocabulary: str = "") -> IntArray:
        """Ids [L] of what is read of an episode."""
        query = trajectory.turns[0].observation
        response = trajectory.text.removeprefix(query)
        ids = trajectory.turns[0].response_ids if len(trajectory.turns) == 1 else None
        return self.text_format.encode(self.tokenizer, query, response, ids, vocabulary)[0]

    def _score(self, sequences: Sequence[IntArray]) -> FloatArray:
        return score_sequences(self.network, sequences, self.tokens_per_batch)
