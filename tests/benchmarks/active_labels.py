"""How many labels a reward model needs when pairs are chosen by uncertainty, against random ones (SPEC GWERN-25).

python tests/benchmarks/active_labels.py [--method uncertain] [--items 800] [--seed 0]

A simulated rater (words with an a, agreement 80 %, 10 % ties) judges pairs of the shipped model's samples. For each
number of labels the ranking is fitted, a reward model learns its scores, and is judged without noise on unseen texts.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import torch

from rayrlhf.config_loading import load_config
from rayrlhf.policy import load_tokenizer, resolve_model, vocabulary_fingerprint
from rayrlhf.preferences.loop_stages import accuracy
from rayrlhf.preferences.pairing import propose
from rayrlhf.preferences.pairing_config import PairingConfig
from rayrlhf.preferences.ranking import fit_project
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.records import Comparison, Item
from rayrlhf.preferences.simulated_rater import Noise, random_differences, rule_scores, set_noise, verdicts
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.examples import epoch_order
from rayrlhf.reward_models.labels import labelled_data
from rayrlhf.reward_models.module import collate, example_losses
from rayrlhf.reward_models.network import new_reward_network, score_sequences
from rayrlhf.reward_models.normalisation import label_scale, normalise
from rayrlhf.reward_models.tasks import sample_task
from rayrlhf.reward_models.text_format import TextFormat

TASK = load_config("alliteration")
BUDGETS = (400, 800, 1600, 3200)
CONFIG = RewardModelConfig(objective="latent", epochs=8, batch_size=16, lr=1e-3, held_out_share=0.0)
RANKING = RankingConfig()
BATCH = 200  # pairs between two fits


def texts(count: int, seed: int) -> list[Item]:
    played = sample_task(TASK, TASK.model, count, seed)
    items = [
        Item(t.turns[0].observation, t.turns[0].action, text_ids=tuple(t.turns[0].response_ids.tolist()))
        for t in played
    ]
    return list({item.id: item for item in items}.values())


def judged(items: list[Item], method: str, noise: Noise, scores: dict[str, float], seed: int) -> list[Comparison]:
    """The first BUDGETS[-1] comparisons by a method, in order."""
    made: list[Comparison] = []
    rng = np.random.default_rng(seed)
    for batch in itertools.count():
        count = min(BATCH, BUDGETS[-1] - len(made))
        if not count:
            return made
        pairs = propose(
            items, made, (), PairingConfig.model_validate({"method": method}), RANKING, count, seed=1000 * seed + batch
        )
        made += [Comparison(p, best) for p, best in zip(pairs, verdicts(pairs, scores, noise, rng), strict=True)]
    raise AssertionError


def trained_accuracy(items: list[Item], comparisons: list[Comparison], unseen: list[Item], rule: np.ndarray) -> float:
    """Of a reward model on the ranking's scores, trained in this process."""
    tokenizer = load_tokenizer(TASK.model)
    text_format, vocabulary = TextFormat.of(tokenizer, 512), vocabulary_fingerprint(tokenizer)
    by_id = {item.id: item for item in items}
    ranking = fit_project(items, comparisons, RANKING)
    data = labelled_data(by_id, comparisons, (), ranking, CONFIG, text_format, tokenizer, vocabulary).training
    network = new_reward_network(resolve_model(TASK.model.path), tokenizer, 0).eval()
    normalise(network, data.sequences[:200], label_scale(data, CONFIG))
    optimizer = torch.optim.AdamW(network.parameters(), CONFIG.lr, (0.9, 0.999), CONFIG.adam_eps, weight_decay=0.0)
    order = epoch_order(len(data), CONFIG.batch_size, CONFIG.epochs, 0)
    for step, indices in enumerate(order):
        own = [int(i) for i in indices if i >= 0]
        batch = collate(data, own, [data.examples[i].weight for i in own])
        losses = example_losses(network(batch.input_ids, batch.lengths), batch, CONFIG, network.log_tie)
        optimizer.param_groups[0]["lr"] = CONFIG.lr * (1 - step / len(order))
        optimizer.zero_grad()
        ((losses * batch.weights).sum() / batch.weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CONFIG.max_grad_norm)
        optimizer.step()
    held = [text_format.encode(tokenizer, i.prompt, i.text, i.text_ids, vocabulary)[0] for i in unseen]
    return accuracy(score_sequences(network, held), rule)[0]


def labels_for(level: float, accuracies: list[float]) -> float:
    """Labels at which interpolated accuracies reach a level, on a log scale; inf where they do not."""
    best = np.maximum.accumulate(accuracies)
    if best[-1] < level:
        return float("inf")
    return float(np.exp(np.interp(level, best, np.log(BUDGETS))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="uncertain", choices=["uncertain", "misjudged", "racing", "halves"])
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    items, unseen = texts(options.items, options.seed), texts(400, options.seed + 500)
    rule = rule_scores(items, "starts_with_a", per_word=True)
    noise = set_noise(random_differences(rule, 20_000, 0), 0.8, 0.1)
    scores = dict(zip([item.id for item in items], rule.tolist(), strict=True))
    unseen_rule = rule_scores(unseen, "starts_with_a", per_word=True)
    curves: dict[str, list[float]] = {}
    for method in ("random", options.method):
        began = time.monotonic()
        comparisons = judged(items, method, noise, scores, options.seed + 1)
        curves[method] = [trained_accuracy(items, comparisons[:n], unseen, unseen_rule) for n in BUDGETS]
        shown = "  ".join(f"{n}: {a:.3f}" for n, a in zip(BUDGETS, curves[method], strict=True))
        print(f"{method:>10}  {shown}  ({time.monotonic() - began:.0f} s)", flush=True)
    for budget, level in zip(BUDGETS, curves["random"], strict=True):
        ratio = labels_for(level, curves[options.method]) / budget
        print(f"accuracy {level:.3f} of {budget} random labels: {ratio:.2f} of them by {options.method}")


if __name__ == "__main__":
    main()
