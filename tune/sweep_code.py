"""Which code a sweep's trials name, and whose word that is: see rayrlhf.trust."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rayrlhf.trust import Code, Trust, code_of_run, require_own_config
from rayrlhf.tune.folder import SweepFolder, path_of
from rayrlhf.tune.plan import Trial, plan
from rayrlhf.tune.sweep_config import SweepRequest
from rayrlhf.tune.trial import config_of


def code_of_trials(trials: Iterable[Trial]) -> list[Code]:
    return list(dict.fromkeys(code for trial in trials for code in code_of_run(trial.config)))


def require_own_sweep(source: str, request: SweepRequest, words: Sequence[str], trust: Trust) -> None:
    """For a sweep's file that lies in the folder of a sweep or a run, which is data.

    Raises:
        UntrustedCodeError: it names code, and nobody trusts it.
    """
    code = code_of_trials(plan(request, path_of(request.config) / "trials"))
    for place in (source, request.config.base):
        require_own_config(place, code, words, trust)


def require_planned(request: SweepRequest, folder: SweepFolder, trust: Trust) -> None:
    """For the trials that a sweep's folder holds: they may name what the sweep that is asked for names, and no more.

    Raises:
        UntrustedCodeError: they name other code, and nobody trusts the folder.
    """
    configs = [config_of(folder, trial.name) for trial in folder.read_trials()]
    named = list(dict.fromkeys(code for config in configs for code in code_of_run(config)))
    if named:
        asked_for = code_of_trials(plan(request, folder.trials))
        trust.require(folder.path, [code for code in named if code not in asked_for])
