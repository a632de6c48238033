"""Tokens per second of `Learner.update` against a bare PyTorch loop on the same packed batch: one rank, one thread, fp32.

Both do forward, backward, clipping and an AdamW step; the learner also its checks, entropy and metrics. They take turns,
so that a busy machine slows both. Then PPO on the turns of text games: 640 sequences of 60 to 100 tokens, of which one to
four are chosen among allowed ones, with no value network, a head on the trunk, and one of its own; CPU seconds, which a
busy machine hardly changes. Run: python tests/benchmarks/learner_throughput.py [--rounds 15] [--stages 0,1,2,3]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rayrlhf.algorithm_config import AdamWConfig, HeadValueConfig, SeparateValueConfig, ValueConfig
from rayrlhf.config import LearnerConfig
from rayrlhf.learner import Learner
from rayrlhf.losses import ClippedLoss, Objective, PolicyGradientLoss, ValueObjective
from rayrlhf.micro_batches import collate
from rayrlhf.packed_sequences import Limits, pack_sequences
from rayrlhf.types import AllowedTokens, Minibatch, TrainingBatch, TrainingSequence, ValueQuery

SEQUENCES, TOKENS, PROMPT, VOCABULARY = 40, 68, 4, 1024
TURNS, TURN_VOCABULARY = 640, 700
DUE = 0.75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--stages", type=lambda text: [int(stage) for stage in text.split(",")], default=[2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    sequences = random_sequences()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), VOCABULARY, hidden_size=128, layers=5)
        for stage in arguments.stages:
            compare(stage, folder, sequences, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), TURN_VOCABULARY, hidden_size=64, layers=2)
        for stage in arguments.stages:
            for value in (None, HeadValueConfig(), SeparateValueConfig()):
                time_ppo(stage, folder, value, max(3, arguments.rounds // 3))


def compare(stage: int, folder: str, sequences: list[TrainingSequence], rounds: int) -> None:
    """Prints both speeds and their ratio, medians over the rounds."""
    config = LearnerConfig(ranks=1, zero_stage=stage, max_logprob_gap=1e6)  # type: ignore[arg-type]
    learner = Learner(folder, Objective(PolicyGradientLoss(None)), AdamWConfig(), config, 1.0, 10_000, "cpu")
    loop = bare_loop(folder, sequences)
    update = TrainingBatch.one_step(sequences)
    for warm_up in range(2):
        learner.update(update, warm_up)
        loop()
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(timed(lambda number=number: learner.update(update, number)))  # type: ignore[misc]
        theirs.append(timed(loop))
    tokens = SEQUENCES * TOKENS
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    print(
        f"ZeRO {stage}: learner {tokens / statistics.median(ours):,.0f} tokens/s, bare loop "
        f"{tokens / statistics.median(theirs):,.0f} tokens/s, ratio {ratio:.2f} (due: {DUE})"
    )
    learner.close()


def time_ppo(stage: int, folder: str, value: ValueConfig | None, rounds: int) -> None:
    """Prints the CPU time of one pass over the turns of text games, and of their values."""
    config = LearnerConfig(ranks=1, zero_stage=stage, max_logprob_gap=1e6)  # type: ignore[arg-type]
    objective = Objective(ClippedLoss(0.2), 0.01, ValueObjective(0.2, 0.5) if value else None)
    learner = Learner(folder, objective, AdamWConfig(), config, 1.0, 10_000, "cpu", value=value)
    sequences = random_turns()
    update, tokens = TrainingBatch.one_step(sequences), sum(len(sequence) for sequence in sequences)
    learner.update(update, 0)
    seconds = min(timed(lambda: learner.update(update, 0), time.process_time) for _ in range(rounds))
    network = value.kind if value else "none"
    text = f"ZeRO {stage}, PPO, value network {network}: {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s"
    if value:
        queries = [ValueQuery(sequence.input_ids, sequence.start) for sequence in sequences]
        asked = min(timed(lambda: learner.values(queries), time.process_time) for _ in range(rounds))
        text += f"; values {asked:.2f} s"
    print(text)
    learner.close()


def random_turns() -> list[TrainingSequence]:
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(TURNS):
        length, scored = int(rng.integers(60, 101)), int(rng.integers(1, 5))
        ids = rng.integers(0, TURN_VOCABULARY, length)
        counts = rng.integers(1, 8, scored)
        ranges = [
            np.append(rng.choice(np.delete(np.arange(TURN_VOCABULARY), token), count - 1, replace=False), token)
            for token, count in zip(ids[-scored:], counts)
        ]
        zeros = np.zeros(int(counts.sum()), np.float32)
        allowed = AllowedTokens(np.concatenate(ranges), np.concatenate([[0], np.cumsum(counts)]), zeros, zeros)
        weights = np.full(scored, 1 / TURNS, np.float32)
        noise = rng.normal(size=(3, scored)).astype(np.float32)
        behaviour = -np.log(counts).astype(np.float32)
        start = length - scored
        sequences.append(
            TrainingSequence(ids, start, noise[0], behaviour, weights, allowed, behaviour, noise[1], noise[2], weights)
        )
    return sequences


def bare_loop(folder: str, sequences: list[TrainingSequence]) -> Callable[[], None]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    everything = Minibatch(tuple(range(len(sequences))))
    packed = pack_sequences(sequences, Limits(VOCABULARY, None), with_values=False)
    batch = collate(packed, everything.indices, everything)

    def step() -> None:
        logits = model(batch.input_ids, use_cache=False).logits[:, batch.columns]
        logprobs = logits.log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        (-batch.weights * batch.advantages * logprobs).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    step()
    return clock() - began


def random_sequences() -> list[TrainingSequence]:
    rng = np.random.default_rng(0)
    scored = TOKENS - PROMPT
    return [
        TrainingSequence(
            input_ids=rng.integers(0, VOCABULARY, TOKENS),
            start=PROMPT,
            advantages=rng.normal(size=scored).astype(np.float32),
            behaviour_logprobs=np.full(scored, -np.log(VOCABULARY), np.float32),
            weights=np.full(scored, 1 / SEQUENCES, np.float32),
        )
        for _ in range(SEQUENCES)
    ]


def write_model(folder: Path, vocabulary: int, hidden_size: int, layers: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden_size, intermediate_size=4 * hidden_size, num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>").save_pretrained(folder)


if __name__ == "__main__":
    main()
