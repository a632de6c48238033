"""Config loading: recipes, files and overrides in; a config, or every fault with file and line, out (SPEC X-7)."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrlhf.algorithm_config import (
    AdamWConfig,
    GAEConfig,
    GRPOConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
    SGDConfig,
)
from rayrlhf.algorithms import build_algorithm
from rayrlhf.config import RewardPart, RunConfig
from rayrlhf.config_loading import dump_config, load_config, recipes
from rayrlhf.errors import ConfigError
from rayrlhf.losses import PolicyGradientLoss
from rayrlhf.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def faults(text: str | bytes, *overrides: str) -> list[str]:
    """The message's lines for a file run.yaml of this text."""
    Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml", overrides)
    return str(caught.value).splitlines()


# --- what is wrong is said with file and line (SPEC X-7) ---

BAD_FILES = {
    "misspelt key": ("rollout:\n  wrokers: 4\n", "run.yaml:2: rollout.wrokers: unknown key, did you mean rollout.workers?"),
    "misspelt section": ("seed: 1\nrolout:\n  workers: 4\n", "run.yaml:2: rolout: unknown key, did you mean rollout?"),
    "key of a section below": (
        "algorithm:\n  name: rloo\n\n  kl_ceof: 0.4\n",
        "run.yaml:4: algorithm.kl_ceof: unknown key, did you mean algorithm.kl.coef?",
    ),
    "key of another section": ("iterations: 3\nlr: 1e-3\n", "run.yaml:2: lr: unknown key, did you mean optimizer.lr?"),
    "key of another algorithm": (
        "algorithm:\n  name: rloo\n  normalize_by_std: true\n",
        "run.yaml:3: algorithm.normalize_by_std: rloo has no normalize_by_std (grpo has)",
    ),
    "key of another optimizer, name left out": (
        "optimizer:\n  momentum: 0.9\n",
        "run.yaml:2: optimizer.momentum: adamw has no momentum (sgd has)",
    ),
    "key like no other": (
        "checkpoint:\n  xyzzy: 1\n",
        "run.yaml:2: checkpoint.xyzzy: unknown key; the keys here are every, keep, keep_trainer_state",
    ),
    "whitening of rewards, which never was a field (SPEC LMHP-32)": (
        "reward: alliteration\nrewards.whiten: true\n",
        "run.yaml:2: rewards.whiten: unknown key, did you mean reward.weight?",
    ),
    "dotted key in a file": (
        "rollout.workers: 4\n",
        "run.yaml:1: rollout.workers: a file has no dotted keys: write `rollout:` with `workers:` under it",
    ),
    "no such algorithm": (
        "algorithm:\n  name: gpro\n",
        "run.yaml:2: algorithm.name: must be one of reinforce, rloo, grpo, ppo, rejection_sampling, not 'gpro', did you "
        "mean grpo?",
    ),
    "algorithm as a word": (
        "seed: 0\nalgorithm: grpo\n",
        "run.yaml:2: algorithm: must be a section of `key: value` lines, not 'grpo', did you mean algorithm.name: grpo?",
    ),
    "text for a number": ("rollout:\n  workers: four\n", "run.yaml:2: rollout.workers: must be a whole number, not 'four'"),
    "truth for a number": ("rollout:\n  workers: true\n", "run.yaml:2: rollout.workers: must be a whole number, not true"),
    "truth for a choice": (
        "learner:\n  zero_stage: true\n",
        "run.yaml:2: learner.zero_stage: must be one of 0, 1, 2, 3, not true",
    ),
    "truth for a weight": (
        "reward:\n- {name: length, weight: true}\n",
        "run.yaml:2: reward.0.weight: must be a number, not true",
    ),
    "fraction": ("iterations: 1.5\n", "run.yaml:1: iterations: must be a whole number, not 1.5"),
    "number for text": ("storage_path: 5\n", "run.yaml:1: storage_path: must be text, not 5; put it in quotes"),
    "below a bound": ("rollout:\n  temperature: 0\n", "run.yaml:2: rollout.temperature: must be greater than 0, not 0"),
    "above a bound": ("rollout: {top_p: 1.5}\n", "run.yaml:1: rollout.top_p: must be at most 1, not 1.5"),
    "endless": ("optimizer:\n  lr: .inf\n", "run.yaml:2: optimizer.lr: must be a finite number, not inf"),
    "no such choice": (
        "learner:\n  precision: fp16\n",
        "run.yaml:2: learner.precision: must be one of auto, fp32, bf16, not 'fp16', did you mean bf16?",
    ),
    "empty section": (
        "rollout:\n# workers: 4\nseed: 1\n",
        "run.yaml:1: rollout: must be a section of `key: value` lines, not empty",
    ),
    "reward without a name": ("reward:\n- weight: 2\n", "run.yaml:2: reward.0.name: is missing"),
    "reward as a number": (
        "reward:\n- alliteration\n- 5\n",
        "run.yaml:3: reward.1: must be a reward's name or {name: ..., weight: ...}, not 5",
    ),
    "no reward": ("reward: []\n", "run.yaml:1: reward: must have at least 1 entries, not 0"),
    "list too short": ("optimizer:\n  betas:\n  - 0.9\n", "run.yaml:2: optimizer.betas.1: is missing"),
    "two sources of prompts": (
        "environment:\n  prompts:\n    text: a\n    file: b\n",
        "run.yaml:2: environment.prompts: give one of text, file and folder, not text and file",
    ),
    "two sections at odds": (
        "algorithm:\n  name: rloo\nrollout:\n  group_size: 1\n",
        "run.yaml:4: algorithm.name rloo compares the episodes of a group: rollout.group_size must be at least 2, not 1",
    ),
    "key twice": ("seed: 1\niterations: 2\nseed: 3\n", "run.yaml:3: the key seed stands here twice"),
    "bracket left open": (
        "seed: 1\nreward: [a,\n",
        "run.yaml:3: while parsing a flow node, expected the node content, but found '<stream end>'",
    ),
    "control character": (
        "seed: 1\nname: a\x07b\n",
        "run.yaml:2: unacceptable character #x0007: special characters are not allowed",
    ),
    "bytes that are no text": (b"seed: 1\nname: \xff\n", "run.yaml:2: not UTF-8 text (byte 0xff)"),
    "empty file": ("# nothing\n", "run.yaml:1: the file is empty; write `key: value` lines, or leave the file out"),
    "list": ("# a list\n- seed: 1\n", "run.yaml:2: the file holds a list, not `key: value` lines"),
    "single value": ("alliteration\n", "run.yaml:1: the file holds a single value, not `key: value` lines"),
    "YAML tag": (
        "rollout:\n  workers: !many 4\n",
        "run.yaml:2: rollout.workers: YAML tags such as !many have no meaning here",
    ),
    "two documents": (
        "seed: 1\n---\nseed: 2\n",
        "run.yaml:2: expected a single document in the stream, but found another document",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_with_file_line_key_and_fault(text: str | bytes, expected: str) -> None:
    assert faults(text) == [expected]


BAD_OVERRIDES = {
    "rollout.wrokers=4": "unknown key, did you mean rollout.workers?",
    "rollout.workers=four": "must be a whole number, not 'four'",
    "rollout={wrokers: 4}": "rollout.wrokers: unknown key, did you mean rollout.workers?",
    "algorithm.normalize_by_std=true": "rloo has no normalize_by_std (grpo has)",
    "algorithm.value.kind=hed": "algorithm.value: rloo has no value (ppo has)",
    "model.scratch.hidden=3": "unknown key, did you mean model.scratch.hidden_size?",
    "algorithm=grpo": (
        "must be a section of `key: value` lines, not 'grpo', did you mean algorithm.name: grpo?"
    ),
    "workers": "write KEY=VALUE with a dotted key, as in rollout.workers=4",
    "rollout..workers=1": "write KEY=VALUE with a dotted key, as in rollout.workers=4",
    "reward=[a": (
        "the value is not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'; try quotes"
    ),
    "reward.2=length": "reward has 1 entries: the next one is reward.1",
    "seed.x=1": "seed is a value (7), not a section",
    "environment.prompts.text=Say: hi": "must be text, not a section; put it in quotes",
    "environment.prompts.file=x.txt": (
        "environment.prompts: give one of text, file and folder, not text and file"
    ),
    "rollout.group_size=1": (
        "algorithm.name rloo compares the episodes of a group: rollout.group_size must be at least 2, not 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("override", "fault"), BAD_OVERRIDES.items(), ids=BAD_OVERRIDES.keys())
def test_a_bad_override_is_one_line_that_repeats_it(override: str, fault: str) -> None:
    text = "seed: 7\nenvironment: {prompts: {text: a}}\nreward: alliteration\n"
    assert faults(text, override) == [f"override {override}: {fault}"]


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("reward." + "9" * 5000, "reward has 1 entries: the next one is reward.1"),
        ("model" + ".a" * 1500, "its key leads through more than 100 sections"),
        ("model" + ".a" * 90, "unknown key"),
    ],
)
def test_a_key_without_end_is_one_line(key: str, fault: str) -> None:
    [line] = faults("reward: [length]\n", f"{key}=1")
    assert line.startswith(f"override {key[:200]}")
    assert fault in line[200:]


def test_all_faults_of_file_and_overrides_come_at_once_in_the_order_written_x_7() -> None:
    text = "optimizer:\n  lr: fast\nrollout:\n  wrokers: 4\nseed: -1\nlearner:\n  zero_stage: 7\n"
    found = faults(text, "checkpoint.every.x=1", "algorithm.kl.coef=-1", "nonsense")
    assert found == [
        "run.yaml:2: optimizer.lr: must be a number, not 'fast'",
        "run.yaml:4: rollout.wrokers: unknown key, did you mean rollout.workers?",
        "run.yaml:5: seed: must be at least 0, not -1",
        "run.yaml:7: learner.zero_stage: must be one of 0, 1, 2, 3, not 7",
        "override checkpoint.every.x=1: checkpoint.every: must be a whole number, not a section",
        "override algorithm.kl.coef=-1: must be at least 0, not -1",
        "override nonsense: write KEY=VALUE with a dotted key, as in rollout.workers=4",
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("starts_with_a", "starts_with_a: no recipe and no file has this name; did you mean starts-with-a?"),
        ("zzz", "zzz: no recipe and no file has this name; the recipes: alliteration, "),
        ("mine.yaml", "mine.yaml: there is no such file (in "),
        ("folder/mine", "folder/mine: there is no such file (in "),
        ("folder", "folder: is a folder; give a YAML file or a recipe"),
        ("runs/one", "runs/one: is a folder; did you mean runs/one/config.yaml?"),
    ],
)
def test_a_source_that_is_no_config_is_named(source: str, words: str) -> None:
    Path("folder").mkdir()
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(source, [])
    assert str(caught.value).startswith(words)


# --- what is right is read right ---


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "+1e-5", ".00001", "0.00001"])
def test_numbers_read_as_numbers_in_files_and_overrides(number: str) -> None:
    Path("run.yaml").write_text(f"optimizer:\n  lr: {number}\n")
    assert load_config("run.yaml", []).optimizer.lr == 1e-5
    assert load_config(None, [f"optimizer.lr={number}"]).optimizer.lr == 1e-5


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert load_config(None, ["iterations=3e4"]).iterations == 30_000


def test_overrides_go_before_the_file_and_later_ones_before_earlier_ones_lmhp_34() -> None:
    Path("run.yaml").write_text("seed: 1\nrollout: {workers: 3, group_size: 5}\n")
    config = load_config("run.yaml", ["rollout.workers=4", "seed=2", "rollout.workers=8"])
    assert (config.seed, config.rollout.workers, config.rollout.group_size) == (2, 8, 5)


def test_overrides_alone_start_from_the_default_recipe() -> None:
    config = load_config(None, ["rollout.workers=4"])
    assert config == load_config("alliteration", ["rollout.workers=4"])
    assert config.environment.prompts.text == "Once upon a time"


REWARD_OVERRIDES = [
    (["reward=starts_with_a"], [RewardPart(name="starts_with_a")]),
    (["reward=[a, b]"], [RewardPart(name="a"), RewardPart(name="b")]),
    (["reward=[a, b]", "reward.0.weight=0.5"], [RewardPart(name="a", weight=0.5), RewardPart(name="b")]),
    (["reward.weight=0.5"], [RewardPart(name="alliteration", weight=0.5)]),
    (["reward.1=length"], [RewardPart(name="alliteration"), RewardPart(name="length")]),
    (["reward.name=letter_count", "reward.letter=e"], [RewardPart(name="letter_count", letter="e")]),
]


@pytest.mark.parametrize(
    ("overrides", "expected"), REWARD_OVERRIDES, ids=[" ".join(row[0]) for row in REWARD_OVERRIDES]
)
@pytest.mark.parametrize(
    "written", ["seed: 0", "reward: alliteration", "reward: {name: alliteration}", "reward: [alliteration]"]
)
def test_reward_overrides_on_every_spelling_of_a_reward(
    overrides: list[str], expected: list[RewardPart], written: str
) -> None:
    """SPEC X-7: an override means the same, whichever way the file spells its one reward."""
    if written.endswith("]") and overrides[0].startswith(("reward.weight", "reward.name")):
        key = overrides[0].removeprefix("reward.").split("=")[0]
        assert f"override {overrides[0]}: reward is a list: name an entry, as in reward.0.{key}" in faults(
            written, *overrides
        )
        return
    Path("run.yaml").write_text(written + "\n")
    assert list(load_config("run.yaml", overrides).reward) == expected


def test_a_fault_in_a_reward_keeps_its_line_when_an_override_makes_it_a_list() -> None:
    text = "reward:\n  name: length\n  weight: heavy\n"
    assert faults(text, "reward.1=alliteration") == ["run.yaml:3: reward.0.weight: must be a number, not 'heavy'"]


def test_another_algorithm_keeps_the_keys_it_shares() -> None:
    Path("run.yaml").write_text("algorithm:\n  name: rloo\n  kl: {coef: 0.1}\n  entropy_coef: 0.03\n")
    config = load_config("run.yaml", ["algorithm.name=grpo"])
    assert isinstance(config.algorithm, GRPOConfig)
    assert (config.algorithm.kl.coef, config.algorithm.entropy_coef, config.algorithm.clip_range) == (0.1, 0.03, 0.2)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
def test_a_cap_that_the_clipped_ratio_takes_the_place_of_is_refused(name: str) -> None:
    """GRPO clips by default, so a cap that someone set would do nothing and say nothing."""
    given = () if name == "grpo" else ("algorithm.clip_range=0.2",)
    with pytest.raises(ConfigError) as refused:
        load_config(None, [f"algorithm.name={name}", "algorithm.importance_cap=1.5", *given])
    assert "importance_cap 1.5 does nothing beside clip_range 0.2" in str(refused.value)
    assert "set clip_range to null" in str(refused.value)
    for kept in ("algorithm.importance_cap=", "algorithm.importance_cap=2.0"):  # what a resolved config says
        load_config(None, [f"algorithm.name={name}", kept, *given])
    capped = load_config(None, [f"algorithm.name={name}", "algorithm.importance_cap=1.5", "algorithm.clip_range="])
    assert build_algorithm(capped.algorithm).objective.policy == PolicyGradientLoss(importance_cap=1.5)


def test_a_run_that_ran_with_a_cap_without_effect_can_still_be_read_and_resumed(tmp_path: Path) -> None:
    now = load_config(None, ["algorithm.name=grpo", f"storage_path={tmp_path}"])
    RunFolder.create(now, dump_config(now)).close()
    path = tmp_path / now.name / "config.yaml"
    path.write_text(path.read_text().replace("importance_cap: 2.0", "importance_cap: 1.5"))
    algorithm = RunFolder.open(path.parent).read_config().algorithm
    assert isinstance(algorithm, GRPOConfig)
    assert algorithm.importance_cap == 1.5
    RunFolder.resume(now, dump_config(now)).close()


def test_another_algorithm_complains_of_the_keys_it_lacks() -> None:
    text = "algorithm:\n  name: reinforce\n  baseline_decay: 0.5\n"
    assert faults(text, "algorithm.name=rloo") == [
        "run.yaml:3: algorithm.baseline_decay: rloo has no baseline_decay (reinforce has)"
    ]


def test_null_and_text_that_looks_like_something_else() -> None:
    cleared = load_config(None, ["environment.prompts.text=", "environment.prompts.file=p.txt"])
    assert (cleared.environment.prompts.text, cleared.environment.prompts.file) == (None, "p.txt")
    assert load_config(None, ["environment.prompts.text=2024-01-01"]).environment.prompts.text == "2024-01-01"
    assert load_config(None, ["environment.prompts.text='12'"]).environment.prompts.text == "12"


def test_anchors_are_followed_and_a_byte_order_mark_is_no_fault() -> None:
    Path("run.yaml").write_bytes(
        b"\xef\xbb\xbflearner: &limits {timeout_s: 5}\nrollout:\n  <<: *limits\n  workers: 3\n"
    )
    config = load_config("run.yaml", [])
    assert (config.rollout.timeout_s, config.rollout.workers, config.learner.timeout_s) == (5, 3, 5)


# --- recipes ---


def test_sections_within_an_algorithm_have_defaults_and_named_faults() -> None:
    text = "algorithm:\n  name: ppo\n  value:\n    optimizer:\n      lr: 0.5\n"
    Path("run.yaml").write_text(text)
    value = load_config("run.yaml", []).algorithm.value  # type: ignore[union-attr]
    assert (value.kind, value.optimizer.name, value.optimizer.lr) == ("separate", "adamw", 0.5)  # type: ignore[union-attr]
    assert faults(text + "    kind: hed\n") == [
        "run.yaml:6: algorithm.value.kind: must be one of separate, head, not 'hed', did you mean head?"
    ]
    assert faults(text + "    detach: true\n") == [
        "run.yaml:6: algorithm.value.detach: separate has no detach (head has)"
    ]
    assert faults(text, "algorithm.value=head") == [
        "override algorithm.value=head: must be a section of `key: value` lines, not 'head', did you mean "
        "algorithm.value.kind: head?"
    ]


def test_the_source_s_ppo_in_textworld() -> None:
    """TW-19, TW-11, TW-17, TW-4, TW-8: its numbers, in this project's units."""
    config = load_config("textworld-ppo-parity", [])
    algorithm = config.algorithm
    assert isinstance(algorithm, PPOConfig)
    assert config.optimizer.lr == 1e-6
    assert config.rollout.episodes_per_iteration * config.environment.max_turns == 128
    assert (algorithm.epochs, algorithm.kl.coef, algorithm.value_coef, algorithm.value.kind) == (1, 0, 0.5, "head")
    assert algorithm.gae == GAEConfig(token_discount=1, token_lambda=0.95, turn_discount=0.6, turn_lambda=0)
    assert (config.agent.actions, config.agent.stop_at_sentence, config.rollout.max_new_tokens) == ("free", True, 20)
    assert config.agent.examples is not None
    assert (config.agent.examples.probability, config.agent.memory_turns) == (0.33, 0)
    assert {part.name: part.weight for part in config.reward} == {"game_score": 1, "letter_count": 0.1}


def test_the_recipes_and_what_their_first_line_says() -> None:
    shipped = {recipe.name: recipe for recipe in recipes()}
    assert list(shipped) == [
        "alliteration", "alliteration-adaptive", "alliteration-ppo", "alliteration-reinforce-parity",
        "alliteration-rloo-parity", "letter-e",
        "starts-with-a", "textworld-coin", "textworld-coin-rejection", "textworld-coin-rloo", "textworld-ppo-parity",
        "textworld-quest",
    ]  # fmt: skip
    for name, recipe in shipped.items():
        config = load_config(name, [])
        assert config.name == name
        assert len(recipe.summary) > 20
        assert config.rollout.groups_per_iteration % config.rollout.groups_per_batch == 0
        assert len(recipe.path.read_text().splitlines()) <= 60


def test_the_default_recipe_is_the_tried_alliteration_job() -> None:
    config = load_config(None, [])
    assert (config.reward, config.iterations) == ((RewardPart(name="alliteration"),), 120)
    assert (config.rollout.groups_per_iteration, config.rollout.group_size, config.rollout.max_new_tokens) == (
        4,
        10,
        64,
    )
    assert isinstance(config.algorithm, RLOOConfig)
    assert (config.algorithm.kl.coef, config.algorithm.kl.reduction) == (0.4, "sum")
    assert isinstance(config.optimizer, AdamWConfig)
    assert config.optimizer.lr == 5e-4


@pytest.mark.parametrize(
    ("name", "algorithm", "group_size", "coef"),
    [("alliteration-rloo-parity", RLOOConfig, 10, 40.0), ("alliteration-reinforce-parity", ReinforceConfig, 1, 0.0)],
)
def test_parity_recipes_are_the_published_numbers_allit_2_to_6(
    name: str, algorithm: type, group_size: int, coef: float
) -> None:
    config = load_config(name, [])
    rollout = config.rollout
    assert (rollout.temperature, rollout.top_k, rollout.max_new_tokens) == (1.0, 50, 96)  # ALLIT-2: 4 + 96 = 100 tokens
    assert (rollout.groups_per_iteration, rollout.group_size) == (1, group_size)  # ALLIT-3
    assert config.optimizer == SGDConfig(lr=1e-4, momentum=0, max_grad_norm=None)  # ALLIT-4
    assert config.algorithm == algorithm(
        kl={"coef": coef, "reduction": "mean"}, loss_reduction="group_sum", include_prompt=True, importance_cap=None,
        **({"baseline_decay": None} if algorithm is ReinforceConfig else {}),
    )  # fmt: skip


# --- there and back (SPEC X-7: the resolved config is saved with each run) ---

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
parameters = st.dictionaries(
    st.text(string.ascii_letters, min_size=1).filter(lambda key: key not in ("name", "weight")),
    plain_values,
    max_size=3,
)
positive = st.floats(min_value=1e-30, max_value=1e30)
configs = st.builds(
    RunConfig,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True),
    storage_path=texts,
    seed=st.integers(0, 2**70),
    environment=st.fixed_dictionaries({"prompts": st.fixed_dictionaries({"text": st.none() | texts, "field": texts})}),
    reward=st.lists(
        st.builds(lambda name, extra: {"name": name, **extra}, texts, parameters), min_size=1, max_size=3
    ),
    algorithm=st.sampled_from([RLOOConfig(), GRPOConfig(clip_range=0.3), ReinforceConfig(baseline_decay=None)]),
    optimizer=st.builds(AdamWConfig, lr=positive, eps=positive) | st.builds(SGDConfig, lr=positive),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs)
def test_a_dumped_config_loads_back_equal_x_7(config: RunConfig) -> None:
    Path("config.yaml").write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config("config.yaml", []) == config


def test_a_dumped_config_holds_every_key_and_no_comment() -> None:
    dumped = dump_config(load_config("alliteration", []))
    assert "top_k: null\n" in dumped
    assert "max_mean_logprob_gap_bf16: 0.02\n" in dumped
    assert "#" not in dumped
