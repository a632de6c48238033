"""The detector's rules on histories made by hand, its latches and its state, and the thresholds on recorded runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.detector import RECOVERY, Alarm, Detector, detect
from rayrlhf.detector_config import DetectorConfig
from rayrlhf.divergence import DIVERSITY, LOGPROB_GAP, RULES, SIGNALS, History, signals_of
from rayrlhf.metrics import MetricsLog, SampleRecord
from rayrlhf.report import write_report
from rayrlhf.run_folder import RunFolder
from tests.detector_runs import GAP, NATS, read_runs

HEALTHY = {
    "objective/kl_per_token": 0.1, "objective/score": 3.0, "objective/score_std": 2.0,
    "objective/zero_variance_groups": 0.0, "policy/entropy": 2.0, "policy/ratio_max": 1.0, "policy/approxkl": 0.0,
    "text/dup_rate": 0.0, "text/gzip_ratio": 0.4, "text/empty_rate": 0.0, DIVERSITY: 1.0, LOGPROB_GAP: 0.1,
}  # fmt: skip
RUNS = read_runs()
CONFIG = DetectorConfig()


def rules_that_fire(*changes: dict[str, float], config: DetectorConfig = CONFIG) -> dict[str, float]:
    """Rule -> its value after a healthy iteration and then these, each healthy but for the changes."""
    rows = [HEALTHY, *({**HEALTHY, **change} for change in changes)]
    history = History(HEALTHY, rows)
    readings = {name: RULES[name](rule, history) for name, rule in config.rules.items()}
    return {name: reading.value for name, reading in readings.items() if reading is not None and reading.fires}


@pytest.mark.parametrize(
    ("rule", "below", "above", "value"),
    [
        ("entropy", {"policy/entropy": 0.51}, {"policy/entropy": 0.49}, 0.245),  # of the 2.0 it began with
        ("distinct_2", {DIVERSITY: 0.51}, {DIVERSITY: 0.49}, 0.49),
        ("duplicates", {"text/dup_rate": 0.24}, {"text/dup_rate": 0.26}, 0.26),
        ("gzip_ratio", {"text/gzip_ratio": 0.21}, {"text/gzip_ratio": 0.19}, 0.475),
        ("kl_spike", {"objective/kl_per_token": 0.29}, {"objective/kl_per_token": 0.31}, 0.31),  # 3 times 0.1
        ("empty_answers", {"text/empty_rate": 0.24}, {"text/empty_rate": 0.26}, 0.26),
        ("ratio", {"policy/ratio_max": 9999.0}, {"policy/ratio_max": 10001.0}, 10001.0),
        ("ratio", {"policy/approxkl": 0.49}, {"policy/approxkl": 0.51}, 0.51),
        ("logprob_gap", {LOGPROB_GAP: 0.49}, {LOGPROB_GAP: 0.51}, 0.51),
    ],
)
def test_a_rule_fires_past_its_threshold_and_not_before(
    rule: str, below: dict[str, float], above: dict[str, float], value: float
) -> None:
    """GWERN-12, ALLIT-10, TW-25: each rule alone, and no other with it."""
    assert rules_that_fire(below) == {}
    assert rules_that_fire(above) == {rule: pytest.approx(value)}


@pytest.mark.parametrize(
    ("rule", "changed", "value"),
    [
        ("score_saturation", {"objective/score_std": 0.09}, 0.045),
        ("zero_variance_groups", {"objective/zero_variance_groups": 0.95}, 0.95),
    ],
)
def test_a_rule_of_several_iterations_waits_for_them(rule: str, changed: dict[str, float], value: float) -> None:
    assert rules_that_fire(changed, changed) == {}
    assert rules_that_fire(changed, changed, changed) == {rule: pytest.approx(value)}


def fired_from_the_start(*rows: dict[str, float]) -> dict[int, set[str]]:
    """Iteration -> rules that begin to fire with it."""
    detector = Detector(CONFIG, ("learner/logprob_gap_max", 1e-4))
    return {i: found for i, row in enumerate(rows) if (found := {alarm.rule for alarm in detector.judge(i, row)})}


def test_a_reward_that_never_changes_is_told_in_the_first_iteration() -> None:
    """Every score is the same from the start: there is no deviation that later ones could be a share of."""
    constant = {**HEALTHY, "objective/score_std": 0.0, "objective/zero_variance_groups": 1.0}
    assert fired_from_the_start(constant, constant) == {0: {"score_saturation", "zero_variance_groups"}}
    assert fired_from_the_start({**HEALTHY, "objective/score_std": 0.0}) == {0: {"score_saturation"}}
    assert fired_from_the_start({**HEALTHY, "objective/zero_variance_groups": 0.95}) == {0: {"zero_variance_groups"}}
    assert fired_from_the_start({**HEALTHY, "objective/zero_variance_groups": 0.85}) == {}


def test_scores_that_begin_to_differ_are_no_saturation() -> None:
    """After an iteration of equal scores, told once; and once more where they are all equal again for the rule's window."""
    equal = {**HEALTHY, "objective/score_std": 0.0}
    assert fired_from_the_start(equal, *[HEALTHY] * 9) == {0: {"score_saturation"}}
    assert fired_from_the_start(equal, *[HEALTHY] * 9, *[equal] * 4) == {
        0: {"score_saturation"},
        12: {"score_saturation"},
    }


def test_a_game_that_nobody_wins_at_first_has_the_rules_whole_window() -> None:
    lost = {**HEALTHY, "objective/score_std": 0.0, "objective/zero_variance_groups": 1.0, "rollout/won": 0.0}
    assert fired_from_the_start(lost, lost) == {}
    assert fired_from_the_start(lost, lost, lost) == {2: {"zero_variance_groups"}}


def test_slow_growth_of_the_kl_is_no_spike_but_too_much_of_it_is_growth() -> None:
    """A tenth more an iteration is 1.1^5.5 = 1.7 times the median of the ten before, a quarter more 1.25^5.5 = 3.4 times."""
    rows = [{"objective/kl_per_token": 0.1 * 1.1**step} for step in range(30)]
    assert rules_that_fire(*rows[:23]) == {}  # up to 0.81 nats
    assert set(rules_that_fire(*rows)) == {"kl_growth"}
    steep = [{"objective/kl_per_token": 0.03 * 1.25**step} for step in range(12)]
    assert set(rules_that_fire(*steep)) == {"kl_spike"}


def test_a_spike_is_held_against_the_reference_when_there_is_nothing_else() -> None:
    """The first iteration's KL is 0: any number is more than three times that, and only the least counts."""
    start = {**HEALTHY, "objective/kl_per_token": 0.0}
    for value, fires in ((0.24, False), (0.26, True)):
        reading = RULES["kl_spike"](
            CONFIG.kl_spike, History(start, [start, {**start, "objective/kl_per_token": value}])
        )
        assert reading is not None
        assert reading.fires is fires


def test_shares_are_counted_from_where_the_run_began() -> None:
    """A task of one-word answers has duplicates from the start: 0.8 at first and 0.84 now is a fifth of the way."""
    start = {**HEALTHY, "text/dup_rate": 0.8}
    reading = RULES["duplicates"](CONFIG.duplicates, History(start, [{**start, "text/dup_rate": 0.84}]))
    assert reading is not None
    assert reading.value == pytest.approx(0.2)
    assert not reading.fires


def test_a_game_is_not_judged_by_its_texts() -> None:
    """A policy that wins repeats itself: its entropy, its texts and its score may collapse. Empty answers may not."""
    collapsed = {
        "policy/entropy": 0.0, "text/dup_rate": 1.0, "text/gzip_ratio": 0.01, "objective/score_std": 0.0, DIVERSITY: 0.0,
        "objective/kl_per_token": 9.0, "objective/zero_variance_groups": 1.0, "rollout/won": 1.0,
    }  # fmt: skip
    start = {**HEALTHY, "rollout/won": 0.1}
    for changed, fires in ((collapsed, set()), ({**collapsed, "text/empty_rate": 1.0}, {"empty_answers"})):
        history = History(start, [start, *[{**start, **changed}] * 3])
        readings = {name: RULES[name](rule, history) for name, rule in CONFIG.rules.items()}
        assert {name for name, reading in readings.items() if reading and reading.fires} == fires


def test_a_signal_that_a_run_lacks_silences_its_rules() -> None:
    history = History({}, [{}])
    assert [name for name, rule in CONFIG.rules.items() if RULES[name](rule, history) is not None] == []


def test_the_rules_never_see_the_coefficient() -> None:
    """Issue 4, part 5: what a rule sees is `SIGNALS`, and no coefficient is among them."""
    metrics = {**HEALTHY, "objective/kl_coef": 0.4, "objective/kl_loss_coef": 0.1, "objective/score_total": 1.0}
    assert set(signals_of(metrics, 0.9, GAP)) <= set(SIGNALS)
    assert not any("coef" in name or "total" in name for name in SIGNALS)
    assert set(RULES) == set(CONFIG.rules)


def test_an_onset_is_one_alarm_until_the_rule_has_recovered() -> None:
    detector = Detector(DetectorConfig.model_validate({"distinct_2": {"action": "stop"}}), GAP)
    shares = [1.0, 0.4, 0.3, *[0.6] * (RECOVERY - 1), 0.4, *[0.6] * RECOVERY, 0.4]
    alarms = [detector.judge(i, {**HEALTHY, DIVERSITY: share}) for i, share in enumerate(shares)]
    fired = [i for i, found in enumerate(alarms) if found]
    assert fired == [1, len(shares) - 1]
    assert alarms[1] == [
        Alarm(
            1,
            "distinct_2",
            0.4,
            0.5,
            "stop",
            "distinct-2 of the last texts is 40% of the base model's: they repeat each other",
        )
    ]


def test_off_is_off_and_null_takes_the_detectors_action() -> None:
    config = DetectorConfig.model_validate({"action": "off", "entropy": {"action": "rollback", "onset": 7}})
    assert list(config.rules) == ["entropy"]
    assert config.rollback_onset == 7
    assert rules_that_fire({"policy/entropy": 0.1, DIVERSITY: 0.1}, config=config) == {"entropy": pytest.approx(0.05)}
    assert DetectorConfig().rollback_onset is None


@pytest.mark.parametrize("run", ["healthy-0", "flipped-0", "lr100-0"])
@pytest.mark.parametrize("cut", [1, 7, 40])
def test_state_through_json_goes_on_bit_for_bit(run: str, cut: int) -> None:
    """GWERN-12: a detector that was saved and loaded says what one that never stopped says."""
    whole, first, second = (Detector(CONFIG, GAP) for _ in range(3))
    rows = RUNS[run]
    expected = [whole.judge(i, row) for i, row in enumerate(rows)]
    found = [first.judge(i, row) for i, row in enumerate(rows[:cut])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.judge(i, row) for i, row in enumerate(rows[cut:], start=cut)]
    assert found == expected
    assert second.state_dict() == json.loads(json.dumps(whole.state_dict())) | {"base": None}


def alarms_of(run: str) -> list[Alarm]:
    detector = Detector(CONFIG, GAP)
    return [alarm for i, row in enumerate(RUNS[run]) for alarm in detector.judge(i, row)]


HEALTHY_RUNS = [run for run in RUNS if run.startswith("healthy")]
HIGHEST_HEALTHY_KL = max(row[NATS] for run in HEALTHY_RUNS for row in RUNS[run])


@pytest.mark.parametrize("run", HEALTHY_RUNS)
def test_a_healthy_run_is_left_alone(run: str) -> None:
    """GWERN-12: no alarm in any of the recorded healthy runs of 60 updates."""
    assert len(RUNS[run]) == 60
    assert alarms_of(run) == []


@pytest.mark.parametrize("run", [run for run in RUNS if run.startswith("lr100")])
def test_a_hundredfold_learning_rate_is_found_within_five_iterations(run: str) -> None:
    assert min(alarm.iteration for alarm in alarms_of(run)) < 5


@pytest.mark.parametrize("run", [run for run in RUNS if run.startswith("flipped")])
def test_a_flipped_sign_is_found_before_the_kl_is_three_times_a_healthy_one(run: str) -> None:
    """By rules that never read the coefficient (see above)."""
    first = min(alarm.iteration for alarm in alarms_of(run))
    assert max(row[NATS] for row in RUNS[run][: first + 1]) < 3 * HIGHEST_HEALTHY_KL
    assert max(row[NATS] for row in RUNS[run]) > 3 * HIGHEST_HEALTHY_KL  # it would have gone there


@pytest.mark.parametrize("run", [run for run in RUNS if run.startswith("zero")])
def test_a_run_without_a_penalty_is_found_before_its_texts_are_gone(run: str) -> None:
    """ALLIT-10: the alarm comes while distinct-2 still is at a third of the base model's."""
    first = min(alarm.iteration for alarm in alarms_of(run))
    assert RUNS[run][first][DIVERSITY] > 1 / 3
    assert min(row.get(DIVERSITY, 1.0) for row in RUNS[run]) < 1 / 3


def sample(iteration: int, index: int, response: str) -> SampleRecord:
    return SampleRecord(
        run="r", iteration=iteration, index=index, group=0, prompt="", response=response, score=1.0, parts={}, kl=0.0,
        total=1.0, logprob_sum=-1.0, reference_logprob_sum=-1.0, length=3, finish="eos", weights_version=0,
    )  # fmt: skip


def test_a_recorded_run_is_judged_from_its_files(tmp_path: Path) -> None:
    """Base texts of 4 distinct bigrams each; two iterations like them, then one text over and over: distinct-2 of the
    last 50 texts, 30 of them that one text (4 of its 120 bigrams are distinct), falls to (4 + 80) / 200 = 0.42."""
    config = RunConfig(name="r", storage_path=str(tmp_path))
    with RunFolder.create(config, dump_config(config)) as folder, MetricsLog(folder) as log:
        for iteration in range(-1, 3):
            count = 100 if iteration == -1 else 30
            texts = [" ".join(f"w{iteration}.{i}.{k}" for k in range(5)) for i in range(count)]
            log.record_samples(
                [sample(iteration, i, "a b c d e" if iteration == 2 else text) for i, text in enumerate(texts)]
            )
            if iteration >= 0:
                log.record(iteration, {"policy/entropy": 1.0})
    [alarm] = detect(tmp_path / "r", CONFIG, GAP)
    assert (alarm.iteration, alarm.rule) == (2, "distinct_2")
    assert alarm.value == pytest.approx(84 / 200)
    report = write_report(tmp_path / "r").read_text()
    assert "Found in the records" in report
    assert "<td>2</td><td>distinct_2</td>" in report
