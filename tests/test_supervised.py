"""Next-token training: packing, data order, equality with a plain PyTorch loop, kills and resumes, bad input."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrlhf.corpus import block_order, pack, read_documents, split_documents, token_stream
from rayrlhf.errors import (
    CheckpointError,
    ConfigError,
    LearnerError,
    ModelError,
    PromptError,
    RunFolderError,
    StorageError,
    UserError,
)
from rayrlhf.next_token import TRAINING_BLOCKS, VALIDATION_BLOCKS, build, training_rows
from rayrlhf.next_token_data import prepare_blocks
from rayrlhf.policy import resolve_model
from rayrlhf.sft_cli import parse_architecture, sft
from rayrlhf.stories import generate_stories
from rayrlhf.supervised import (
    ProgressAndCheckpoints,
    SupervisedModule,
    SupervisedSettings,
    as_config,
    cosine_with_warmup,
    faults,
    train_on_worker,
)
from rayrlhf.supervised_run import raise_fault, supervised_run, work_folder
from rayrlhf.tokenizer_training import EOS, new_llama, train_tokenizer

ARCHITECTURE = "hidden=32,layers=1,heads=2,kv_heads=2,mlp=64,context=64"
STORIES, SHARE, STEPS, SEED = 200, 0.05, 24, 5
COMMAND: dict[str, Any] = {
    "new": ARCHITECTURE, "vocabulary": 300, "stories": STORIES, "validation_share": SHARE, "steps": STEPS,
    "checkpoint_every": 6, "batch_blocks": 8, "block_size": 32, "lr": 3e-3, "warmup_steps": 5, "weight_decay": 0.1,
    "max_grad_norm": 0.05, "seed": SEED, "device": "cpu",
}  # fmt: skip


def run(output: Path, **changes: Any) -> Path:
    """`rayrlhf sft OUTPUT` with COMMAND's options and the given changes."""
    defaults: dict[str, Any] = {
        "text": None, "model": None, "forward_blocks": None, "workers": 1, "zero_stage": 2, "precision": "auto",
        "resume": False,
    }  # fmt: skip
    sft(output, **{**defaults, **COMMAND, **changes})
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def settings(**changes: Any) -> SupervisedSettings:
    values: dict[str, Any] = {
        "model": "", "steps": 10, "lr": 1e-3, "examples_per_step": 12, "examples_per_forward": 2, "tokens_per_example": 8,
        "workers": 3,
        "zero_stage": 2, "seed": 1, "checkpoint_every": 4, "warmup_steps": 2, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "precision": "32-true", "device": "cpu",
    }  # fmt: skip
    return SupervisedSettings(**{**values, **changes})


# --- data


def test_documents_are_separated_by_eos_and_cut_into_blocks(tiny_model: Path) -> None:
    """SPEC WP-5: EOS between documents; and each token of the stream but the first is a target exactly once."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    documents = ["A cat sat.", "Two dogs ran.", "An owl."]
    stream = token_stream(documents, tokenizer)
    eos = tokenizer.eos_token_id
    assert stream[0] == stream[-1] == eos
    assert (stream == eos).sum() == 4
    assert tokenizer.decode(stream) == EOS + EOS.join(documents) + EOS
    blocks = pack(stream, 4)
    assert blocks.shape == ((len(stream) - 1) // 4, 5)
    assert np.array_equal(blocks[:, 1:].reshape(-1), stream[1 : 1 + blocks[:, 1:].size])
    assert np.array_equal(blocks[1:, 0], blocks[:-1, -1])
    assert pack(stream[:4], 4).shape == (0, 5)


def test_a_block_order_is_a_reshuffled_pass_after_pass_wherever_it_is_entered() -> None:
    order = block_order(7, range(21), seed=2)
    passes = order.reshape(3, 7)
    assert [sorted(data_pass) for data_pass in passes.tolist()] == [list(range(7))] * 3
    assert not np.array_equal(passes[0], passes[1])
    for start in range(21):
        assert np.array_equal(block_order(7, range(start, 21), seed=2), order[start:])
    assert not np.array_equal(block_order(7, range(21), seed=3), order)


def test_workers_share_each_step_and_stretches_join() -> None:
    """Whatever the workers and the accumulation, a step sees the same blocks; the last stretch is the shorter one."""
    alone = settings(workers=1, examples_per_forward=12)
    assert (alone.accumulation, settings().accumulation, alone.stretches) == (1, 2, 3)
    whole = block_order(50, range(120), seed=1).reshape(10, 12)
    for stretch in range(3):
        steps = alone.steps_of_stretch(stretch)
        assert np.array_equal(training_rows(alone, 50, stretch, 0).reshape(-1, 12), whole[steps.start : steps.stop])
        dealt = [training_rows(settings(), 50, stretch, rank).reshape(len(steps), -1) for rank in range(3)]
        assert np.array_equal(np.sort(np.concatenate(dealt, 1)), np.sort(whole[steps.start : steps.stop]))
    assert len(alone.steps_of_stretch(2)) == 2


def test_documents_are_split_evenly_and_a_single_one_is_cut() -> None:
    training, validation = split_documents([str(i) for i in range(100)], 0.1)
    assert validation == ["9", "19", "29", "39", "49", "59", "69", "79", "89", "99"]
    assert len(training) == 90
    training, validation = split_documents(["one two three four five six seven eight nine ten"], 0.1)
    assert (training, validation) == (["one two three four five six seven eight "], ["nine ten"])
    assert split_documents(["a", "b"], 0.01) == (["a"], ["b"])


def test_files_and_folders_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(f"first\n{EOS}\nsecond\n\n{EOS}  \n")
    (tmp_path / "a.jsonl").write_text('{"text": "from a"}\n\n{"text": "line\\u2028break"}\n')
    (tmp_path / "c.NDJSON").write_text('{"text": "from c"}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    assert read_documents([tmp_path]) == ["from a", "line\u2028break", "first", "second", "from c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt: no such file or folder"),
        ("empty.txt", b"", "empty.txt: the file has no text"),
        ("blank.txt", b"  \n\n", "blank.txt: the file has no text"),
        ("latin.txt", b"caf\xe9", r"latin.txt:1: not UTF-8 text"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"\n', "bad.jsonl:2: not JSON"),
        ("other.jsonl", b'{"prompt": "a"}\n', 'other.jsonl:1: expected an object with the document in "text"'),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message.replace("(", r"\(")):
        run(tmp_path / "out", text=[tmp_path / name], stories=0)
    assert not work_folder(tmp_path / "out").exists(), "the next try would be refused"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    with pytest.raises(PromptError, match=r"the folder has no \.txt or \.jsonl or "):
        run(tmp_path / "out", text=[tmp_path / "texts"], stories=0)


# --- options


def test_the_learning_rate_rises_then_follows_half_a_cosine() -> None:
    factors = [cosine_with_warmup(step, 4, 12, floor=0.1) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert math.isclose(factors[8], 0.55)
    assert factors[11] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert cosine_with_warmup(0, 0, 1) == 1.0


def test_an_architecture_is_parsed() -> None:
    assert parse_architecture("default")["layers"] == 4
    assert parse_architecture("layers=2, hidden=64")["hidden"] == 64


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"stories": 0}, ConfigError, "nothing to train on"),
        ({"model": "tiny-stories"}, ConfigError, "one of --model"),
        ({"new": None}, ConfigError, "one of --model"),
        ({"new": "width=3"}, ConfigError, "width=3: unknown; the keys are hidden, layers"),
        ({"new": "layers=two"}, ConfigError, "layers=two: give a positive whole number"),
        ({"new": "hidden=30,heads=4,kv_heads=4"}, ModelError, "heads must divide hidden"),
        ({"vocabulary": 100}, ModelError, "--vocabulary 100 is too small"),
        ({"workers": 3}, ConfigError, "--batch-blocks 8 cannot be dealt evenly to --workers 3"),
        ({"block_size": 65}, ConfigError, "--block-size 65 is more than the context=64"),
        ({"lr": 0.0}, ConfigError, "--lr 0 must be a positive"),
        ({"lr": math.inf}, ConfigError, "--lr inf must be a positive"),
        ({"device": "tpu"}, ConfigError, "--device tpu"),
        ({"precision": "fp16"}, ConfigError, "--precision fp16"),
        ({"stories": 2}, PromptError, "the validation part has .* tokens|the training part has .* tokens"),
        ({"new": None, "model": "./no-such-model"}, ModelError, "no-such-model: no such folder"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, changes: dict[str, Any], error: type[UserError], message: str) -> None:
    more = {"block_size": 64, "validation_share": 0.5} if changes == {"stories": 2} else {}
    if more:
        (tmp_path / "short.txt").write_text("only a few words")
        changes = {"stories": 0, "text": [tmp_path / "short.txt"]}
    with pytest.raises(error, match=message):
        run(tmp_path / "out", **{**changes, **more})
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Ray Train resumes a run of the same name without a word: here only --resume does (and only an unfinished one)."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="used exists"):
        run(tmp_path / "used")
    with pytest.raises(RunFolderError, match="used exists"):
        run(tmp_path / "used", resume=True)
    work_folder(tmp_path / "out").mkdir()
    with pytest.raises(RunFolderError, match=r"out\.training holds an unfinished run: give --resume"):
        run(tmp_path / "out")
    assert (tmp_path / "used" / "precious.txt").read_text() == "mine"


# --- whole runs


def plain_loop() -> dict[str, torch.Tensor]:
    """The same training in plain PyTorch: no accumulation, no ranks, no DeepSpeed."""
    training, _ = split_documents(list(generate_stories(STORIES, SEED)), SHARE)
    architecture = parse_architecture(ARCHITECTURE)
    tokenizer = train_tokenizer(training, 300, architecture["context"])
    model = new_llama(tokenizer, architecture, SEED)
    blocks = torch.from_numpy(pack(token_stream(training, tokenizer), 32))
    order = block_order(len(blocks), range(STEPS * 8), SEED).reshape(STEPS, 8)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * cosine_with_warmup(step, 5, STEPS)
        batch = blocks[order[step]]
        logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05, "the clip must bite, or it proves nothing"
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return plain_loop()


@pytest.fixture(scope="module")
def sharded(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers, ZeRO 3, two micro-batches a step, uninterrupted."""
    return run(tmp_path_factory.mktemp("sharded") / "out", workers=2, zero_stage=3, forward_blocks=2)


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_accumulation_and_a_biting_clip_equal_a_plain_loop(
    ray_cluster: None, tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    """Accumulated losses are not divided twice, the clip is the one asked for, and data come unshuffled."""
    assert_close(weights(run(tmp_path / "out", forward_blocks=4)), expected)


def test_zero_3_on_two_workers_equals_a_plain_loop(sharded: Path, expected: dict[str, torch.Tensor]) -> None:
    """Initial weights survive sharding, and the saved model is gathered whole; nothing else stays."""
    assert_close(weights(sharded), expected)
    assert [path.name for path in sharded.parent.iterdir()] == ["out"]
    assert len({file.stat().st_mode for file in sharded.iterdir()}) == 1, "weights are as readable as the config"
    model = AutoModelForCausalLM.from_pretrained(sharded)
    tokenizer = AutoTokenizer.from_pretrained(sharded)
    assert tokenizer.padding_side == "left"
    summary = json.loads((sharded / "training.json").read_text())
    _, validation = split_documents(list(generate_stories(STORIES, SEED)), SHARE)
    blocks = torch.from_numpy(pack(token_stream(validation, tokenizer), 32))
    with torch.no_grad():
        logits = model(input_ids=blocks[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).item()
    assert summary["validation_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(ray_cluster: None, tmp_path: Path, sharded: Path) -> None:
    """SIGKILL of rank 0 in the middle of a stretch: the run resumes from its checkpoint and ends with the same bits."""
    progress = work_folder(tmp_path / "out") / "progress.jsonl"
    starts: list[dict[str, Any]] = []

    def rows() -> list[dict[str, Any]]:
        """The whole lines so far."""
        try:
            return [json.loads(line) for line in progress.read_text().split("\n")[:-1]]
        except FileNotFoundError:  # not yet, or no longer
            return []

    def kill_once() -> None:
        # Ray Train takes note of a checkpoint at its next poll: in the last stretch an earlier one is sure.
        while not any(row["step"] > 18 for row in rows()):
            time.sleep(0.005)
        starts.append(next(row for row in rows() if "pid" in row))
        os.kill(starts[0]["pid"], signal.SIGKILL)
        while len(starts) < 2:
            starts.extend([row for row in rows() if "pid" in row][1:2])
            time.sleep(0.01)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    output = run(tmp_path / "out", workers=2, zero_stage=3, forward_blocks=2)
    killer.join(timeout=10)
    assert len(starts) == 2
    assert starts[0]["pid"] != starts[1]["pid"]
    assert starts[1]["step"] in (6, 12, 18)
    killed, uninterrupted = weights(output), weights(sharded)
    assert all(torch.equal(killed[name], value) for name, value in uninterrupted.items())


@pytest.mark.slow
def test_a_killed_driver_is_resumed(tmp_path: Path, sharded: Path) -> None:
    """`kill -9` of the command, a resume that asks for something else, then one that asks for the same."""
    output = tmp_path / "out"
    options = {**COMMAND, "workers": 2, "zero_stage": 3, "forward_blocks": 2}
    arguments = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "rayrlhf.sft_cli", str(output), *arguments]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1].split("/")[0]) > 18:
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    time.sleep(8)  # a local cluster ends within 8 s of its driver
    with pytest.raises(CheckpointError, match=r"--resume continues .* lr: 0.003 before, 0.1 now"):
        run(output, workers=2, zero_stage=3, forward_blocks=2, lr=0.1, resume=True)
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "training from step 0" not in done.stdout
    resumed, uninterrupted = weights(output), weights(sharded)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())


@pytest.mark.slow
def test_training_continues_from_a_model(ray_cluster: None, tmp_path: Path, tiny_model: Path) -> None:
    """`--model`: trains on from it, at ZeRO stage 0, on text of one's own."""
    text = tmp_path / "text.txt"
    text.write_text("Tim took the tall tree to town, and the town thanked Tim. " * 60)
    output = run(
        tmp_path / "out", new=None, model=str(tiny_model), stories=0, text=[text], zero_stage=0, checkpoint_every=24,
        lr=1e-2, max_grad_norm=1.0,
    )  # fmt: skip
    before, after = weights(tiny_model), weights(output)
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert json.loads((output / "training.json").read_text())["validation_loss"] < 3.0 < math.log(320)


def test_a_loss_that_is_not_finite_stops_the_run_at_once(ray_cluster: None, tmp_path: Path, tiny_model: Path) -> None:
    """It would come back after every restart: no restart, one message, and no model."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    state = weights(tiny_model)
    state["model.norm.weight"][3] = 3e38
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LearnerError, match=r"the loss is (nan|inf) at step 1: lower --lr"):
        run(tmp_path / "out", new=None, model=str(broken))
    progress = (work_folder(tmp_path / "out") / "progress.jsonl").read_text()
    assert len([line for line in progress.splitlines() if "pid" in line]) == 1
    assert not (tmp_path / "out").exists()


def test_a_validation_part_of_less_than_a_block_gets_a_larger_share(tmp_path: Path) -> None:
    """2 % of these documents are a few tokens; the smallest share that was tried and fills a block is taken, and said."""
    said: list[str] = []
    documents = [f"Once upon a time there was a sheep, and its number was {number}." for number in range(40)]
    asked = settings(tokens_per_example=64, model=resolve_model("tiny-stories"))
    prepare_blocks(tmp_path, asked, said.append, lambda: documents, 0.02, None)
    assert len(np.load(tmp_path / VALIDATION_BLOCKS)) >= 1
    assert len(np.load(tmp_path / TRAINING_BLOCKS)) >= 1
    assert any(line.startswith("a share of 0.02 is less than a block: 0.0") for line in said)
    with pytest.raises(PromptError, match=r"(validation|training) part has fewer tokens"):
        prepare_blocks(tmp_path, asked, said.append, lambda: documents[:2], 0.02, None)


def test_a_checkpoint_that_would_run_code_is_refused_and_a_sound_one_is_taken(tmp_path: Path) -> None:
    """DeepSpeed's files are pickles: after a worker's restart too they are read by the list of what may be in them."""
    command = [sys.executable, "-m", "tests.supervised_checkpoint", tmp_path]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    assert "resumed to step 4" in ended.stdout
    assert "nothing in it was run" in ended.stdout
    assert not (tmp_path / "ran").exists()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file takes more than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda work: save_file({"weight": torch.ones(100)}, work / "model.safetensors"),
        lambda work: np.savez(work / "samples.npz", np.ones(100)),
        lambda work: (work / "model.safetensors").write_bytes(bytes(101)),
    ],
)
def test_a_disk_that_is_full_while_data_is_laid_down_is_a_message(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    def prepare(work: Path, asked: SupervisedSettings, show: Callable[[str], None]) -> SupervisedSettings:
        write(work)
        return asked

    output = tmp_path / "model"
    with full_disk(), pytest.raises(StorageError, match=rf"{work_folder(output)}\S* could not be written: ") as raised:
        supervised_run(output, settings(workers=1), build, prepare, {}, False)
    assert "make room there" in str(raised.value)
    assert f"are free on the disk of {tmp_path}" in str(raised.value)
    assert not work_folder(output).exists()


def test_a_disk_that_is_full_at_a_checkpoint_is_a_message(tmp_path: Path) -> None:
    """PyTorch has an error of its own for it."""

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True)
        torch.save(torch.ones(100), path)

    trainer: Any = SimpleNamespace(global_step=4, global_rank=0, save_checkpoint=save)
    module = SupervisedModule(torch.nn.Linear(1, 1), settings())
    with full_disk(), pytest.raises(StorageError, match="could not be written: No space left on device"):
        ProgressAndCheckpoints(settings(), tmp_path).on_train_epoch_end(trainer, module)


def build_broken(asked: SupervisedSettings, work: Path) -> SupervisedModule:
    raise LearnerError("no weights, \udcff")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_fault_of_any_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Not of the first alone; those that wait for it end with it, and its restart repeats nothing."""
    context = SimpleNamespace(get_world_rank=lambda: workers - 1, get_world_size=lambda: workers)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    config = as_config(settings(workers=workers), tmp_path, build_broken)
    with pytest.raises(LearnerError) if workers > 1 else contextlib.nullcontext():
        train_on_worker(config)
    assert [file.name for file in faults(tmp_path)] == [f"fault-{workers - 1:06d}.txt"]
    train_on_worker({**config, "build": None})
    with pytest.raises(LearnerError, match=r"no weights, \udcff \(its state stays in"):
        raise_fault(tmp_path)
