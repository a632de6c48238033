"""Tokens per second of `Learner.update` against a bare PyTorch loop on the same packed batch: one rank, one thread, fp32.

Both do forward, backward, clipping and an AdamW step; the learner also its checks, entropy and metrics. They take turns,
so that a busy machine slows both. Run: python tests/benchmarks/learner_throughput.py [--rounds 15] [--stages 0,1,2,3]
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

from rayrlhf.algorithm_config import AdamWConfig
from rayrlhf.config import LearnerConfig
from rayrlhf.learner import Learner
from rayrlhf.losses import PolicyGradientLoss
from rayrlhf.micro_batches import collate
from rayrlhf.types import TrainingSequence

SEQUENCES, TOKENS, PROMPT, VOCABULARY = 40, 68, 4, 1024
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
        write_model(Path(folder))
        for stage in arguments.stages:
            compare(stage, folder, sequences, arguments.rounds)


def compare(stage: int, folder: str, sequences: list[TrainingSequence], rounds: int) -> None:
    """Prints both speeds and their ratio, medians over the rounds."""
    config = LearnerConfig(ranks=1, zero_stage=stage, max_logprob_gap=1e6)  # type: ignore[arg-type]
    learner = Learner(folder, PolicyGradientLoss(None), AdamWConfig(), config, 1.0, 10_000, "cpu")
    loop = bare_loop(folder, sequences)
    for warm_up in range(2):
        learner.update(sequences, warm_up)
        loop()
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(timed(lambda number=number: learner.update(sequences, number)))  # type: ignore[misc]
        theirs.append(timed(loop))
    tokens = SEQUENCES * TOKENS
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    print(
        f"ZeRO {stage}: learner {tokens / statistics.median(ours):,.0f} tokens/s, bare loop "
        f"{tokens / statistics.median(theirs):,.0f} tokens/s, ratio {ratio:.2f} (due: {DUE})"
    )
    learner.close()


def bare_loop(folder: str, sequences: list[TrainingSequence]) -> Callable[[], None]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    batch = collate(sequences)

    def step() -> None:
        logits = model(batch.input_ids, use_cache=False).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        (-batch.weights * batch.advantages * logprobs).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


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


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>").save_pretrained(folder)


if __name__ == "__main__":
    main()
