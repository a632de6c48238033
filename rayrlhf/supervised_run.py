"""The driver of next-token training: lays down model and data in a work folder, runs Ray Train, moves the model into place.

While a run lasts, everything lies in `OUTPUT.training/` beside the output, on storage that every node sees: the packed
data, Ray Train's checkpoints, progress lines. The finished model is renamed to `OUTPUT` and the work folder removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rayrlhf.corpus import pack, split_documents, token_stream
from rayrlhf.durable import replace_file
from rayrlhf.errors import (
    CheckpointError,
    InstallationError,
    LearnerError,
    ModelError,
    PromptError,
    RunFolderError,
    UserError,
)
from rayrlhf.supervised import (
    FAULT,
    MODEL,
    PROGRESS,
    TRAINING_BLOCKS,
    VALIDATION_BLOCKS,
    SupervisedSettings,
    as_config,
    train_on_worker,
)  # fmt: skip
from rayrlhf.tokenizer_training import new_llama, train_tokenizer

_REQUEST, _START = "request.json", "start"
_OBJECT_STORE_BYTES = 500_000_000  # weights and data go through files
_MAX_FAILURES = 3


def work_folder(output: Path) -> Path:
    """Where a run towards `output` keeps its state until it ends."""
    return output.with_name(output.name + ".training")


def supervised_run(
    output: Path,
    settings: SupervisedSettings,
    documents: Callable[[], Sequence[str]],
    request: Mapping[str, Any],
    validation_share: float,
    new: Mapping[str, int] | None,
    resume: bool,
    show: Callable[[str], None] = print,
) -> float:
    """Trains a model and leaves it as a `from_pretrained` folder at `output`; returns its validation loss in nats a token.

    `documents` is called once, when the run is new. `request` is what was asked for, JSON-serialisable: a resumed run
    must ask for the same. `new` (keys of `new_llama` and `vocabulary`) starts from a new model instead of
    `settings.model`. Dead workers restart from the last checkpoint.

    Raises:
        RunFolderError: `output` or its work folder is in use, and `resume` was not asked for.
        CheckpointError: the run to resume asked for something else.
        PromptError: there are too few tokens for one block of training and one of validation.
        ModelError: the model or tokenizer cannot be used.
        LearnerError: training failed for good.
    """
    work = work_folder(output.resolve())
    _check_folders(output, work, resume)
    if output.exists():
        show(f"{output} is finished: nothing to resume")
        shutil.rmtree(work, ignore_errors=True)
        return json.loads((output / "training.json").read_text())["validation_loss"]
    work.mkdir(parents=True, exist_ok=True)
    try:
        settings = _prepare(work, settings, documents, request, validation_share, new, show)
    finally:
        if not (work / _REQUEST).is_file():  # nothing trained yet: the next try shall not need --resume
            shutil.rmtree(work)
    loss = _fit(settings, work, show)
    model = work / MODEL
    settings = replace(settings, model=str(request.get("model") or "new"))
    summary = {"request": request, "settings": asdict(settings), "validation_loss": loss}
    replace_file(model / "training.json", [json.dumps(summary, indent=1, default=str).encode()])
    model.rename(output)
    shutil.rmtree(work)
    return loss


def _check_folders(output: Path, work: Path, resume: bool) -> None:
    if output.exists() and not (resume and (output / "training.json").is_file()):
        raise RunFolderError(f"{output} exists: choose another folder, or move this one away")
    if work.exists() and not resume:
        raise RunFolderError(
            f"{work} holds an unfinished run: give --resume to continue it, or remove it to begin anew"
        )


def _prepare(
    work: Path,
    settings: SupervisedSettings,
    documents: Callable[[], Sequence[str]],
    request: Mapping[str, Any],
    validation_share: float,
    new: Mapping[str, int] | None,
    show: Callable[[str], None],
) -> SupervisedSettings:
    """Lays down model and packed data, once; the file that says what was asked for comes last. Returns the settings."""
    if new is not None:
        settings = replace(settings, model=str(work / _START))
    asked = work / _REQUEST
    if asked.is_file():
        before, now = json.loads(asked.read_text()), json.loads(json.dumps(request, default=str))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            differences = "; ".join(f"{key}: {before.get(key)} before, {now.get(key)} now" for key in changed)
            raise CheckpointError(f"--resume continues {work} as it was begun, but {differences}")
        return settings
    corpus = documents()
    training, validation = split_documents(corpus, validation_share)
    if new is None:
        tokenizer = _load_tokenizer(settings)
    else:
        tokenizer = train_tokenizer(training, new["vocabulary"], new["context"])
        model = new_llama(tokenizer, dict(new), settings.seed)
        model.save_pretrained(work / _START)
        tokenizer.save_pretrained(work / _START)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        show(f"new model: {parameters:,} parameters, {len(tokenizer):,} tokens in its vocabulary")
    for name, part, share in ((TRAINING_BLOCKS, training, "training"), (VALIDATION_BLOCKS, validation, "validation")):
        blocks = _packed(part, tokenizer, settings.block_size, share)
        np.save(work / name, blocks.astype(np.int32))
        show(f"{share}: {len(part):,} documents, {blocks[:, 1:].size:,} tokens in {len(blocks):,} blocks")
    replace_file(asked, [json.dumps(request, default=str).encode()])
    return settings


def _load_tokenizer(settings: SupervisedSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the model to continue from, checked together with its config. Raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        config = AutoConfig.from_pretrained(settings.model).get_text_config()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"--model {settings.model} does not load: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"--model {settings.model}: its tokenizer has no end-of-sequence token to put between documents"
        )
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and settings.block_size > context:
        raise ModelError(f"--block-size {settings.block_size} is more than the {context} tokens {settings.model} takes")
    return tokenizer


def _packed(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, share: str) -> np.ndarray:
    stream = token_stream(documents, tokenizer)
    blocks = pack(stream, block_size)
    if not len(blocks):
        raise PromptError(
            f"the {share} part has {len(stream) - 1} tokens, fewer than one block of {block_size}: give more text, "
            f"{'a larger --validation-share, ' if share == 'validation' else ''}or a smaller --block-size"
        )
    return blocks


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or a Ray job names, or starts one on this machine and stops it at the end."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers + 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _fit(settings: SupervisedSettings, work: Path, show: Callable[[str], None]) -> float:
    """Runs Ray Train to its end; returns the validation loss of the last step."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # of 2 s: polls of a controller on this machine
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = settings.device == "cuda"
    with _cluster(settings.workers):
        _check_resources(settings.workers, cuda)
        environment = {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": settings.device}
        if not cuda:
            environment["OMP_NUM_THREADS"] = "1"  # a CPU's speed comes from several one-thread processes
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config=as_config(settings, work),
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=cuda),
            run_config=RunConfig(  # type: ignore[call-arg]  # annotated as version 1, but it is version 2
                # A run of this name in this storage is resumed without a word: only --resume lets us come here twice.
                name="ray",
                storage_path=str(work),
                # The default for a controller that cannot start, for lack of resources, is to try without end.
                failure_config=FailureConfig(
                    max_failures=_MAX_FAILURES,
                    controller_failure_limit=0,  # type: ignore[call-arg]
                ),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                worker_runtime_env={"py_executable": shlex.quote(sys.executable), "env_vars": environment},
            ),
        )
        (work / FAULT).unlink(missing_ok=True)
        with _shown(work / PROGRESS, settings.steps, show):
            try:
                result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise _reason(error, work) from error
    if (work / FAULT).is_file():
        raise LearnerError(f"{(work / FAULT).read_text()} (its state stays in {work}: remove it to begin anew)")
    assert result.metrics is not None
    return float(result.metrics["validation_loss"])


def _check_resources(workers: int, cuda: bool) -> None:
    resource = "GPU" if cuda else "CPU"
    total = ray.cluster_resources().get(resource, 0)
    if total < workers:
        raise InstallationError(f"--workers {workers} asks for {workers} {resource}s; the cluster has {total:g}")


def _reason(error: BaseException, work: Path) -> UserError:
    """What a failed run tells its user: the worker's own UserError, or the last line of its traceback."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "cause", failure)
        for candidate in (failure, cause, failure.__cause__):
            if isinstance(candidate, UserError):
                return candidate
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return LearnerError(f"training failed for good: {last} (its state stays in {work}; --resume tries again)")


@contextlib.contextmanager
def _shown(path: Path, steps: int, show: Callable[[str], None]) -> Iterator[None]:
    """Shows the lines that rank 0 appends to `path`, until the block ends."""
    stop = threading.Event()
    at = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        nonlocal at
        while True:
            ended = stop.wait(0.5)
            if path.exists():
                with open(path) as file:
                    file.seek(at)
                    while (line := file.readline()).endswith("\n"):
                        show(_progress_line(json.loads(line), steps))
                        at = file.tell()
            if ended:
                return

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _progress_line(values: Mapping[str, float], steps: int) -> str:
    if "pid" in values:
        return f"training from step {int(values['step'])} of {steps}"
    step = f"step {int(values['step']):>{len(str(steps))}}/{steps}"
    if "validation_loss" in values:
        return f"{step}  validation loss {values['validation_loss']:.4f}  perplexity {values['perplexity']:.3f}"
    return f"{step}  loss {values['loss']:.4f}  {values['tokens_per_s']:,.0f} tokens/s"
