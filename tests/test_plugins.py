"""Names of rewards and environments (DESIGN: the names people type): where they lead, and what is said of wrong ones."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import rayrlhf.rewards
from rayrlhf import plugins
from rayrlhf.errors import EpisodeError, RewardError

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def working_directory(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own modules; what a test adds to `sys.path` goes with it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(FIXTURES)
    return FIXTURES


def install(folder: Path, distribution: str, entry_points: str) -> None:
    """Makes `folder` a place where a package with these entry points is installed."""
    metadata = folder / f"{distribution}-1.2.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    sys.path.insert(0, str(folder))


@pytest.mark.parametrize("name", ["letter_count", "letter-count"])
def test_built_in_reward_is_the_class_named_as_its_file(name: str) -> None:
    plugin = plugins.load("reward", name)
    assert (plugin.__name__, plugin.__module__) == ("LetterCount", "rayrlhf.rewards.letter_count")
    assert plugins.origin("reward", name) == "built-in"


def test_inner_capitals_of_the_class_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wordplay.py").write_text("class WordPlay:\n    def __call__(self, trajectories): ...\n")
    (tmp_path / "orphan.py").write_text("class Other: ...\n")
    monkeypatch.setattr(rayrlhf.rewards, "__path__", [*rayrlhf.rewards.__path__, str(tmp_path)])
    assert plugins.load("reward", "wordplay").__name__ == "WordPlay"
    with pytest.raises(RewardError, match=r"orphan\.py has no class `Orphan`"):
        plugins.load("reward", "orphan")


def test_available_reads_documentation_without_importing() -> None:
    code = (
        "import sys; from rayrlhf import plugins; print(plugins.available('reward')['alliteration']); "
        "print([m for m in sys.modules if m.startswith('rayrlhf.rewards.')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "Number of adjacent word pairs that begin with the same character, case ignored.",
        "[]",
    ]


def test_every_built_in_reward_loads_and_has_documentation() -> None:
    found = plugins.available("reward")
    assert {"alliteration", "starts_with_a", "letter_count", "length"} <= set(found)
    for name, summary in found.items():
        assert summary
        assert plugins.load("reward", name)


def test_own_function_and_class_from_the_working_directory() -> None:
    assert plugins.load("reward", "user_rewards:shouting")("a!b!") == 2
    assert plugins.load("reward", "user_rewards:ByTurn").__name__ == "ByTurn"
    assert plugins.origin("reward", "user_rewards:shouting") == "user_rewards:shouting"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aliteration", r"no reward is named `aliteration`: did you mean `alliteration`\? Known: .*letter_count"),
        ("zzzz", r"no reward is named `zzzz`\. Known: alliteration, .*`module:Name`"),
        ("user_rewards", r"of your own user_rewards\.py write `user_rewards:Name`"),
        ("user_rewards:shoutin", r"user_rewards\.py has no `shoutin`: did you mean `shouting`\?"),
        ("user_reward:shouting", r"a module `user_reward`, which is neither .*: did you mean `user_rewards`\?"),
        ("user_rewards.py:shouting", r"is no `module:Name`.*as in `user_rewards:shouting`"),
        ("user_rewards:", r"is no `module:Name`"),
        (":shouting", r"is no `module:Name`"),
        ("folder/user_rewards.py:shouting", r"as in `folder\.user_rewards:shouting`"),
        ("user_rewards:NOT_A_REWARD", r"is 3\.0: it has to be a class, a function, or an instance"),
        ("user_rewards:NotCallable", r"is a class without `__call__`"),
        ("", r"no reward is named ``"),
    ],
)
def test_wrong_reward_names(name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        plugins.load("reward", name)


def test_module_that_fails_to_import_is_named_with_file_and_line() -> None:
    expected = r"`broken_on_import:x` cannot be imported: broken_on_import\.py:3: NameError: .*undefined_name"
    with pytest.raises(RewardError, match=expected):
        plugins.load("reward", "broken_on_import:x")


def test_missing_import_inside_the_users_module_is_not_taken_for_a_missing_module() -> None:
    with pytest.raises(RewardError, match=r"needs_a_package\.py:3: ModuleNotFoundError: .*surely_not_installed"):
        plugins.load("reward", "needs_a_package:x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\ndef f(:\n", r"bad_module\.py:2: SyntaxError"),
        ("import sys\nsys.exit('no')\n", r"bad_module\.py:2: SystemExit: no"),
        ("import json\njson.loads('{')\n", r"bad_module\.py:2: JSONDecodeError"),
    ],
)
def test_import_errors_name_the_users_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is the user's even where the error was raised deep inside a library."""
    (tmp_path / "bad_module.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=message):
        plugins.load("reward", "bad_module:f")


def test_environments_have_errors_of_their_own() -> None:
    with pytest.raises(EpisodeError, match="no environment is named `nowhere`"):
        plugins.load("environment", "nowhere")
    with pytest.raises(EpisodeError, match=r"is 3\.0: it has to be a class, or a function that makes environments"):
        plugins.load("environment", "user_rewards:NOT_A_REWARD")
    with pytest.raises(EpisodeError, match="without `reset` and `step`"):
        plugins.load("environment", "user_rewards:ByTurn")


def test_entry_points_are_found_and_described_without_importing(tmp_path: Path) -> None:
    install(tmp_path, "loud", "[rayrlhf.rewards]\nloud-words = user_rewards:shouting\nbroken = broken_on_import:x\n")
    assert plugins.load("reward", "loud_words").__name__ == "shouting"
    assert plugins.available("reward")["loud_words"] == "user_rewards:shouting, of loud 1.2"
    assert plugins.origin("reward", "loud_words") == "entry point of loud 1.2"
    with pytest.raises(RewardError, match=r"`broken` cannot be imported: broken_on_import\.py:3"):
        plugins.load("reward", "broken")


def test_entry_point_cannot_shadow_a_built_in_silently(tmp_path: Path) -> None:
    install(tmp_path, "sneaky", "[rayrlhf.rewards]\nalliteration = user_rewards:shouting\n")
    with pytest.warns(UserWarning, match=r"sneaky 1\.2 offers a reward `alliteration`.*write `user_rewards:shouting`"):
        assert plugins.load("reward", "alliteration").__module__ == "rayrlhf.rewards.alliteration"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.load("reward", "length")


def test_two_packages_with_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    install(tmp_path / "one", "one", "[rayrlhf.rewards]\nsame = user_rewards:shouting\n")
    install(tmp_path / "two", "two", "[rayrlhf.rewards]\nsame = user_rewards:divides\n")
    with pytest.raises(RewardError, match=r"`user_rewards:divides` of two 1\.2, `user_rewards:shouting` of one 1\.2"):
        plugins.load("reward", "same")
