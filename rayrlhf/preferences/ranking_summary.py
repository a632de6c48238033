"""What a ranking says beside its scores: raters, ties, agreement, cycles; as a JSON object and as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rayrlhf.intervals import Estimate
from rayrlhf.preferences.ranking import Z95, Ranking
from rayrlhf.preferences.ranking_diagnostics import contradictions, intransitivity, rater_agreement
from rayrlhf.preferences.ranking_outcomes import rater_name
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.self_agreement import self_agreement

_CONTRADICTIONS = 20  # so many are written down
_DRAWS = 1000  # from the posterior, for intervals of generators' means
_SEED = 0


def summarise(items: Sequence[Item], ranking: Ranking) -> dict[str, Any]:
    """All figures, ready for JSON."""
    counted = ranking.comparisons
    cycles = intransitivity(counted)
    pairs, agreement = rater_agreement(counted)
    own = self_agreement(counted)
    against = contradictions(counted, dict(zip(ranking.ids, ranking.mean.tolist(), strict=True)))
    prompt = {item.id: item.prompt for item in items}
    return {
        "items": len(items),
        "items_never_compared": int(np.count_nonzero(ranking.wins + ranking.losses + ranking.ties == 0)),
        "comparisons": len(counted),
        "comparisons_of_one_prompt": sum(len({prompt[item] for item in one.items}) == 1 for one in counted),
        "ties": sum(comparison.winner is None for comparison in counted),
        "sources": dict(Counter(comparison.source for comparison in counted)),
        "tie_parameter": ranking.fit.nu,
        "raters": _raters(ranking),
        "generators": generators(items, ranking),
        "covariate_coefficients": ranking.fit.coefficients.tolist(),
        "covariate_deviations": ranking.fit.coefficient_deviations.tolist(),
        "standardised": {"shift": ranking.shift, "scale": ranking.scale},
        "intransitivity": {**asdict(cycles), "share": cycles.share},
        "agreement_between_raters": {"pairs": pairs, **_estimate(agreement)},
        "agreement_with_oneself": {"repeats": own.repeats, "decisive": own.decisive, **_estimate(own.share)},
        "pairs_against_the_scores": {
            "count": len(against),
            "most_persistent": [asdict(pair) for pair in against[:_CONTRADICTIONS]],
        },
    }


def generators(items: Sequence[Item], ranking: Ranking) -> dict[str, dict[str, float]]:
    """Generator -> number of its items and their mean score, with its 95 % interval from posterior draws; best first."""
    names = np.array([item.generator for item in items])
    draws = ranking.draws(_DRAWS, np.random.default_rng(_SEED))
    found = {}
    for name in sorted(set(names.tolist())):
        own = names == name
        low, high = np.quantile(draws[:, own].mean(1), [0.025, 0.975])
        mean = float(ranking.mean[own].mean())
        found[name] = {"items": int(own.sum()), "mean": mean, "low": float(low), "high": float(high)}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["mean"]))


def lines(summary: dict[str, Any]) -> list[str]:
    """The figures as sentences, for the terminal."""
    comparisons = summary["comparisons"]
    if not comparisons:
        return ["no comparisons yet: every score is the prior's"]
    sources = ", ".join(f"{count} {source}" for source, count in summary["sources"].items())
    said = [
        f"{comparisons} comparisons ({sources}); {summary['ties']} ties; "
        f"{summary['comparisons_of_one_prompt']} are of texts with one prompt"
    ]
    if summary["items_never_compared"]:
        said.append(f"{summary['items_never_compared']} of {summary['items']} items were never compared")
    cycles = summary["intransitivity"]
    if cycles["triples"]:
        zeta = "" if cycles["consistency"] is None else f"; Kendall's consistency {cycles['consistency']:.2f}"
        said.append(
            f"intransitive: {cycles['cyclic']} of {cycles['triples']} compared triples ({cycles['share']:.1%}; chance "
            f"alone gives 25 %){zeta}"
        )
    said.append(f"{summary['pairs_against_the_scores']['count']} pairs were judged against the scores")
    between, own = summary["agreement_between_raters"], summary["agreement_with_oneself"]
    if between["pairs"]:
        said.append(f"raters agree with one another on {_share(between)} of {between['pairs']} pairs of verdicts")
    if own["decisive"]:
        said.append(f"raters agree with themselves on {_share(own)} of {own['decisive']} pairs asked again")
    if len(summary["raters"]) > 1:
        reliability = ", ".join(
            f"{name} {rater['discrimination']:.2f} ({rater['low']:.2f} to {rater['high']:.2f})"
            for name, rater in summary["raters"].items()
        )
        said.append(f"reliability, 1 is the average rater's: {reliability}")
    return said


def _raters(ranking: Ranking) -> dict[str, dict[str, float]]:
    counts = Counter(map(rater_name, ranking.comparisons))
    logs, deviations = np.log(ranking.fit.discriminations), ranking.fit.log_discrimination_deviations
    return {
        name: {
            "comparisons": counts[name],
            "discrimination": float(np.exp(log)),
            "low": float(np.exp(log - Z95 * deviation)),
            "high": float(np.exp(log + Z95 * deviation)),
        }
        for name, log, deviation in zip(ranking.raters, logs, deviations, strict=True)
    }


def _estimate(estimate: Estimate | None) -> dict[str, float | None]:
    return {"share": None, "low": None, "high": None} if estimate is None else _fields(estimate)


def _fields(estimate: Estimate) -> dict[str, float | None]:
    return {"share": estimate.value, "low": estimate.low, "high": estimate.high}


def _share(figures: dict[str, float]) -> str:
    return f"{figures['share']:.0%} ({figures['low']:.0%} to {figures['high']:.0%})"
