"""Points that Optuna proposes, each run with every seed: its objective is the mean over them. Extra `rayrlhf[sweep]`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from rayrlhf.extras import require
from rayrlhf.tune.folder import SweepFolder, is_over
from rayrlhf.tune.objectives import ObjectiveConfig
from rayrlhf.tune.plan import Trial, TrialMaker, point_of
from rayrlhf.tune.results import objective_value, points
from rayrlhf.tune.space import Dimension, Listed
from rayrlhf.tune.sweep_config import OptunaSearchConfig
from rayrlhf.tune.trial import NOTHING_ADMISSIBLE, choice_of

if TYPE_CHECKING:
    import optuna


def require_optuna() -> None:
    """Raises InstallationError where Optuna is not installed."""
    require("sweep", "sweep.search.kind optuna")


class OptunaPoints(Searcher):
    """Hands out trials to Tune: a point's seeds one after the other, then the next point that Optuna proposes.

    Trials are planned, on the disk, before they are handed out. Those of an earlier session come first, and the
    objectives of those that have ended are told to Optuna again.
    """

    def __init__(
        self, space: Sequence[Dimension], search: OptunaSearchConfig, maker: TrialMaker, folder: SweepFolder
    ) -> None:
        super().__init__(metric="objective", mode="max")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._search = search
        self._maker = maker
        self._folder = folder
        self._objective: ObjectiveConfig = maker.sweep.objective
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.startup)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {dimension.name: distribution(dimension) for dimension in space}
        self._asked: dict[int, optuna.trial.Trial] = {}  # point -> what Optuna is told about
        self._values: dict[int, dict[str, float]] = {}  # point -> trial -> its objective
        self._waiting: deque[Trial] = deque()
        self._handed_out: dict[str, Trial] = {}  # Tune's trial id -> trial
        self._take_up(folder.read_trials())

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        if not self._waiting:
            if len(self._asked) >= self._search.samples:
                return Searcher.FINISHED
            self._propose()
        trial = self._waiting.popleft()
        self._handed_out[trial_id] = trial
        return choice_of(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._handed_out.pop(trial_id)
        reached = None if error or result is None else result.get("objective")
        self._ended(trial, NOTHING_ADMISSIBLE if reached is None else float(reached))

    def save(self, checkpoint_path: str) -> None:
        """Tune's snapshot: nothing is kept there, `__init__` finds all in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its own folder")

    def _propose(self) -> None:
        number = len(self._asked)
        asked = self._study.ask(self._distributions)
        parameters = point_of(self._space, [chosen(d, asked.params[d.name]) for d in self._space])
        trials = [self._maker.trial(number, parameters, seed) for seed in self._maker.sweep.trial_seeds]
        self._folder.add_trials(trials)
        self._asked[number] = asked
        self._waiting.extend(trials)

    def _take_up(self, earlier: Sequence[Trial]) -> None:
        for trial in earlier:
            if trial.point not in self._asked:
                drawn = {d.name: index_of(d, trial.parameters[d.keys[0]]) for d in self._space}
                self._study.enqueue_trial(drawn)
                self._asked[trial.point] = self._study.ask(self._distributions)
        for trial in earlier:
            if is_over(self._folder.run_folder(trial.name)):
                reached = objective_value(points(self._folder.run_folder(trial.name)), self._objective)
                self._ended(trial, NOTHING_ADMISSIBLE if reached is None else reached)
            else:
                self._waiting.append(trial)

    def _ended(self, trial: Trial, value: float) -> None:
        values = self._values.setdefault(trial.point, {})
        values[trial.name] = value
        if len(values) == len(self._maker.sweep.trial_seeds):
            self._study.tell(self._asked[trial.point], fmean(values.values()))


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """The dimension as Optuna knows it; listed values by their index, since they may be of any kind."""
    import optuna.distributions as kinds

    values = dimension.values
    if isinstance(values, Listed):
        return kinds.CategoricalDistribution(list(range(len(values.values))))
    if values.kind == "int":
        return kinds.IntDistribution(int(values.low), int(values.high))
    return kinds.FloatDistribution(values.low, values.high, log=values.kind == "loguniform")


def chosen(dimension: Dimension, drawn: Any) -> Any:
    """The value that Optuna's number stands for."""
    values = dimension.values
    return values.values[drawn] if isinstance(values, Listed) else values.clip(drawn)


def index_of(dimension: Dimension, value: Any) -> Any:
    """The number that stands for a value with Optuna."""
    return dimension.values.values.index(value) if isinstance(dimension.values, Listed) else value
