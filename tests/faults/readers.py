"""Every reader of what somebody else may have written, each with a sound file made by the package's own writers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rayrlhf import report
from rayrlhf.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from rayrlhf.checkpoint import Manifest, read_manifest
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.corpus import read_documents
from rayrlhf.dumps import BATCH, read_dump, write_dump
from rayrlhf.errors import ConfigError
from rayrlhf.evaluation_results import EVALUATION, notes, read_evaluation, table_rows, write_evaluation
from rayrlhf.game_report import evaluation_table
from rayrlhf.learner_state import STATE_FILE, read_version, write_state
from rayrlhf.metrics import MetricsLog, read_metrics
from rayrlhf.play.transcripts import human_actions, preference_rows, read_transcript, sft_rows
from rayrlhf.plugin_cli import parsed_parameters
from rayrlhf.preferences.formats.content import ReadOptions
from rayrlhf.preferences.label_check import check
from rayrlhf.preferences.label_text import check_lines
from rayrlhf.preferences.loop_manifest import MANIFEST, STAGES, Round
from rayrlhf.preferences.loop_report import round_figures
from rayrlhf.preferences.loop_report import verdict as loop_verdict
from rayrlhf.preferences.project import CONFIG, ProjectConfig, load_project_config
from rayrlhf.preferences.store import FILE_NAME, RatingStore
from rayrlhf.prompt_files import read_file
from rayrlhf.report_alarms import alarm_table, alarms_of
from rayrlhf.reward_models.sidecar import SIDECAR, Sidecar, read_sidecar, write_sidecar
from rayrlhf.reward_models.text_format import TextFormat
from rayrlhf.run_folder import RunFolder
from rayrlhf.summary import read_history, summarise
from rayrlhf.tune.folder import SweepFolder, read_ending
from rayrlhf.tune.pbt import last_values
from rayrlhf.tune.results import read_sweep
from rayrlhf.tune.settings import settings_of
from rayrlhf.tune.sweep_config import load_sweep
from rayrlhf.types import Weights
from tests.label_files import EXAMPLES, data_of, full_store
from tests.sweep_folders import TrialPlan, alarm, climb, write_sweep
from tests.test_alarms import batch
from tests.test_examples import move
from tests.test_examples import write as write_moves
from tests.test_report import evaluation, game, game_metrics

LAYOUT = {"learner.ranks": 1, "learner.zero_stage": 0}


@dataclass(frozen=True, slots=True)
class Reader:
    """One reader: its file, sound, and what reads it and all that follows from it, up to the text a person sees."""

    file: Path
    read: Callable[[], object]


NAMES = (
    "config", "overrides", "parameters", "prompts", "prompt lines", "documents",
    *(f"labels {name}" for name in EXAMPLES), "transcript", "run's config", "metrics", "samples", "alarms", "sessions",
    "evaluation", "dump", "manifest", "learner state", "sidecar", "sweep", "trials", "trial's end", "exploits",
    "search space", "project", "loop manifest", "store",
)  # fmt: skip


def readers(folder: Path) -> dict[str, Reader]:
    """All readers by name, their files in `folder`."""
    return {
        **_configs(folder / "configs"),
        **_texts(folder / "texts"),
        **_run(folder / "run"),
        **_kept(folder / "kept"),
        **_sweep(folder),
        **_project(folder / "project"),
    }


def _configs(folder: Path) -> dict[str, Reader]:
    folder.mkdir()
    config, words, parameters = folder / "my.yaml", folder / "overrides", folder / "parameters"
    config.write_text(dump_config(RunConfig()))
    words.write_text("rollout.workers=4\nreward.0.weight=0.5\nalgorithm.kl.coef=1e-3\nenvironment.prompts.text=")
    parameters.write_text('letter=e\ntarget=20\nwords=["a", {"b": null}]')

    def overridden() -> RunConfig:
        return load_config(None, words.read_text(errors="surrogateescape").split("\n"))

    def parsed() -> dict[str, object]:
        return parsed_parameters(parameters.read_text(errors="surrogateescape").split("\n"), ConfigError)

    return {
        "config": Reader(config, lambda: load_config(str(config))),
        "overrides": Reader(words, overridden),
        "parameters": Reader(parameters, parsed),
    }


def _texts(folder: Path) -> dict[str, Reader]:
    folder.mkdir()
    prompts, lines, documents = folder / "p.jsonl", folder / "p.txt", folder / "d.jsonl"
    rows = [{"prompt": "Once"}, {"prompt": [{"role": "user", "content": "Hi"}]}, {"prompt": "Then", "n": 1}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines.write_text("Once\nThen\n")
    documents.write_text('{"text": "One."}\n{"text": "Two."}\n')
    found = {
        "prompts": Reader(prompts, lambda: list(read_file(prompts, "prompt"))),
        "prompt lines": Reader(lines, lambda: list(read_file(lines, "prompt"))),
        "documents": Reader(documents, lambda: read_documents([documents])),
    }
    for name in EXAMPLES:
        found[f"labels {name}"] = _labels(folder / f"{name}.json", name)
    transcript = Path(write_moves(folder, move("a", "look"), move("b", "go north", undone=True)))
    return {**found, "transcript": Reader(transcript, lambda: _transcript(transcript))}


def _labels(file: Path, name: str) -> Reader:
    file.write_bytes(data_of(name))
    return Reader(file, lambda: check_lines(check(file, ReadOptions(without_text=True, created=1.0))))


def _transcript(file: Path) -> object:
    read = read_transcript(file)
    return human_actions(read), sft_rows(read.turns), preference_rows(read.turns)


def _run(path: Path) -> dict[str, Reader]:
    """A run of a game, with an evaluation and an alarm, one iteration of three episodes."""
    config = RunConfig.model_validate({"name": path.name, "storage_path": str(path.parent)})
    random = np.random.default_rng(0)
    with RunFolder.create(config, dump_config(config)) as folder, MetricsLog(folder) as log:
        for iteration in (-1, 0):
            games = [game(random, iteration, index, 0.5) for index in range(3)]
            log.record_samples(games)
            log.record(iteration, game_metrics(random, games, 0.5, evaluated=True))
    folder.alarms.write_text("".join(json.dumps(asdict(alarm(n, "kl"))) + "\n" for n in range(2)))
    write_evaluation(path / EVALUATION, evaluation())

    def curves() -> object:
        rows, summary = read_metrics(path), summarise(path)
        return report.verdict(summary), report._tiles(summary), report._times(rows)

    def evaluated() -> object:
        read = read_evaluation(path)
        return read and (table_rows(read), notes(read), evaluation_table(read))

    return {
        "run's config": Reader(folder.config, folder.read_config),
        "metrics": Reader(folder.metrics, curves),
        "samples": Reader(folder.samples, lambda: report._samples(read_history(path, keep=[-1, 0]).at)),
        "alarms": Reader(folder.alarms, lambda: alarm_table(alarms_of(folder))),
        "sessions": Reader(folder.sessions, lambda: report._facts(folder)),
        "evaluation": Reader(path / EVALUATION, evaluated),
    }


def _kept(folder: Path) -> dict[str, Reader]:
    """Checkpoints, kept batches, models."""
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(dump_config(RunConfig()))
    dump, checkpoint = folder / "dump", folder / "000003"
    write_dump(dump, batch(), Weights(3, 99, {"w": np.ones((1, 2), np.float32)}), "low", config)
    checkpoint.mkdir()
    files = {"trainer_state.json": (2, "0" * 64), "model/config.json": (3, "1" * 64)}
    (checkpoint / CHECKPOINT_MANIFEST).write_bytes(Manifest(3, files).to_json())
    write_state(folder, 7, LAYOUT)
    write_sidecar(folder, Sidecar(0.5, TextFormat("abc", (1,), 64), normalisation={"mean": 0.0}))
    return {
        "dump": Reader(dump / BATCH, lambda: read_dump(dump)),
        "manifest": Reader(checkpoint / CHECKPOINT_MANIFEST, lambda: read_manifest(checkpoint)),
        "learner state": Reader(folder / STATE_FILE, lambda: read_version(folder, LAYOUT)),
        "sidecar": Reader(folder / SIDECAR, lambda: read_sidecar(folder)),
    }


def _sweep(storage: Path) -> dict[str, Reader]:
    trials = [TrialPlan({"algorithm.kl.coef": coef}, course=climb(9, 8), iterations=2) for coef in (0.1, 0.2)]
    path = write_sweep(storage, trials, episodes=2, base_episodes=2)
    ended, exploits = path / "trials" / "trial-000", path / "exploits.jsonl"
    exploits.write_text(
        '{"trial": "000-seed0", "from": "001-seed0", "iteration": 4, "parameters": {"optimizer.lr": 0.1}}\n'
    )
    space = storage / "space.yaml"
    space.write_text(
        "name: s\nbase: alliteration\noverrides: [iterations=2]\nspace: {optimizer.lr: 'grid:1e-4,1e-3'}\n"
    )

    def settled() -> object:
        SweepFolder(path).read_config()
        return settings_of(read_sweep(path))

    return {
        "sweep": Reader(path / "sweep.yaml", settled),
        "trials": Reader(path / "trials.jsonl", lambda: settings_of(read_sweep(path))),
        "trial's end": Reader(ended / "trial.json", lambda: read_ending(ended)),
        "exploits": Reader(exploits, lambda: last_values(exploits)),
        "search space": Reader(space, lambda: load_sweep(str(space))),
    }


def _project(folder: Path) -> dict[str, Reader]:
    folder.mkdir()
    full_store(folder).close()
    (folder / CONFIG).write_text(dump_config(ProjectConfig()))
    round_ = Round(folder, 0)
    made = {
        "sample": {"samples": 4}, "rate": {"comparisons": 3, "ties": 1, "agreement": 0.9},
        "reward_model": {"accuracy": {"share": 0.75}, "calibration_error": 0.1}, "optimise": {"reward": 1.0, "kl": 3.0},
        "evaluate": {"reward_mean": 1.0, "distinct_2": 0.5, "texts": ["a"]},
    }  # fmt: skip
    for stage in STAGES:
        round_.finish(stage, {"seed": 1}, made.get(stage, {}), 0.0)
    store = folder / FILE_NAME

    def figures() -> object:
        found = Round(folder, 0)
        return loop_verdict([round_figures(found)]) if found.finished else None

    def stored() -> object:
        for name in ("-wal", "-shm"):
            shutil.rmtree(f"{store}{name}", ignore_errors=True)
            if os.path.exists(f"{store}{name}"):
                os.remove(f"{store}{name}")
        with RatingStore(store) as opened:
            return opened.items(), opened.history(), opened.meta()

    return {
        "project": Reader(folder / CONFIG, lambda: load_project_config(folder)),
        "loop manifest": Reader(round_.folder / MANIFEST, figures),
        "store": Reader(store, stored),
    }
