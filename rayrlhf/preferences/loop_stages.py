"""The stages of a round of the loop. Each takes what the manifest says of earlier ones, and returns what it was made from
and what it made; each can be begun again after it was stopped anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.config_loading import load_config
from rayrlhf.errors import PreferenceError
from rayrlhf.files import replace_file
from rayrlhf.policy import load_tokenizer, vocabulary_fingerprint
from rayrlhf.preferences.auto_rating import auto_comparison
from rayrlhf.preferences.checks import load_checks
from rayrlhf.preferences.loop_config import SimulatedRaterConfig
from rayrlhf.preferences.loop_manifest import Round, Stage
from rayrlhf.preferences.pairing import propose
from rayrlhf.preferences.project import ProjectConfig
from rayrlhf.preferences.ranking import fit_project
from rayrlhf.preferences.records import Comparison, Item
from rayrlhf.preferences.simulated_rater import Noise, random_differences, rule_scores, set_noise, verdicts
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reading import read_record
from rayrlhf.reward_models.project_labels import TOKENIZER, project_labels
from rayrlhf.reward_models.scoring import RewardScorer
from rayrlhf.reward_models.tasks import sample_task
from rayrlhf.reward_models.training import make_reward_model
from rayrlhf.shares import share_of
from rayrlhf.text_statistics import distinct_n
from rayrlhf.types import Trajectory

RUN_STAGES: tuple[Stage, ...] = ("reward_model", "optimise")
"""Stages that run in Ray."""
REWARD_MODEL, POLICY, RANKING, SAMPLES = "reward_model", "policy", "ranking.json", "samples.json"  # in a round's folder
HELD_OUT_SEED = 1_000_003  # of the reference's texts that no stage but `evaluate` sees
_POLL_S = 2.0
_NOISE_PAIRS = 20_000
_JUDGED_PAIRS = 4_000

Told = tuple[Mapping[str, Any], Mapping[str, Any]]
"""What a stage was made from, and what it made."""


class Waiting(Exception):
    """People have to rate before the round can go on."""


class Stages:
    """The stages of one project's loop."""

    def __init__(
        self,
        project: Path,
        config: ProjectConfig,
        task: RunConfig,
        store: RatingStore,
        wait: bool,
        show: Callable[[str], None],
    ) -> None:
        self.project, self.config, self.loop = project, config, config.loop
        self.task, self.store, self.wait, self.show = task, store, wait, show

    def run(self, stage: Stage, round_: Round) -> Told:
        told: Told = getattr(self, stage)(round_)
        return told

    @property
    def cpus(self) -> int:
        """Logical CPUs that any of the stages asks for."""
        run = self._run_config(0, self.task.model)
        actors = run.rollout.workers * run.rollout.cpus_per_worker + run.learner.ranks * run.learner.cpus_per_rank
        return int(max(actors + run.reward_cpus, self.config.reward_model.workers)) + 1

    def sample(self, round_: Round) -> Told:
        """Completions of the task's prompts by the last round's policy, by the reference in the first one."""
        model = self._policy(round_.number - 1)
        trajectories = sample_task(
            self.task, model, self.loop.prompts_per_round, self._seed(round_), self.loop.completions
        )
        items = [self._item(trajectory, model, round_) for trajectory in trajectories]
        if self.store.meta().get(TOKENIZER) is None:
            self.store.set_meta(TOKENIZER, vocabulary_fingerprint(load_tokenizer(self.task.model)))
        new = self.store.add_items(items)
        round_.folder.mkdir(parents=True, exist_ok=True)
        replace_file(round_.folder / SAMPLES, [json.dumps([item.id for item in items]).encode()])
        made = {"samples": len(items), "new_items": new, "distinct_2": distinct_n([i.text for i in items], 2)}
        if self.loop.rater is not None:
            scores = rule_scores(items, self.loop.rater.rule, self.loop.rater.per_word)
            made["rule_mean"] = float(scores.mean())
        return {"model": model.path, "seed": self._seed(round_)}, made

    def check(self, round_: Round) -> Told:
        """Pairs that the automatic checks decide alone, drawn like those that people are asked (SPEC GWERN-7)."""
        checks = load_checks(self.config.checks)
        items = self._sampled(round_)
        faults = {item.id: checks.faults(item.text) for item in self.store.items().values()}
        broken = sum(bool(faults[item.id]) for item in items)
        automatic = []
        if broken:
            pairs = self._pairs(items, self.loop.comparisons_per_round, round_)
            decided = (auto_comparison(pair, faults[pair[0]], faults[pair[1]]) for pair in pairs)
            automatic = [comparison for comparison in decided if comparison is not None]
        new = self.store.add(*automatic)
        return {"samples": len(items)}, {"broken": broken, "automatic_comparisons": new}

    def rate(self, round_: Round) -> Told:
        """Waits until the round's comparisons were made, by people or by the simulated rater."""
        if self.loop.labels == "static" and round_.number > 0:
            return {}, {"comparisons": 0}
        items = self._sampled(round_)
        wanted = self.loop.comparisons_per_round * (self.loop.rounds if self.loop.labels == "static" else 1)
        began = len(self._rated()) - len(self._rated_of(items))
        figures: dict[str, float | None] = {}
        if self.loop.rater is not None:
            figures |= self._simulate(self.loop.rater, items, wanted, round_)
        else:
            self._wait_for_people(items, wanted, round_)
        rated = self._rated_of(items)
        ties = sum(not isinstance(comparison.best, int) for comparison in rated)
        return {"samples": len(items), "earlier": began}, {"comparisons": len(rated), "ties": ties, **figures}

    def rank(self, round_: Round) -> Told:
        """Latent scores of all items of all rounds."""
        items, comparisons = list(self.store.items().values()), self.store.comparisons()
        ranking = fit_project(items, comparisons, self.config.ranking)
        best = int(np.argmax(ranking.mean))
        told = {"id": list(ranking.ids), "mean": ranking.mean.tolist(), "deviation": ranking.deviation.tolist()}
        replace_file(round_.folder / RANKING, [json.dumps(told).encode()])
        made = {"items": len(items), "best": ranking.ids[best], "best_score": float(ranking.mean[best])}
        return {"comparisons": len(comparisons)}, made

    def reward_model(self, round_: Round) -> Told:
        """A reward model on all labels so far, from the language model (SPEC GWERN-13)."""
        output = round_.folder / REWARD_MODEL
        labels = project_labels(self.store, self.config.ranking, self.config.reward_model)
        request = {"round": round_.number, **self.config.reward_model.model_dump(mode="json")}
        told = make_reward_model(
            output, labels, self.task, self.config.reward_model, request, True, self.show, self.project / "reference"
        )
        made = {"folder": str(output), "validation_loss": told["validation_loss"], **told.get("evaluation", {})}
        return {"comparisons": len(labels.comparisons), "items": len(labels.items)}, made

    def optimise(self, round_: Round) -> Told:
        """A run of the task with the reward model as its reward."""
        from rayrlhf import trainer

        start = self.task.model if self.loop.start == "reference" else self._policy(round_.number - 1)
        config = self._run_config(round_.number, start)
        folder = round_.folder / POLICY
        summary = trainer.train(config, resume=folder.is_dir())
        made = {
            "run": str(folder), "reward": summary.reward_last_40, "base_reward": summary.base_reward,
            "kl": summary.kl_last, "diversity": summary.diversity_share,
        }  # fmt: skip
        return {"reward_model": str(round_.folder / REWARD_MODEL), "model": start.path}, made

    def evaluate(self, round_: Round) -> Told:
        """Fresh samples of the round's policy; with a simulated rater, how right the reward model is without noise."""
        model = self._policy(round_.number)
        played = sample_task(self.task, model, self.loop.evaluation_samples, HELD_OUT_SEED + round_.number)
        scorer = RewardScorer.load(round_.folder / REWARD_MODEL)
        vocabulary = self.store.meta().get(TOKENIZER, "")
        texts = [trajectory.text for trajectory in played]
        made: dict[str, Any] = {
            "reward_mean": float(scorer.score(played, vocabulary).mean()),
            "distinct_2": distinct_n(texts, 2),
            "texts": texts[:6],
        }
        if self.loop.rater is not None:
            made |= self._by_the_rule(self.loop.rater, scorer, vocabulary, played)
        return {"model": model.path, "samples": len(played)}, made

    def _by_the_rule(
        self, rater: SimulatedRaterConfig, scorer: RewardScorer, vocabulary: str, played: list[Trajectory]
    ) -> dict[str, float | None]:
        """The hidden rule's mean, the base's, and the reward model's accuracy on untied pairs of held-out texts."""
        base = sample_task(self.task, self.task.model, self.loop.evaluation_samples, HELD_OUT_SEED - 1)
        told: dict[str, float | None] = {}
        rule_means: dict[str, float] = {}
        for name, trajectories in (("base", base), ("policy", played)):
            items = [self._item(trajectory, self.task.model, None) for trajectory in trajectories]
            rule = rule_scores(items, rater.rule, rater.per_word)
            rule_means[name] = float(rule.mean())
            told[f"rule_{name}"] = rule_means[name]
            told[f"accuracy_{name}"], told[f"pairs_{name}"] = accuracy(scorer.score(trajectories, vocabulary), rule)
        return {**told, "rule_ratio": rule_means["policy"] / rule_means["base"] if rule_means["base"] else None}

    def _simulate(self, rater: SimulatedRaterConfig, items: list[Item], wanted: int, round_: Round) -> dict[str, float]:
        noise = self._noise(rater)
        scores = dict(zip([i.id for i in items], rule_scores(items, rater.rule, rater.per_word).tolist(), strict=True))
        missing = wanted - len(self._rated_of(items))
        if missing > 0:
            pairs = self._pairs(items, missing, round_, self._comparisons_of(items))
            across = {item for pair in pairs for item in pair} - scores.keys()
            earlier = [item for item in self.store.items().values() if item.id in across]
            if earlier:
                own = rule_scores(earlier, rater.rule, rater.per_word).tolist()
                scores |= dict(zip([item.id for item in earlier], own, strict=True))
            rng = np.random.default_rng([rater.seed, round_.number, missing])
            outcomes = verdicts(pairs, scores, noise, rng)
            self.store.add(
                *(
                    Comparison(pair, best, source="judge", rater="simulated", extra={"round": round_.number})
                    for pair, best in zip(pairs, outcomes, strict=True)
                )
            )
        decided = [c.items for c in self._rated_of(items) if scores.keys() >= set(c.items)]
        return {"agreement": noise.agreement(np.array([scores[first] - scores[second] for first, second in decided]))}

    def _noise(self, rater: SimulatedRaterConfig) -> Noise:
        """Set from the first round's texts, and kept."""
        first = self._sampled(Round(self.project, 0))
        scores = rule_scores(first, rater.rule, rater.per_word)
        return set_noise(random_differences(scores, _NOISE_PAIRS, rater.seed), rater.agreement, rater.ties)

    def _wait_for_people(self, items: list[Item], wanted: int, round_: Round) -> None:
        told = False
        while (missing := wanted - len(self._rated_of(items))) > 0:
            place = f"round {round_.number}: {missing} comparisons of its samples are missing"
            message = f"{place}: `rayrlhf rate {self.project}`"
            if not self.wait:
                raise Waiting(f"{message}, then `rayrlhf loop {self.project}` again")
            if not told:
                self.show(f"{message}; waiting")
                told = True
            time.sleep(_POLL_S)

    def _pairs(
        self, items: list[Item], count: int, round_: Round, asked: Sequence[Comparison] = ()
    ) -> list[tuple[str, str]]:
        """Pairs of the round's samples, and a share of `loop.bridges` between them and earlier ones."""
        seed, new = self._seed(round_), {item.id for item in items}
        earlier = [item for item in self.store.items().values() if (item.iteration or 0) < round_.number]
        rng = np.random.default_rng([seed, 0xB21D])
        bridges = round(share_of(self.loop.bridges, count)) if earlier else 0
        across = self._across(items, [item for item in earlier if item.id not in new], bridges, rng)
        within = propose(
            items, asked, self.store.skips(), self.config.pairing, self.config.ranking, count - len(across), seed
        )
        return [*across, *within]

    def _across(
        self, items: list[Item], earlier: list[Item], count: int, rng: np.random.Generator
    ) -> list[tuple[str, str]]:
        """At most `count` pairs of a new and an earlier sample of the same prompt, sides drawn at random, none twice."""
        by_prompt: dict[str, list[Item]] = {}
        for item in earlier:
            by_prompt.setdefault(item.prompt, []).append(item)
        possible = [item for item in items if item.prompt in by_prompt]
        pairs: dict[tuple[str, str], None] = {}
        for _ in range(4 * count if possible else 0):
            one = possible[rng.integers(len(possible))]
            other = by_prompt[one.prompt][rng.integers(len(by_prompt[one.prompt]))]
            if len(pairs) < count and one.text != other.text:
                pairs[(one.id, other.id) if rng.random() < 0.5 else (other.id, one.id)] = None
        return list(pairs)

    def _rated(self) -> list[Comparison]:
        """Comparisons that automatic checks did not make."""
        return [comparison for comparison in self.store.comparisons() if comparison.source != "auto"]

    def _comparisons_of(self, items: list[Item]) -> list[Comparison]:
        """Those in which a sample of the round takes part."""
        own = {item.id for item in items}
        return [comparison for comparison in self.store.comparisons() if not own.isdisjoint(comparison.items)]

    def _rated_of(self, items: list[Item]) -> list[Comparison]:
        return [comparison for comparison in self._comparisons_of(items) if comparison.source != "auto"]

    def _sampled(self, round_: Round) -> list[Item]:
        """The round's samples, each text once."""
        items = self.store.items()
        remake = "move its round's folder away to make it again"
        ids = read_record(round_.folder / SAMPLES, list[str], PreferenceError, remake)
        try:
            return [items[item] for item in dict.fromkeys(ids)]
        except KeyError as error:
            raise PreferenceError(
                f"{round_.folder / SAMPLES}: sample {error} is not in {self.store.path}: {remake}, or put a copy of the "
                "store in its place"
            ) from error

    def _item(self, trajectory: Trajectory, model: ModelConfig, round_: Round | None) -> Item:
        query = trajectory.turns[0].observation
        ids = trajectory.turns[0].response_ids if len(trajectory.turns) == 1 else None
        return Item(
            prompt=query,
            text=trajectory.text.removeprefix(query),
            text_ids=None if ids is None else tuple(int(i) for i in ids),
            generator="reference" if round_ is None or round_.number == 0 else f"round {round_.number - 1}",
            checkpoint=model.path,
            iteration=None if round_ is None else round_.number,
            seed=trajectory.sampling_seed,
        )

    def _policy(self, number: int) -> ModelConfig:
        """The model that a round trained; the reference before the first."""
        if number < 0:
            return self.task.model
        from rayrlhf.checkpoint import newest_model

        folder = Round(self.project, number).folder / POLICY
        return self.task.model.model_copy(update={"path": str(newest_model(folder / "checkpoints")), "scratch": None})

    def _run_config(self, number: int, start: ModelConfig) -> RunConfig:
        round_ = Round(self.project, number)
        own = [
            f"name={POLICY}",
            f"storage_path={json.dumps(str(round_.folder.resolve()))}",
            f"seed={self._seed(round_)}",
            f"model.path={json.dumps(start.path)}",
            f"algorithm.kl.coef={self.loop.kl_coef}",
            f"reward={{name: reward_model, path: {json.dumps(str((round_.folder / REWARD_MODEL).resolve()))}}}",
        ]
        return load_config(self.config.task.recipe, [*self.config.task.overrides, *own, *self.loop.optimise])

    def _seed(self, round_: Round) -> int:
        return self.loop.seed * 1000 + round_.number


def accuracy(scores: np.ndarray, rule: np.ndarray) -> tuple[float | None, int]:
    """Share of random untied pairs whose better text by the rule has the higher score (None where all are tied), and how
    many pairs there were."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(rule), (2, _JUDGED_PAIRS))
    untied = rule[first] != rule[second]
    better = (scores[first] > scores[second]) == (rule[first] > rule[second])
    return (float(better[untied].mean()) if untied.any() else None), int(untied.sum())
