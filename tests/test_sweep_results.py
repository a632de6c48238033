"""What is read from a sweep's folder, its frontier and its recommendation (issue 4 part 4; SPEC ALLIT-8 to -11)."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.errors import RunFolderError
from rayrlhf.metrics import read_samples
from rayrlhf.text_statistics import distinct_n
from rayrlhf.tune.equal_reward import crossing, equal_reward
from rayrlhf.tune.frontier import frontier, recommend
from rayrlhf.tune.objectives import RewardUnderKL, RewardWithDiversity
from rayrlhf.tune.results import Point, checkpoint_point, mean_of, objective_value, points, read_sweep
from rayrlhf.tune.settings import parameters_of, settings_of
from rayrlhf.tune.standings import standings
from tests.sweep_folders import BASE_REWARD, State, TrialPlan, alarm, climb, write_sweep

COEF = "algorithm.kl.coef"
ESTIMATOR = "algorithm.kl_loss.estimator"


def point(reward: float, kl: float | None, diversity: float | None = 1.0, iteration: int = 1) -> Point:
    return Point(iteration, reward, 0.1, kl, None, diversity)


def test_points_are_what_brute_force_finds_in_the_samples(tmp_path: Path) -> None:
    """Issue 4 part 4: reward, KL, KL a token and diversity of every checkpoint, over windows that cross iterations."""
    folder = write_sweep(
        tmp_path, [TrialPlan({COEF: 0.1}, 0, climb(9, 12, words=20), iterations=7)], every=3, episodes=16
    )
    run = folder / "trials" / "trial-000"
    found = points(run)
    assert [each.iteration for each in found] == [3, 6]
    records = read_samples(run)
    base = [record.text for record in records if record.iteration == -1]
    for each in found:
        seen = [record for record in records if 0 <= record.iteration < each.iteration]
        last = seen[-40:]
        assert each.reward == pytest.approx(np.mean([record.score for record in last]))
        assert each.reward_se == pytest.approx(np.std([record.score for record in last], ddof=1) / np.sqrt(40))
        assert each.kl == pytest.approx(np.mean([record.kl for record in last]))
        assert each.kl_per_token == pytest.approx(each.kl / 32)
        texts = [record.text for record in seen[-50:]]
        chunks = [base[start : start + len(texts)] for start in range(0, 100 - len(texts) + 1, len(texts))]
        share = distinct_n(texts, 2) / np.mean([distinct_n(chunk, 2) for chunk in chunks])
        assert each.diversity == pytest.approx(share)
        assert checkpoint_point(run, each.iteration) == each
    assert found[0].diversity > 0.8 > 0.6 > found[1].diversity


def test_pruned_checkpoints_stay_points_and_unsaved_iterations_are_none(tmp_path: Path) -> None:
    """What `checkpoint.keep` removed was a checkpoint; iterations after the latest one were not saved."""
    folder = write_sweep(tmp_path, [TrialPlan({COEF: 0.1}, 0, climb(9, 12), iterations=5)], every=2)
    run = folder / "trials" / "trial-000"
    (run / "checkpoints" / "000002").rmdir()
    (run / "checkpoints" / "000003").mkdir()  # as a signal leaves one
    assert [each.iteration for each in points(run)] == [2, 3, 4]
    with pytest.raises(RunFolderError, match="no episodes of iteration 8"):
        checkpoint_point(run, 9)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (RewardUnderKL(max_kl=20), 6.0),
        (RewardUnderKL(max_kl=5), 5.0),
        (RewardUnderKL(max_kl=500), 60.0),
        (RewardUnderKL(max_kl=1), None),
        (RewardWithDiversity(min_diversity=0.6), 7.0),
        (RewardWithDiversity(min_diversity=2), None),
    ],
)
def test_objective_is_the_best_so_far_of_what_is_admitted(
    objective: RewardUnderKL | RewardWithDiversity, expected: float | None
) -> None:
    """Issue 4 part 3: a later checkpoint beyond the bound neither counts nor takes away what was reached before."""
    run = [point(4, 2), point(6, 20), point(5, 3), point(7, 40, 0.7), point(60, 200, 0.05), point(99, None, None)]
    assert objective_value(run, objective) == expected
    assert objective_value([], objective) is None


def test_frontier_is_what_no_other_checkpoint_beats() -> None:
    """Against all pairs: on the frontier is what no checkpoint of no more KL has as much reward as, or more."""
    random = np.random.default_rng(0)
    cloud = [point(float(reward), float(kl)) for reward, kl in random.normal(size=(60, 2)).round(1)]
    best = frontier([*cloud, point(99, None)])
    beaten = {
        one for one, other in product(cloud, cloud)
        if (other.kl <= one.kl and other.reward > one.reward) or (other.kl < one.kl and other.reward == one.reward)
    }  # fmt: skip
    assert set(best) == set(cloud) - beaten
    assert best == sorted(best, key=lambda each: each.kl)


def test_sweep_with_every_kind_of_end(tmp_path: Path) -> None:
    """Crashed, diverged, unfinished, not begun and unreadable trials: each is there and says how it stands."""
    plans = [
        TrialPlan({COEF: 0.0}, 0, climb(60, 300, words=2), alarms=[alarm(2, "distinct_2"), alarm(3, "kl_spike")]),
        TrialPlan({COEF: 0.4}, 0, climb(9, 12), status="crashed", error="RewardError: broken"),
        TrialPlan({COEF: 0.4}, 1, climb(9, 12), status="diverged", error="kl_spike"),
        TrialPlan({COEF: 1.0}, 0, climb(5, 4), status=None, iterations=3),
        TrialPlan({COEF: 1.0}, 1, None, status=None),
        TrialPlan({COEF: 10.0}, 0, climb(3, 1)),
    ]
    folder = write_sweep(tmp_path, plans)
    samples = folder / "trials" / "trial-005" / "samples.jsonl"
    lines = samples.read_bytes().split(b"\n")
    samples.write_bytes(b"\n".join([lines[0], b"{torn", *lines[2:]]))
    results = read_sweep(folder)
    assert [trial.status for trial in results.trials] == [
        "done", "crashed", "diverged", "unfinished", "unfinished", "unreadable",
    ]  # fmt: skip
    assert "samples.jsonl:2 is damaged" in (results.trials[5].error or "")
    assert results.trials[1].error == "RewardError: broken"
    first = results.trials[0]
    assert first.diversity_broken_at(0.6) == 3  # iteration 2 is the first of two words: 40 of the last 50 texts
    assert [each.rule for each in first.alarms] == ["distinct_2", "kl_spike"]
    assert first.history.base_reward is not None
    assert first.history.base_reward.value == pytest.approx(BASE_REWARD)
    assert first.history.base_reward.standard_error == pytest.approx(np.sqrt(100 / 99) / 10)
    assert len(first.history.last_texts) == 2
    assert [len(trial.history.points) for trial in results.trials] == [3, 3, 3, 1, 0, 0]


def test_means_over_seeds_are_of_the_seeds_that_count(tmp_path: Path) -> None:
    """0.4: seeds end at 9 and 11 and the third crashed: 10 +- 1. A crash is no property of the coefficient."""
    plans = [TrialPlan({COEF: 0.4}, seed, climb(reward, 12)) for seed, reward in enumerate((9.0, 11.0))]
    plans.append(TrialPlan({COEF: 0.4}, 2, climb(99, 12), status="crashed", error="node died"))
    [standing] = standings(read_sweep(write_sweep(tmp_path, plans)))
    assert standing.reward is not None
    assert (standing.reward.value, standing.reward.standard_error) == (pytest.approx(10), pytest.approx(1))
    assert standing.reward.count == 2
    assert standing.holds
    assert "2 of its 3 seeds" in recommend(read_sweep(tmp_path / "sweep")).reason
    assert mean_of([2.0]).standard_error is None


def test_a_middle_value_is_recommended_with_its_reason(tmp_path: Path) -> None:
    """ALLIT-8, -10, -11: neither the collapsed 0 and 0.01 nor the base-like 10; one unlucky seed is enough to fail."""
    ends = {0.0: (62, 300, 2), 0.01: (30, 18, 5), 0.1: (12, 19, 200), 0.4: (9, 12, 200), 10.0: (3.2, 0.3, 200)}
    plans = [TrialPlan({COEF: c}, seed, climb(*end)) for c, end in ends.items() for seed in (0, 1)]
    plans[5] = TrialPlan({COEF: 0.1}, 1, climb(12, 60))  # its other seed stays under 20 nats
    chosen = recommend(read_sweep(write_sweep(tmp_path, plans)))
    assert chosen.standing is not None
    assert chosen.standing.setting.parameters == {COEF: 0.4}
    assert chosen.point is not None
    assert chosen.point.iteration == 6
    assert chosen.checkpoint == chosen.trial.folder / "checkpoints" / "000006"
    assert chosen.reason == (
        "0.4: highest mean reward (9, 3.0 times the base) among those that keep a KL within 20 nats and at least 0.6 of "
        "the base model's diversity. 0.1 has more reward (12) but a KL of 39.5 nats."
    )


def test_mean_over_seeds_decides_and_not_the_luckiest_seed(tmp_path: Path) -> None:
    """0.1 reaches 20 and 4, 0.4 reaches 13 and 13: 0.4, though the best single trial is one of 0.1's."""
    ends = {(0.1, 0): 20, (0.1, 1): 4, (0.4, 0): 13, (0.4, 1): 13}
    plans = [TrialPlan({COEF: c}, seed, climb(reward, 10)) for (c, seed), reward in ends.items()]
    assert recommend(read_sweep(write_sweep(tmp_path, plans))).reason.startswith("0.4: highest mean reward (13,")


def test_collapse_is_never_recommended(tmp_path: Path) -> None:
    """ALLIT-10: KL alone admits a collapse within the bound; the floor under the diversity does not."""
    plans = [TrialPlan({COEF: 0.0}, 0, climb(62, 15, words=2)), TrialPlan({COEF: 1.0}, 0, climb(4, 2))]
    results = read_sweep(write_sweep(tmp_path, plans))
    assert objective_value(results.trials[0].history.points, results.objective) == pytest.approx(62)
    chosen = recommend(results)
    assert chosen.trial is results.trials[1]
    assert "0 has more reward (62) but only 0.0" in chosen.reason


def test_when_nothing_holds_an_earlier_checkpoint_and_when_none_is_admitted_nothing(tmp_path: Path) -> None:
    collapsing = [TrialPlan({COEF: c}, 0, climb(62, 300, words=2, iterations=10), iterations=10) for c in (0.0, 0.1)]
    floor = {"kind": "reward_with_diversity", "min_diversity": 0.6}
    early = recommend(read_sweep(write_sweep(tmp_path, collapsing, name="early", objective=floor)))
    assert early.point is not None
    assert early.point.iteration == 2
    assert early.reason.startswith(
        "None keeps at least 0.6 of the base model's diversity to the end of training. 0 has"
    )
    nothing = recommend(read_sweep(write_sweep(tmp_path, collapsing, name="none", every=5)))
    assert (nothing.standing, nothing.trial, nothing.point, nothing.checkpoint) == (None, None, None, None)
    assert nothing.reason.startswith(
        "Nothing to recommend: no setting has, in every seed, a checkpoint with a KL within"
    )
    empty = recommend(read_sweep(write_sweep(tmp_path, [], name="empty")))
    assert empty.reason == "Nothing to recommend yet: no trial has a checkpoint."


def test_unfinished_diverged_and_differently_rewarded_sweeps_say_so(tmp_path: Path) -> None:
    plans = [
        TrialPlan({"reward": "alliteration"}, 0, climb(9, 12)),
        TrialPlan({"reward": "starts_with_a"}, 0, climb(20, 12), status="diverged"),
        TrialPlan({"reward": "letter"}, 0, None, status=None),
    ]
    reason = recommend(read_sweep(write_sweep(tmp_path, plans))).reason
    assert "starts_with_a has more reward (20) but 1 of its 1 trials diverged." in reason
    assert "1 of 3 trials have not ended: this may change." in reason
    assert "Rewards under different values of reward are different quantities." in reason


def test_games_have_no_floor_under_their_diversity(tmp_path: Path) -> None:
    """A policy that wins is to repeat itself: under a bound on the KL its lack of variety is no fault."""
    plans = [TrialPlan({COEF: 0.1}, 0, climb(9, 12, words=2))]
    results = read_sweep(write_sweep(tmp_path, plans, games=True))
    assert results.trials[0].last.diversity is None
    assert recommend(results).reason.startswith(
        "0.1: the only one that keeps a KL within 20 nats; its mean reward is 9,"
    )


def test_settings_of_several_parameters(tmp_path: Path) -> None:
    """Keys that move together are one parameter; categories keep their order, numbers rise; labels name what differs."""
    loss = "algorithm.kl_loss.coef"
    plans = [
        TrialPlan({COEF: coef, loss: coef, ESTIMATOR: estimator, "optimizer.lr": 1e-3}, 0)
        for coef in (1, 0.1)
        for estimator in ("full", "forward")
    ]
    results = read_sweep(write_sweep(tmp_path, plans))
    coefficient, estimator = parameters_of(results)
    assert (coefficient.keys, coefficient.values, coefficient.numeric) == ((COEF, loss), (0.1, 1), True)
    assert (estimator.name, estimator.values, estimator.numeric) == ("kl_loss.estimator", ("full", "forward"), False)
    labels = [setting.label for setting in settings_of(results)]
    assert labels[0] == "kl.coef 0.1, kl_loss.estimator full"
    assert [label.split(", ")[0] for label in labels] == ["kl.coef 0.1", "kl.coef 0.1", "kl.coef 1", "kl.coef 1"]


def test_crossing_interpolates_at_the_first_time() -> None:
    """Reward 3, 5, 4, 9: 6 is first crossed between 4 and 9, 2/5 of the way: KL 3 + 0.4 * 5, diversity 0.8 - 0.4 * 0.5."""
    path = [point(3, 0, 1.0), point(5, 2, 0.9), point(4, 3, 0.8), point(9, 8, 0.3)]
    assert crossing(path, 6) == (pytest.approx(5), pytest.approx(0.6))
    assert crossing(path, 4) == (pytest.approx(1), pytest.approx(0.95))
    assert crossing(path, 10) is None
    assert crossing([point(3, None, 1.0), point(5, 2, 0.5)], 4) == (None, 0.75)


def test_equal_reward_of_forward_and_reverse_kl(tmp_path: Path) -> None:
    """Issue 4: a table of diversity. Straight paths from (3, KL 0) to (9, KL 12) and to (15, KL 48): 2 and 4 nats a
    unit of reward; levels go as far as the category that comes least far."""
    plans = [TrialPlan({ESTIMATOR: "full", COEF: c}, 0, climb(9, 12)) for c in (0.1, 0.2)]
    plans += [TrialPlan({ESTIMATOR: "forward", COEF: c}, 0, climb(15, 48)) for c in (0.1, 0.2)]
    [table] = equal_reward(read_sweep(write_sweep(tmp_path, plans)))
    assert table.parameter.keys == (ESTIMATOR,)
    assert table.levels == (4, 5, 6, 7, 8, 9)
    for level, (full, forward) in zip(table.levels, table.prices):
        assert (full.trials, forward.trials) == (2, 2)
        assert full.kl.value == pytest.approx(2 * (level - 3))
        assert forward.kl.value == pytest.approx(4 * (level - 3))
        assert full.diversity.value == pytest.approx(1, abs=0.05)


def test_equal_reward_without_a_common_level(tmp_path: Path) -> None:
    plans = [TrialPlan({ESTIMATOR: name}, 0, lambda _: State(2, 1)) for name in ("full", "forward")]
    assert [table.levels for table in equal_reward(read_sweep(write_sweep(tmp_path, plans)))] == [()]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sweep.yaml", None, "is no sweep's folder: it holds no sweep.yaml"),
        ("sweep.yaml", "name: x\n", "sweep.yaml is damaged"),
        ("sweep.yaml", "name: x\nobjective: {kind: reward}\n", "sweep.yaml is damaged"),
        ("trials.jsonl", '{"name": "a"}\n', "trials.jsonl:1 is damaged"),
    ],
)
def test_damaged_sweep_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = write_sweep(tmp_path, [TrialPlan({COEF: 1.0})])
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_sweep(folder)


def test_damaged_marker_is_the_trials_own_fault(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [TrialPlan({COEF: 1.0}, 0, climb(4, 2)), TrialPlan({COEF: 2.0}, 0, climb(4, 2))])
    (folder / "trials" / "trial-000" / "trial.json").write_text(json.dumps({"status": "fine"}))
    broken, sound = read_sweep(folder).trials
    assert (broken.status, sound.status) == ("unreadable", "done")
    assert "remove it to have the trial continued" in (broken.error or "")
