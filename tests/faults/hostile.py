"""Folders and files as somebody who means harm would prepare them, and the commands that read them.

An attack lays its files down on a `Ground` and gives the command line that a person would type. What it tries shows in
three places: `ran` appears where its code was run, `victim` changes where something was written through a link, and the
words of `secret` turn up in its folder where something outside of it was read.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rayrlhf.algorithm_config import SeparateValueConfig
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.config import ModelConfig
from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.dumps import KeptBatch, write_dump
from rayrlhf.metrics import MetricsLog, SampleRecord
from rayrlhf.preferences.records import Comparison, Item
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.run_folder import RunFolder
from rayrlhf.types import EpisodeScore, EpisodeSpec, Weights
from rayrlhf.value import build_value_network, write_value
from rayrlhf.weights import checksum
from tests.strangers_pickle import Runs
from tests.tiny_models import build_tiny_model

SECRET = "the words of a file outside"
VICTIM = "what was in the file before\n"
MODULE = "stranger_code"
_CODE = """
import pathlib
pathlib.Path({ran!r}).write_text("ran")
import gymnasium

class Game(gymnasium.Env):
    metadata = {{"in_process": True}}
    def reset(self, seed=None, options=None):
        return "a room", {{"commands": ("go",)}}
    def step(self, action):
        return "the end", 0.0, True, False, {{"commands": (), "won": True}}

class Reward:
    def __call__(self, trajectories):
        return [0.0 for _ in trajectories]

def valid(text):
    return True

try:
    gymnasium.register("Stranger-v0", entry_point=Game)
except Exception:
    pass
"""
_MODEL_CODE = """
import pathlib
pathlib.Path({ran!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "strangers-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an attack is laid out. `folder` is also where the command runs, as a person does who has unpacked something."""

    folder: Path
    model: Path  # a sound model

    @property
    def ran(self) -> Path:
        return self.folder.parent / "ran"

    @property
    def victim(self) -> Path:
        return self.folder.parent / "victim"

    @property
    def outside(self) -> Path:
        """A folder outside, in which nothing may appear."""
        return self.folder.parent / "outside"

    @property
    def secret(self) -> Path:
        return self.folder.parent / "secret"

    def prepare(self) -> None:
        for folder in (self.folder, self.outside):
            folder.mkdir()
        self.victim.write_text(VICTIM)
        self.secret.write_text(SECRET)
        (self.folder / f"{MODULE}.py").write_text(_CODE.format(ran=str(self.ran)))

    def run(
        self, *overrides: str, damage: Callable[[Path], object] = lambda model: None, recipe: str = "alliteration"
    ) -> Path:
        """A run with a checkpoint whose checksums are right, `damage` done to its model before."""
        own = [f"storage_path={self.folder}", "name=stranger", "rollout.max_new_tokens=4", f"model.path={self.model}"]
        config = load_config(recipe, [*own, *overrides])
        with RunFolder.create(config, dump_config(config)) as folder:
            store = CheckpointStore(folder.checkpoints, keep=2, keep_trainer_state=1)
            partial = store.begin(1)
            shutil.copytree(self.model, partial / "model")
            damage(partial / "model")
            (partial / "trainer").mkdir()
            (partial / "trainer" / "state").write_bytes(self.pickle())
            store.commit(partial, 1, {})
            with MetricsLog(folder) as log:
                log.record_samples([self.sample(-1), self.sample(0)])
                log.record(0, {"objective/score": 1.0, "objective/kl": 0.5, "time/iteration": 1.0})
        return folder.path

    def sample(self, iteration: int, **parts: float) -> SampleRecord:
        return SampleRecord(
            run="stranger", iteration=iteration, index=0, group=0, prompt="", response="a text", score=1.0,
            parts=parts or {"alliteration": 1.0}, kl=0.5, total=1.0, logprob_sum=-2.0, reference_logprob_sum=-2.5,
            length=2, finish="eos", weights_version=0,
        )  # fmt: skip

    def pickle(self) -> bytes:
        return pickle.dumps(Runs(self.ran))

    def model_code(self, model: Path) -> None:
        """Gives a model Python code of its own."""
        (model / "modeling_own.py").write_text(_MODEL_CODE.format(ran=str(self.ran)))
        classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
        _edit_json(model / "config.json", model_type="strangers-llama", architectures=["OwnModel"], auto_map=classes)

    def tokenizer_code(self, model: Path) -> None:
        (model / "modeling_own.py").write_text(_MODEL_CODE.format(ran=str(self.ran)))
        classes = {"AutoTokenizer": ["modeling_own.OwnTokenizer", "modeling_own.OwnTokenizer"]}
        _edit_json(model / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=classes)

    def pickled_weights(self, model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / "pytorch_model.bin").write_bytes(self.pickle())

    def pipe(self, model: Path) -> None:
        (model / "tokenizer.json").unlink()
        os.mkfifo(model / "tokenizer.json")

    def sound_model(self, damage: Callable[[Path], object]) -> Path:
        copied = self.folder / "model"
        shutil.copytree(self.model, copied)
        damage(copied)
        return copied

    def kept_batch(self, *overrides: str, damage: Callable[[Path], object] = lambda model: None) -> Path:
        """A batch of a run as an alarm keeps it, which can be played and scored again."""
        run = self.run(*overrides, damage=damage)
        score = EpisodeScore(np.array([1.0], np.float32), {"alliteration": 1.0})
        batch = KeptBatch(0, 0, [[EpisodeSpec(0, 0, 1, 2)]], [example_trajectory("", "a text")], [score])
        folder = run / "alarms" / "000000-entropy"
        arrays = load_file(self.model / "model.safetensors")
        write_dump(folder, batch, Weights(0, checksum(arrays), arrays), "low", run / "config.yaml")
        return folder

    def run_elsewhere(self) -> Path:
        """A run outside, whose texts are the words of SECRET."""
        run, elsewhere = self.run(), self.folder.parent / "elsewhere"
        shutil.move(run, elsewhere)
        told = (elsewhere / "samples.jsonl").read_text()
        (elsewhere / "samples.jsonl").write_text(told.replace("a text", SECRET))
        return elsewhere

    def project(self, settings: str = "") -> Path:
        """A project of preferences with texts and verdicts."""
        folder = self.folder / "project"
        folder.mkdir()
        if settings:
            (folder / "project.yaml").write_text(settings)
        with RatingStore(folder / "ratings.sqlite") as store:
            items = [Item("", f'=HYPERLINK("x{n}")', generator=f"+{n}\\q$x_{{") for n in range(4)]
            store.add_items(items)
            pairs = [(first, second) for first in items for second in items if first.id < second.id]
            store.add(*(Comparison((a.id, b.id), n % 2, source="manual", rater="r") for n, (a, b) in enumerate(pairs)))
        return folder

    def sweep(self, name: str = "swept", trial: str = "000-seed0", *overrides: str) -> Path:
        folder = self.folder / "sweep"
        (folder / "trials").mkdir(parents=True)
        (folder / "configs").mkdir()
        told = {
            "name": name,
            "storage_path": str(self.folder),
            "base": "alliteration",
            "space": {"algorithm.kl.coef": "grid:0.1"},
        }
        told["objective"] = {"kind": "reward_under_kl", "max_kl": 10}
        (folder / "sweep.yaml").write_text(json.dumps(told))
        row = {"name": trial, "parameters": {"algorithm.kl.coef": "=1+1\\g<0>"}, "seed": 0}
        (folder / "trials.jsonl").write_text(json.dumps(row) + "\n")
        run = self.run(*overrides)
        shutil.move(run, folder / "trials" / "000-seed0")
        shutil.copy(folder / "trials" / "000-seed0" / "config.yaml", folder / "configs" / "000-seed0.yaml")
        return folder


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to do harm."""

    command: str  # that reads what is laid down
    tries: str  # what
    says: str | None  # a pattern of the refusal; None: it is taken as the data that it is
    lay: Callable[[Ground], list[str]]  # -> the arguments after the command
    runs_if_trusted: str | None = None  # of what --trust runs the code: shows that there is code to run

    @property
    def name(self) -> str:
        return f"{self.command}: {self.tries}"


def _edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _linked(path: Path, target: Path) -> None:
    """Puts a link in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _with_secret(content: str) -> str:
    """A sound file of the same kind that has the words of SECRET where people are shown them."""
    rows = [json.loads(line) for line in content.splitlines()] if content.startswith('{"') else [json.loads(content)]
    shown = [{key: SECRET if key in ("response", "python", "torch_dtype") else row[key] for key in row} for row in rows]
    return "".join(f"{json.dumps(row)}\n" for row in shown)


def _run_with_link(name: str, outside: str, *arguments: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        run = ground.run()
        if outside == "secret":
            ground.secret.write_text(_with_secret((run / name).read_text()))
        _linked(run / name, getattr(ground, outside))
        return [word.format(run=run, folder=ground.folder, model=ground.model) for word in arguments]

    return lay


def _run(
    *arguments: str, settings: tuple[str, ...] = (), code: str | None = None, recipe: str = "alliteration"
) -> Callable[[Ground], list[str]]:
    """A run with these settings, whose model has what `code` names."""

    def lay(ground: Ground) -> list[str]:
        damage = getattr(ground, code) if code else lambda model: None
        run = ground.run(*settings, damage=damage, recipe=recipe)
        return [word.format(run=run, folder=ground.folder, model=ground.model) for word in arguments]

    return lay


def _model(code: str, *arguments: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        ground.sound_model(getattr(ground, code))
        (ground.folder / "labels.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        (ground.folder / "text.txt").write_text("a text\n" * 50)
        return list(arguments)

    return lay


def _batch(*settings: str, code: str | None = None) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        return [str(ground.kept_batch(*settings, damage=getattr(ground, code) if code else lambda model: None))]

    return lay


def _shell_batch(ground: Ground) -> list[str]:
    """What os.system gets is an episode's text, which begins with the prompt."""
    return [str(ground.kept_batch("reward=os:system", f"environment.prompts.text=touch {ground.ran};"))]


def _batch_of_model(ground: Ground) -> list[str]:
    model = ground.sound_model(ground.model_code)
    batch = ground.kept_batch()
    for path in (batch / "config.yaml", batch.parent.parent / "config.yaml"):
        text = path.read_text().replace(str(ground.model), str(model))
        path.write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    return [str(batch)]


def _batch_with(change: Callable[[Ground, Path], object]) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        batch = ground.kept_batch()
        change(ground, batch)
        return [str(batch)]

    return lay


def _project(settings: str, *arguments: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        ground.project(settings.replace("{ran}", str(ground.ran)))
        return list(arguments)

    return lay


def _project_with(change: Callable[[Ground, Path], object], *arguments: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        change(ground, ground.project())
        return list(arguments)

    return lay


def _run_with(change: Callable[[Ground, Path], object], *arguments: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        change(ground, ground.run())
        return list(arguments)

    return lay


def _sweep(
    change: Callable[[Ground, Path], object], *arguments: str, name: str = "swept", trial: str = "000-seed0"
) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        change(ground, ground.sweep(name, trial))
        return list(arguments)

    return lay


def _file(name: str, content: bytes, *arguments: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        (ground.folder / name).write_bytes(content)
        return [word.format(folder=ground.folder) for word in arguments]

    return lay


def _named_samples(name: str) -> Callable[[Ground, Path], None]:
    """Samples and metrics of a reward of this name."""

    def change(ground: Ground, run: Path) -> None:
        row = {
            "iteration": 0,
            "objective/score": 1.0,
            f"reward/{name}": 1.0,
            "reward/other": 0.5,
            "time/iteration": 1.0,
            f"time/{name}": 1,
        }
        (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
        sample |= {"iteration": 0, "parts": {name: 1.0, "other": 0.5}, "response": f"{name}<script>"}
        (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")

    return change


def _endless_view(ground: Ground, project: Path) -> None:
    """A table that never ends: a view over a recursive query."""
    connection = sqlite3.connect(project / "ratings.sqlite")
    connection.execute("ALTER TABLE items RENAME TO items_before")
    columns = [row[1] for row in connection.execute("PRAGMA table_info(items_before)")]
    listed = ", ".join(f"'a' AS {name}" if name != "number" else "n AS number" for name in columns)
    connection.execute(
        f"CREATE VIEW items AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT {listed} FROM c"
    )
    connection.commit()
    connection.close()


def _listed(checkpoint: Path, *paths: Path) -> None:
    """Puts files into a checkpoint's manifest, as if they had been written with it."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    for path in paths:
        content = path.read_bytes()
        told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files[os.path.relpath(path, checkpoint)] = told
    _edit_json(checkpoint / "manifest.json", files=files)


def _listing_outside(ground: Ground, run: Path) -> None:
    _listed(run / "checkpoints/000001", ground.victim)


def _value_network(ground: Ground, run: Path) -> None:
    """A value network beside the model of the run's checkpoint."""
    checkpoint, config = run / "checkpoints/000001", SeparateValueConfig()
    network = build_value_network(config, ModelConfig(path=str(ground.model)))
    write_value(checkpoint / "value", config, network.backbone, network.state_dict())
    _listed(checkpoint, *(checkpoint / "value").iterdir())


def _valued_run(ground: Ground) -> list[str]:
    run = ground.run(f"reward=[game_score,{MODULE}:Reward]", *_FEW, recipe="textworld-coin")
    _value_network(ground, run)
    return [str(run), "--games", "1"]


def _trusting_loop(ground: Ground) -> list[str]:
    model = ground.sound_model(ground.model_code)
    ground.project(f"task: {{overrides: ['model.path={model}', 'model.trust_remote_code=true']}}")
    return ["project", "--no-wait"]


def _transcript(environment: str) -> Callable[[Ground], list[str]]:
    def lay(ground: Ground) -> list[str]:
        header = {
            "schema_version": 1, "model": None, "tokenizer": "code points", "environment": environment, "parameters": {},
            "split": "train", "max_turns": 5, "seed": 0, "agent": {},
        }  # fmt: skip
        (ground.folder / "played.jsonl").write_text(json.dumps(header) + "\n")
        return ["--replay", "played.jsonl"]

    return lay


def _loop_file_in_run(ground: Ground) -> list[str]:
    run = ground.run(f"reward={MODULE}:Reward")
    ground.project(f"task:\n  recipe: {run / 'config.yaml'}\n")
    return ["project", "--no-wait"]


def _own_settings(ground: Ground) -> list[str]:
    run = ground.run(*_REWARD)
    (ground.folder / "mine.yaml").write_text(f"task:\n  recipe: {run / 'config.yaml'}\n")
    return ["project", "--no-wait", "--config", "mine.yaml"]


def _work_folder(ground: Ground) -> list[str]:
    (ground.folder / "text.txt").write_text("a text\n" * 50)
    work = ground.folder / "out.training"
    work.mkdir()
    _linked(work / "progress.jsonl", ground.victim)
    _linked(work / "model.new", ground.outside)
    return ["out", "--new", "default", "--text", "text.txt", "--resume"]


def _scratch_run(ground: Ground) -> list[str]:
    run = ground.run("model.scratch={}")
    _linked(run / "model", ground.outside)
    return ["alliteration", f"storage_path={ground.folder}", "name=stranger", "model.scratch={}", "--resume"]


_RESUME = (
    "alliteration",
    "storage_path={folder}",
    "name=stranger",
    "rollout.max_new_tokens=4",
    "model.path={model}",
    "--resume",
)
_SWEEP = ("alliteration", "sweep.storage_path=.", "sweep.name=sweep", "algorithm.kl.coef=grid:0.1", "--resume")
_DEEP = b"[" * 200_000
CODE = "names code that does not come with RayRLHF:(.|\\n)*  "
NO_FILE = "is no file but a pipe or a device"
MODEL_CODE = "it brings Python code of its own .* which was not run"
_GAME = (f"environment.name={MODULE}:Game",)
_REWARD = (f"reward={MODULE}:Reward",)
_FEW = ("rollout.max_new_tokens=16", "environment.level=1", "environment.games=1", "environment.held_out_games=1")
_REMOTE = ("model.trust_remote_code=true",)


ATTACKS: tuple[Attack, ...] = (
    Attack(
        "generate",
        "a model with code, config.yaml trusts it",
        MODEL_CODE,
        _run("{run}", "-n", "1", settings=_REMOTE, code="model_code"),
        "stranger",
    ),
    Attack(
        "generate",
        "a tokenizer with code",
        MODEL_CODE,
        _run("{run}", "-n", "1", settings=_REMOTE, code="tokenizer_code"),
        "stranger",
    ),
    Attack("generate", "a model folder with code", MODEL_CODE, _model("model_code", "model", "-n", "1"), "model"),
    Attack("generate", "weights that are a pickle", "UnpicklingError", _model("pickled_weights", "model", "-n", "1")),
    Attack(
        "generate",
        "checkpoints are a link",
        "checkpoints is a link",
        _run_with_link("checkpoints", "outside", "{run}", "-n", "1"),
    ),
    Attack(
        "generate",
        "a model file is a link",
        r"config\.json is a link",
        _run_with_link("checkpoints/000001/model/config.json", "secret", "{run}", "-n", "1"),
    ),
    Attack(
        "generate",
        "a YAML tag that runs a function",
        "could not determine a constructor for the tag",
        _run_with(
            lambda ground, run: (run / "config.yaml").write_text(
                f'name: !!python/object/apply:os.system ["touch {ground.ran}"]\n'
            ),
            "stranger",
            "-n",
            "1",
        ),
    ),
    Attack(
        "generate",
        "a manifest that lists a file outside",
        "victim is missing",
        _run_with(_listing_outside, "stranger", "-n", "1"),
    ),
    Attack(
        "generate",
        "files that no manifest lists",
        "was added after it was written",
        _run_with(
            lambda ground, run: (
                (run / "checkpoints/000001/value").mkdir(),
                (run / "checkpoints/000001/value/x.safetensors").write_bytes(b"x"),
                (run / "checkpoints/000001/model/modeling_own.py").write_text("x"),
            ),
            "stranger",
            "-n",
            "1",
        ),
    ),
    Attack(
        "generate",
        "a model's config nested without end",
        r"config\.json has 200000 bytes",
        _run_with(
            lambda ground, run: (run / "checkpoints/000001/model/config.json").write_bytes(_DEEP), "stranger", "-n", "1"
        ),
    ),
    Attack(
        "play",
        "an environment of the folder's own",
        CODE + "environment.name: stranger_code:Game",
        _run("{run}", "--watch", "--delay", "0", settings=_GAME),
        "stranger",
    ),
    Attack(
        "play",
        "a Gymnasium id of a module",
        CODE + "environment.name: stranger_code:Stranger-v0",
        _run("{run}", "--watch", "--delay", "0", settings=(f"environment.name={MODULE}:Stranger-v0",)),
        "stranger",
    ),
    Attack(
        "play",
        "a model with code",
        MODEL_CODE,
        _run("{run}", "--human", settings=(*_REMOTE, *_FEW), code="model_code", recipe="textworld-coin"),
        "stranger",
    ),
    Attack(
        "play",
        "a transcript that names code",
        CODE + "environment.name: stranger_code:Game",
        _transcript(f"{MODULE}:Game"),
        "played.jsonl",
    ),
    Attack(
        "play",
        "a game that is a program",
        "no game file of the Z-machine",
        _file("game.py", b"open('ran', 'w')", "--human", "--game", "game.py"),
    ),
    Attack(
        "play",
        "a game of the planner, whose texts are evaluated",
        "no game file of the Z-machine",
        _file("game.tw-pddl", b"{}", "--human", "--game", "game.tw-pddl"),
    ),
    Attack(
        "play",
        "records that are links",
        r"samples\.jsonl is a link",
        _run_with_link("samples.jsonl", "secret", "{run}", "--human"),
    ),
    Attack(
        "evaluate",
        "an environment of the folder's own",
        CODE + "environment.name: stranger_code:Game",
        _run("{run}", "--games", "1", settings=_GAME),
        "stranger",
    ),
    Attack(
        "evaluate",
        "a reward of the folder's own, with a value network to hold against it",
        CODE + "reward.1.name: stranger_code:Reward",
        _valued_run,
        "stranger",
    ),
    Attack(
        "evaluate",
        "a model with code",
        MODEL_CODE,
        _run("{run}", "--games", "1", settings=(*_REMOTE, *_FEW), code="model_code", recipe="textworld-coin"),
        "stranger",
    ),
    Attack(
        "evaluate",
        "the evaluation is a link",
        r"evaluation\.json is a link",
        _run_with_link("evaluation.json", "victim", "{run}", "--games", "1"),
    ),
    Attack("replay", "a reward of the standard library", CODE + "reward.0.name: os:system", _shell_batch, "stranger"),
    Attack(
        "replay",
        "a reward of the folder's own",
        CODE + "reward.0.name: stranger_code:Reward",
        _batch(*_REWARD),
        "stranger",
    ),
    Attack(
        "replay",
        "an environment of the folder's own",
        CODE + "environment.name: stranger_code:Game",
        _batch(*_GAME),
        "stranger",
    ),
    Attack("replay", "a model with code, config.yaml trusts it", MODEL_CODE, _batch_of_model, "stranger"),
    Attack(
        "replay",
        "weights that are a link",
        r"weights\.safetensors is a link",
        _batch_with(lambda ground, batch: _linked(batch / "weights.safetensors", ground.secret)),
    ),
    Attack(
        "replay",
        "a pipe in a file's place",
        r"batch\.json is neither a file nor a folder",
        _batch_with(lambda ground, batch: ((batch / "batch.json").unlink(), os.mkfifo(batch / "batch.json"))),
    ),
    Attack(
        "replay",
        "a batch nested without end",
        "is damaged",
        _batch_with(lambda ground, batch: (batch / "episodes.safetensors").write_bytes(b"\xff" * 8 + _DEEP)),
    ),
    Attack(
        "report",
        "the summary on its way is a link",
        r"summary\.json\.new is a link",
        _run_with_link(".summary.json.new", "victim", "{run}"),
    ),
    Attack(
        "report", "samples are a link", r"samples\.jsonl is a link", _run_with_link("samples.jsonl", "secret", "{run}")
    ),
    Attack(
        "report",
        "sessions are a link",
        r"sessions\.jsonl is a link",
        _run_with_link("sessions.jsonl", "secret", "{run}"),
    ),
    Attack(
        "report",
        "metrics are a pipe",
        r"metrics\.jsonl is neither a file nor a folder",
        _run_with(lambda ground, run: ((run / "metrics.jsonl").unlink(), os.mkfifo(run / "metrics.jsonl")), "stranger"),
    ),
    Attack(
        "report",
        "the page is a folder",
        r"report\.html is a folder where a file belongs",
        _run_with(lambda ground, run: (run / "report.html").mkdir(), "stranger"),
    ),
    Attack(
        "report",
        "the page on its way is a folder",
        r"report\.html\.new is no file",
        _run_with(lambda ground, run: (run / ".report.html.new").mkdir(), "stranger"),
    ),
    Attack("report", "a name with backslashes", None, _run_with(_named_samples("\\q\\g<0>\\1$\\frac{"), "stranger")),
    Attack("report", "a name with half a surrogate", None, _run_with(_named_samples("a\ud800\x1b[31m"), "stranger")),
    Attack("report", "a name with markup", None, _run_with(_named_samples('"><script>{{ 7*7 }}{body}'), "stranger")),
    Attack(
        "report",
        "a sweep named as a template's place",
        None,
        _sweep(lambda ground, sweep: None, "sweep", name="{body}{{ title }}"),
    ),
    Attack(
        "report",
        "a trial whose folder lies outside",
        "String should match pattern",
        _sweep(lambda ground, sweep: ground.run_elsewhere(), "sweep", trial="../../../elsewhere"),
    ),
    Attack(
        "report",
        "a table on its way is a link",
        r"table\.csv\.new is a link",
        _sweep(lambda ground, sweep: _linked(sweep / ".table.csv.new", ground.victim), "sweep"),
    ),
    Attack(
        "report",
        "a trial is a link",
        "trials/000-seed0 is a link",
        _sweep(lambda ground, sweep: _linked(sweep / "trials/000-seed0", ground.run_elsewhere()), "sweep"),
    ),
    Attack(
        "train",
        "config.yaml of a run names code",
        CODE + "reward.0.name: stranger_code:Reward",
        _run("{run}/config.yaml", "--resume", settings=_REWARD),
    ),
    Attack(
        "train",
        "config.yaml of a run names code, for a new run",
        CODE + "environment.name: stranger_code:Game",
        _run("{run}/config.yaml", "name=other", settings=_GAME),
    ),
    Attack("train", "the lock is a link", r"\.lock is a link", _run_with_link(".lock", "victim", *_RESUME)),
    Attack(
        "train",
        "sessions are a link",
        r"sessions\.jsonl is a link",
        _run_with_link("sessions.jsonl", "victim", *_RESUME),
    ),
    Attack(
        "train",
        "TensorBoard's folder is a link",
        "tensorboard is a link",
        _run_with_link("tensorboard", "outside", *_RESUME),
    ),
    Attack(
        "train",
        "the config on its way is a link",
        r"config\.yaml\.new is a link",
        _run_with_link(".config.yaml.new", "victim", *_RESUME),
    ),
    Attack("train", "the model from scratch is a link", "stranger/model is a link", _scratch_run),
    Attack(
        "sweep",
        "a trial's config names code",
        CODE + "reward.0.name: stranger_code:Reward",
        _sweep(
            lambda ground, sweep: (sweep / "trials/000-seed0/config.yaml").write_text(
                (sweep / "trials/000-seed0/config.yaml")
                .read_text()
                .replace("name: alliteration\n", f"name: {MODULE}:Reward\n")
            ),
            *_SWEEP,
            name="sweep",
        ),
    ),
    Attack(
        "sweep",
        "the lock is a link",
        r"\.lock is a link",
        _sweep(lambda ground, sweep: _linked(sweep / ".lock", ground.victim), *_SWEEP, name="sweep"),
    ),
    Attack(
        "sweep",
        "sweep.yaml of a sweep names code",
        CODE + "reward.0.name: stranger_code:Reward",
        _sweep(
            lambda ground, sweep: _edit_json(sweep / "sweep.yaml", name="other", overrides=[f"reward={MODULE}:Reward"]),
            "sweep/sweep.yaml",
            name="sweep",
        ),
    ),
    Attack(
        "rate",
        "a validity check of the folder's own",
        CODE + "checks.validity: stranger_code:valid",
        _project(f"checks: {{validity: '{MODULE}:valid'}}", "project", "--terminal"),
        "project",
    ),
    Attack(
        "rate",
        "a command that checks texts",
        CODE + "checks.command: touch",
        _project("checks: {command: [touch, '{ran}']}", "project", "--terminal"),
        "project",
    ),
    Attack(
        "rate",
        "a presenter of the folder's own",
        CODE + "rating.presenter: stranger_code:valid",
        _project(f"rating: {{presenter: '{MODULE}:valid'}}", "project", "--terminal"),
        "project",
    ),
    Attack(
        "rate",
        "a player of sounds",
        CODE + "rating.player: touch",
        _project("rating: {player: [touch, '{ran}']}", "project", "--terminal"),
    ),
    Attack(
        "rate",
        "the store is a link",
        r"ratings\.sqlite is a link",
        _project_with(
            lambda ground, project: _linked(project / "ratings.sqlite", ground.victim), "project", "--terminal"
        ),
    ),
    Attack(
        "rank",
        "its folder is a link",
        "project/ranking is a link",
        _project_with(lambda ground, project: _linked(project / "ranking", ground.outside), "project"),
    ),
    Attack(
        "rank",
        "the store's journal is a link",
        r"ratings\.sqlite-journal is a link",
        _project_with(lambda ground, project: _linked(project / "ratings.sqlite-journal", ground.victim), "project"),
    ),
    Attack(
        "rank", "a table that never ends", "no rating store: it holds items", _project_with(_endless_view, "project")
    ),
    Attack(
        "loop",
        "the task's settings trust a model",
        CODE + "task.model.trust_remote_code",
        _trusting_loop,
    ),
    Attack(
        "loop",
        "the rater's rule is code",
        CODE + "loop.rater.rule: stranger_code:Reward",
        _project(f"loop: {{rater: {{rule: '{MODULE}:Reward'}}}}", "project", "--no-wait"),
    ),
    Attack(
        "loop",
        "the task is a run that names code",
        CODE + "task.reward.0.name: stranger_code:Reward",
        _loop_file_in_run,
    ),
    Attack(
        "loop",
        "rounds are a link",
        "project/rounds is a link",
        _project_with(lambda ground, project: _linked(project / "rounds", ground.outside), "project", "--no-wait"),
    ),
    Attack(
        "reward-model",
        "the task's environment is code",
        CODE + "task.environment.name: stranger_code:Game",
        _project(f"task: {{overrides: ['environment.name={MODULE}:Game']}}", "project", "out"),
    ),
    Attack(
        "compare",
        "a model with code",
        MODEL_CODE,
        _run("{run}", "tiny-stories", "--samples", "1", "--judge", "alliteration", settings=_REMOTE, code="model_code"),
        "stranger",
    ),
    Attack(
        "compare",
        "the store is a link",
        r"comparison\.sqlite is a link",
        lambda ground: (
            (ground.folder / "comparison").mkdir(),
            _linked(ground.folder / "comparison" / "comparison.sqlite", ground.victim),
            ["tiny-stories", "tiny-stories", "--samples", "1", "--judge", "alliteration"],
        )[2],
    ),
    Attack(
        "labels import",
        "lines nested without end",
        "nested more than 50 levels deep",
        _file("labels.jsonl", _DEEP, "labels.jsonl", "project"),
    ),
    Attack(
        "labels import",
        "formulas",
        None,
        _file("labels.jsonl", b'{"prompt": "=1", "chosen": "@x", "rejected": "+y"}\n', "labels.jsonl", "project"),
    ),
    Attack(
        "labels check",
        "a tokenizer with code",
        MODEL_CODE,
        _model("tokenizer_code", "labels.jsonl", "--tokenizer", "model"),
        "model",
    ),
    Attack(
        "labels check",
        "the store is a link",
        r"ratings\.sqlite is a link",
        _project_with(lambda ground, project: _linked(project / "ratings.sqlite", ground.victim), "project"),
    ),
    Attack(
        "labels export",
        "a table that never ends",
        "no rating store: it holds items",
        _project_with(_endless_view, "project", "out.jsonl"),
    ),
    Attack(
        "sft", "a model with code", MODEL_CODE, _model("model_code", "out", "--model", "model", "--text", "text.txt")
    ),
    Attack("sft", "links in the work folder", "is a link", _work_folder),
    Attack(
        "train",
        "config.yaml of a run names code, and another setting of it is given",
        CODE,
        _run("{run}/config.yaml", "name=other", "reward.0.weight=0.5", settings=_REWARD),
    ),
    Attack(
        "imitate",
        "config.yaml of a run names code",
        CODE,
        _run("{run}/config.yaml", "out", settings=_GAME),
        "stranger",
    ),
    Attack(
        "evaluate",
        "the recipe is a run's config that names code",
        CODE,
        _run("{model}", "--recipe", "{run}/config.yaml", "--games", "1", settings=_GAME),
    ),
    Attack("loop", "the recipe of one's own settings is a run's that names code", CODE, _own_settings),
    Attack(
        "loop",
        "settings of the project's own folder",
        CODE,
        _project("checks: {command: [touch, '{ran}']}", "project", "--no-wait", "--config", "project/project.yaml"),
    ),
    Attack(
        "rate",
        "a regular expression that never ends",
        CODE,
        _project("checks: {pattern: '(=|H|Y|=HY)+$'}", "project", "--terminal"),
    ),
    Attack(
        "rate",
        "a corpus without end",
        NO_FILE,
        _project("checks: {compressibility: {corpus: /dev/zero}}", "project", "--terminal"),
    ),
    Attack(
        "generate",
        "prompts without end",
        NO_FILE,
        _run("{run}", "-n", "1", settings=("environment.prompts.text=", "environment.prompts.file=/dev/zero")),
    ),
    Attack(
        "replay",
        "a reward with a corpus without end",
        NO_FILE,
        _batch("reward={name: alliteration, corpus: /dev/zero}"),
    ),
    Attack("generate", "a model's file is a pipe", NO_FILE, _model("pipe", "model", "-n", "1")),
)
"""Each command that reads what a stranger may have made, several ways each."""


def sound_model(folder: Path) -> Path:
    return build_tiny_model(folder)
