"""Fixtures that several test files share: tiny random models, and one Ray cluster a session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

_STATE = tempfile.TemporaryDirectory(prefix="rayrlhf-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name  # what a person's own configs said is noted there, not in who runs the tests

torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job ignores it, and so would all we start
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under nohup

LONGEST_FILES = (
    "test_readme", "test_training", "test_supervised", "test_game_training", "test_worker", "test_sweep", "test_loop",
    "test_reward_model_training", "test_gwern_labels", "test_rating_browser", "test_learner", "test_ppo_learner",
    "test_response_rules", "test_environment_pool", "test_start_up", "test_cluster", "test_coin_learning", "test_imitation",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: they are dealt out whole, and one that comes last would run alone."""
    rank = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))  # stable: all else stays in its order


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Says at the very end what was not run, by its cause, and what would run it."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    causes = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    left_out = [name for name in ("slow", "faults") if f"not {name}" in (config.option.markexpr or "")]
    if causes or left_out:
        terminalreporter.section("not run")
    for cause, count in sorted(causes.items()):
        terminalreporter.line(f"{count} skipped: {cause}")
    for name in left_out:
        terminalreporter.line(f"those marked `{name}`: `make test-{name}` runs them")


CORPUS = [
    "Once upon a time a small cat sat on a soft mat and sang a silly song.",
    "Tim took the tall tree to town, and the town thanked Tim.",
    "A brave bear bought big blue balloons; Anna ate an apple.",
    "The quick brown fox jumps over the lazy dog, again and again.",
]


def build_tiny_model(folder: Path, architecture: str = "llama", pad_is_eos: bool = False, seed: int = 0) -> Path:
    """Writes a random causal LM of some 30,000 parameters and its own byte-level BPE; returns the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>"] if pad_is_eos else ["<|endoftext|>", "<|pad|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=specials[0], bos_token=specials[0], pad_token=specials[-1], padding_side="left"
    )
    sizes: dict[str, dict[str, object]] = {
        "llama": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        },
        "qwen2": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "gpt_neo": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 1]], "window_size": 16, "intermediate_size": 64,
        },
    }  # fmt: skip
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id, **sizes[architecture],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _games(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Text games are made once for all tests, in all processes that share the tests, whose children inherit the name."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYRLHF_CACHE", str(shared / "games"))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 30,000 parameters with a pad token of its own."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def own_environment() -> Iterator[None]:
    """Lightning and DeepSpeed write ranks and ports into the environment; other tests must not inherit them."""
    kept = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster with 16 logical CPUs for all tests of the session."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000
        )
    yield
    ray.shutdown()
