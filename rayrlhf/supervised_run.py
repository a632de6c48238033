"""The driver of supervised training: has model and data laid down in a work folder, runs Ray Train, moves the model on.

While a run lasts, everything lies in `OUTPUT.training/` beside the output, on storage that every node sees: the
data, Ray Train's checkpoints, progress lines. The finished model is renamed to `OUTPUT` and the work folder removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from rayrlhf.cluster import actor_environment, ray_cluster
from rayrlhf.errors import CheckpointError, InstallationError, LearnerError, RunFolderError, UserError
from rayrlhf.files import check_plain, replace_file, saving
from rayrlhf.reading import json_value, read_record, typed_value
from rayrlhf.room import check_start
from rayrlhf.supervised import MODEL, PROGRESS, Build, SupervisedSettings, as_config, faults, train_on_worker
from rayrlhf.worker_death import GONE, SUPERVISED_MEMORY, death_of

SUMMARY = "training.json"
_REQUEST, _SETTINGS = "request.json", "settings.json"
_OBJECT_STORE_BYTES = 500_000_000  # weights and data go through files
_MAX_FAILURES = 3


def work_folder(output: Path) -> Path:
    """Where a run towards `output` keeps its state until it ends."""
    return output.with_name(output.name + ".training")


Prepare = Callable[[Path, SupervisedSettings, Callable[[str], None]], SupervisedSettings]
"""Lays model and data down in the work folder and returns the settings to train with; called once, for a new run."""
Finish = Callable[[Path], Mapping[str, Any]]
"""Called with the folder of the trained model before it goes to its place; returns what is told of it."""


def supervised_run(
    output: Path,
    settings: SupervisedSettings,
    build: Build,
    prepare: Prepare,
    request: Mapping[str, Any],
    resume: bool,
    show: Callable[[str], None] = print,
    finish: Finish = lambda model: {},
) -> dict[str, Any]:
    """Trains a model and leaves its folder at `output`; returns what is known of it: `training.json` of that folder.

    `request` is what was asked for, JSON-serialisable: a resumed run must ask for the same. Dead workers restart from
    the last checkpoint.

    Raises:
        RunFolderError: `output` or its work folder is in use, and `resume` was not asked for.
        CheckpointError: the run to resume asked for something else.
        LearnerError: training failed for good.
        StorageError: the disk takes no more.
        UserError: of `prepare` and `finish`.
    """
    check_start({"--workers": settings.workers})
    work = work_folder(output.resolve())
    _check_folders(output, work, resume)
    if output.exists():
        show(f"{output} is finished: nothing to resume")
        shutil.rmtree(work, ignore_errors=True)
        known = read_record(output / SUMMARY, dict[str, Any], RunFolderError, "train the model again", finite=False)
        return known
    work.mkdir(parents=True, exist_ok=True)
    try:
        with saving(work):
            settings = _prepare(work, settings, prepare, request, show)
    finally:
        if not (work / _REQUEST).is_file():  # nothing trained yet: the next try shall not need --resume
            shutil.rmtree(work)
    loss = _fit(settings, work, build, show)
    model = work / MODEL
    told = replace(settings, model=str(request.get("model") or "new"))
    with saving(work):
        summary = {"request": request, "settings": asdict(told), "validation_loss": loss, **finish(model)}
    replace_file(model / SUMMARY, [json.dumps(summary, indent=1, default=str).encode()])
    model.rename(output)
    shutil.rmtree(work)
    return summary


_ANEW = "remove its folder to begin anew"


def _check_folders(output: Path, work: Path, resume: bool) -> None:
    if output.exists() and not (resume and (output / SUMMARY).is_file()):
        raise RunFolderError(f"{output} exists: choose another folder, or move this one away")
    if work.exists() and not resume:
        raise RunFolderError(
            f"{work} holds an unfinished run: give --resume to continue it, or remove it to begin anew"
        )
    if work.exists():
        check_plain(work.parent, [work.name])


def _prepare(
    work: Path, settings: SupervisedSettings, prepare: Prepare, request: Mapping[str, Any], show: Callable[[str], None]
) -> SupervisedSettings:
    """Has model and data laid down, once; the file that says what was asked for comes last. Returns the settings."""
    asked = work / _REQUEST
    if asked.is_file():
        before = read_record(asked, dict[str, Any], CheckpointError, _ANEW)
        now = json_value(json.dumps(request, default=str))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            differences = "; ".join(f"{key}: {before.get(key)} before, {now.get(key)} now" for key in changed)
            raise CheckpointError(f"--resume continues {work} as it was begun, but {differences}")
        settings = read_record(work / _SETTINGS, SupervisedSettings, CheckpointError, _ANEW)
    else:
        settings = prepare(work, settings, show)
        replace_file(work / _SETTINGS, [json.dumps(asdict(settings)).encode()])
        replace_file(asked, [json.dumps(request, default=str).encode()])
    return settings


def _fit(settings: SupervisedSettings, work: Path, build: Build, show: Callable[[str], None]) -> float | None:
    """Runs Ray Train to its end; returns the validation loss of the last step, where anything was held out."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # of 2 s: polls of a controller on this machine
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = settings.device == "cuda"
    with ray_cluster(settings.workers + 1, _OBJECT_STORE_BYTES):
        _check_resources(settings.workers, cuda)
        environment = actor_environment(1, distributed=True)
        environment["env_vars"]["DS_ACCELERATOR"] = settings.device
        if cuda:
            del environment["env_vars"]["OMP_NUM_THREADS"]  # a CPU's speed comes from several one-thread processes
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config=as_config(settings, work, build),
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
                worker_runtime_env=environment,
            ),
        )
        for file in faults(work):
            file.unlink()
        with _shown(work / PROGRESS, settings.steps, show):
            try:
                result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise_fault(work)
                raise _reason(error, work) from error
    raise_fault(work)
    assert result.metrics is not None
    loss: float | None = result.metrics["validation_loss"]
    return loss


def raise_fault(work: Path) -> None:
    """Raises LearnerError where a worker met something that the user can act on."""
    for file in faults(work):
        told = file.read_text(encoding="utf-8", errors="surrogatepass")
        raise LearnerError(f"{told} (its state stays in {work}: remove it to begin anew)")


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
            if isinstance(candidate, GONE):
                died = death_of(candidate)
                return LearnerError(
                    f"training failed for good: {died}{died.advice(SUPERVISED_MEMORY)} (its state stays in {work}; "
                    "--resume tries again)"
                )
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
                        show(_progress_line(typed_value(dict[str, float], json_value(line, finite=False)), steps))
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
    if "out_of_memory" in values:
        return (
            f"process {int(values['pid'])} ran out of memory with {int(values['out_of_memory'])} examples in a forward "
            "pass: it ends, which frees it, and training goes on with half as many"
        )
    if "pid" in values:
        return f"training from step {int(values['step'])} of {steps}"
    step = f"step {int(values['step']):>{len(str(steps))}}/{steps}"
    if "validation_loss" in values:
        return f"{step}  validation loss {values['validation_loss']:.4f} nats"
    return f"{step}  loss {values['loss']:.4f}  {values['tokens_per_s']:,.0f} tokens/s"
