"""What a sweep is made of, and where it is read from: a search-space file, or a recipe with dimensions on the command line.

A search-space file is a SweepConfig in YAML; `alliteration_kl.yaml` beside this module is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rayrlhf.config_draft import Draft, KeyPath
from rayrlhf.config_faults import suggestion
from rayrlhf.config_loading import checked, recipes
from rayrlhf.config_section import NonNegativeInt, PositiveInt, Section
from rayrlhf.errors import ConfigError
from rayrlhf.reading import expanded
from rayrlhf.tune.objectives import ObjectiveConfig, RewardUnderKL
from rayrlhf.tune.space import is_dimension, split_keys

SPACES = Path(__file__).parent


class GridSearchConfig(Section):
    """Every combination of the values of `grid:`, `choice:` and `int:` dimensions."""

    kind: Literal["grid"] = "grid"


class RandomSearchConfig(Section):
    """Every combination of the `grid:` dimensions, and for each so many draws of the others."""

    kind: Literal["random"] = "random"
    samples: PositiveInt = 8
    """Draws."""
    seed: NonNegativeInt = 0
    """Of the draws; the trials' own seeds are `first_seed` and those after it."""


class OptunaSearchConfig(Section):
    """Points that Optuna's TPE proposes from the objectives of those before (extra `rayrlhf[sweep]`)."""

    kind: Literal["optuna"] = "optuna"
    samples: PositiveInt = 16
    """Points, each with all seeds."""
    startup: PositiveInt = 6
    """The first points are drawn at random."""
    seed: NonNegativeInt = 0
    """Of the draws and of TPE."""


class NoSchedulerConfig(Section):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class ASHAConfig(Section):
    """Asynchronous successive halving (Li et al. 2020): at each rung the worse trials are stopped."""

    kind: Literal["asha"] = "asha"
    grace_iterations: PositiveInt = 20
    """No trial is stopped before so many iterations; rungs are at these times powers of reduction_factor."""
    reduction_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3
    """One in so many trials passes a rung."""


class PBTConfig(Section):
    """Population-based training (Jaderberg et al. 2017): the worst trials go on from the best ones' checkpoints.

    A trial's dimensions move then: each number times 0.8 or 1.2 within its range, or drawn anew.
    """

    kind: Literal["pbt"] = "pbt"
    every: PositiveInt = 20
    """Iterations between two comparisons of a trial with the others."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """The share of the population that is replaced, and the share that it is replaced by."""
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How often a dimension is drawn anew and not moved."""
    synchronous: bool = False
    """Trials wait for each other before they are compared: the same population each time, at the price of starting all
    anew each time. Off: a trial is compared with whatever the others have reached."""


SearchConfig = Annotated[GridSearchConfig | RandomSearchConfig | OptunaSearchConfig, Field(discriminator="kind")]
SchedulerConfig = Annotated[NoSchedulerConfig | ASHAConfig | PBTConfig, Field(discriminator="kind")]


class SweepConfig(Section):
    """One sweep: which runs, how they are chosen, and what is looked for."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the sweep's folder under `storage_path`."""
    storage_path: str = "runs"
    """Where sweeps lie; on a cluster a folder that every node sees."""
    base: str = "alliteration"
    """The recipe or YAML file that every trial starts from."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE settings of every trial."""
    space: dict[str, str] = Field(default_factory=dict)
    """Dotted key, or several between commas that take the same value, and its dimension: `grid:0,0.1,1`,
    `choice:a,b`, `uniform:0..1`, `loguniform:1e-5..1e-3`, `int:1..8`."""
    seeds: PositiveInt = 1
    """Every point of the space is run with so many seeds, the same for all points."""
    first_seed: NonNegativeInt = 0
    """The first of them; the others follow it."""
    search: SearchConfig = GridSearchConfig()
    """How points are chosen: grid, random or optuna."""
    scheduler: SchedulerConfig = NoSchedulerConfig()
    """What happens to trials on their way: none, asha or pbt."""
    objective: ObjectiveConfig = RewardUnderKL()
    """What the sweep looks for."""
    max_concurrent: PositiveInt | None = None
    """Most trials side by side; null: as many as there is room for."""

    @field_validator("overrides", mode="before")
    @classmethod
    def _each_is_a_setting(cls, given: Any) -> Any:
        for text in given if isinstance(given, list) else ():
            if not isinstance(text, str) or "=" not in text:
                raise ValueError(f"holds {text!r}: write each as KEY=VALUE, as in rollout.workers=1")
        return given

    @property
    def trial_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What the user asked for, and where each part of it was written."""

    config: SweepConfig
    places: Mapping[
        KeyPath, str
    ]  # ("space", keys) and ("overrides", index) -> `my_space.yaml:7`, `override a.b=grid:0,1`


def load_sweep(source: str, words: Sequence[str] = ()) -> SweepRequest:
    """Reads a sweep's config.

    Args:
        source: the name of a search-space file of `tune/`, a recipe's name, or the path of a YAML file of either kind.
        words: `sweep.seeds=3` sets what is the sweep's own, `optimizer.lr=loguniform:1e-5..1e-3` adds or replaces a
            dimension, `iterations=60` is a setting of every trial. A setting of a key that is a dimension of the file
            takes the dimension's place.

    Raises:
        ConfigError: with a line for each fault of the sweep itself; `plan.py` checks what the trials would be.
    """
    draft = _draft(source)
    tree, places = draft.tree, {path: place.label for path, place in draft.written.items()}
    for section, empty in (("overrides", []), ("space", {})):
        if tree.get(section) is None:
            tree[section] = empty
    faults: list[str] = []
    for word in words:
        try:
            _apply(draft, places, word)
        except ConfigError as error:
            fault = str(error)
            faults.append(fault if fault.startswith("override ") else f"override {word}: {fault}")
    try:
        config = checked(draft, SweepConfig, faults)
    except ConfigError as error:
        raise ConfigError(_as_given(str(error), words)) from None
    return SweepRequest(config, places)


def _as_given(faults: str, words: Sequence[str]) -> str:
    """The draft knows the sweep's own settings without the `sweep.` that they are given with."""
    own = [word.removeprefix("sweep.") for word in words if word.startswith("sweep.")]
    lines = []
    for line in faults.split("\n"):
        named = any(line.startswith(f"override {word}") for word in own)
        lines.append(line.replace("override ", "override sweep.", 1) if named else line)
    return "\n".join(lines)


def _apply(draft: Draft, places: dict[KeyPath, str], word: str) -> None:
    """Puts one word of the command line into the draft."""
    key, equals, value = word.partition("=")
    if key.startswith("sweep."):
        draft.override(word.removeprefix("sweep."))
        return
    if not equals:
        raise ConfigError("write KEY=VALUE or KEY=DIMENSION, as in algorithm.kl.coef=grid:0,0.1,1")
    keys = split_keys(key)
    space, overrides = draft.tree["space"], draft.tree["overrides"]
    if not isinstance(space, dict) or not isinstance(overrides, list):
        return  # what the file has there is a fault of its own
    dimension = is_dimension(value)
    for name in [known for known in space if set(keys) & set(known.split(","))]:
        if set(name.split(",")) - set(keys):
            raise ConfigError(f"{name} is one dimension of the sweep: give all of its keys, {name}=...")
        del space[name]
    if dimension:
        space[",".join(keys)] = value
        places["space", ",".join(keys)] = f"override {word}"
        return
    for name in keys:
        places["overrides", len(overrides)] = f"override {word}"
        overrides.append(f"{name}={value}")


def spaces() -> dict[str, Path]:
    """The search-space files that ship with the package, by name."""
    return {path.stem: path for path in sorted(SPACES.glob("*.yaml"))}


def _draft(source: str) -> Draft:
    shipped, known = spaces(), {recipe.name: recipe.path for recipe in recipes()}
    if source in shipped:
        return Draft.read(shipped[source], f"tune/{source}.yaml")
    if source in known:
        return Draft({"name": f"{source}-sweep", "base": source}, f"recipes/{source}.yaml", {})
    path = expanded(source)
    if path.is_file():
        draft = Draft.read(path, source)
        if "space" in draft.tree or "base" in draft.tree:
            return draft
        return Draft({"name": f"{path.stem}-sweep", "base": source}, source, {})
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{source}: there is no such file (in {Path.cwd()}); give a YAML file or a recipe")
    near = suggestion(source, [*shipped, *known])
    guess = f"did you mean {near}? All" if near else "the"
    raise ConfigError(
        f"{source}: no search space, no recipe and no file has this name; {guess} search spaces: {', '.join(shipped)}; "
        f"recipes: {', '.join(known)}"
    )
