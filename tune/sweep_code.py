"""Which code a sweep's trials name, and whose word that is: see rayrlhf.trust."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rayrlhf.trust import Code, Trust, code_of_run, decides, require_own_config
from rayrlhf.tune.folder import SweepFolder, path_of
from rayrlhf.tune.plan import Trial, plan
from rayrlhf.tune.space import split_keys
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
        require_own_config(place, code, _that_stand(words, request), trust)


def _that_stand(words: Sequence[str], request: SweepRequest) -> list[str]:
    """The words of the command line that no dimension of the sweep's file comes after, to say otherwise."""
    own = {f"override {word}" for word in words}
    names = [name for name in request.config.space if request.places.get(("space", name)) not in own]
    keys = [key for name in names for key in split_keys(name)]
    return [
        word for word in words if not any(decides(word, key) or decides(key, word.partition("=")[0]) for key in keys)
    ]


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
