"""How the loop goes round: the section `loop` of a project's config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class SimulatedRaterConfig(Section):
    """Someone who prefers what a rule prefers, with Bradley-Terry noise and Davidson's ties: to try a loop out."""

    rule: str = "starts_with_a"
    """A reward by its name, hidden from all else."""
    per_word: bool = True
    """The rule's score is divided by the number of words."""
    agreement: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    """How often the rater would say the same again of two texts that it told apart, over random pairs of the first
    texts: it sets the noise."""
    ties: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of ties over the same pairs."""
    seed: NonNegativeInt = 0


class LoopConfig(Section):
    """One round: sample, check, rate, rank, train a reward model, optimise it."""

    rounds: PositiveInt = 3
    prompts_per_round: PositiveInt = 100
    """Prompts of the task that are sampled from."""
    completions: Annotated[int, Field(ge=2)] = 4
    """Samples of each prompt, to be compared with each other (SPEC GWERN-33)."""
    comparisons_per_round: PositiveInt = 400
    """The round goes on once so many were made in it, those of automatic checks not counted."""
    bridges: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of a later round's comparisons that hold a new sample against one of an earlier round: without any, the
    rounds' scores have nothing in common and drift apart (SPEC GWERN-22)."""
    labels: Literal["interleaved", "static"] = "interleaved"
    """`interleaved`: each round's policy is rated. `static`: all comparisons are made in the first round, on the
    reference's samples, and later rounds sample for the records alone (SPEC TOK-9)."""
    rater: SimulatedRaterConfig | None = None
    """null: people, at `rayrlhf rate`."""
    start: Literal["reference", "previous"] = "reference"
    """What each round's policy starts from; the KL is to this."""
    optimise: tuple[str, ...] = ()
    """KEY=VALUE settings of the round's run beside the task's, such as iterations=60."""
    kl_coef: PositiveFloat = 0.2
    """KL coefficient a nat of sequence; reward models score the reference with deviation 1, whatever they learnt."""
    evaluation_samples: PositiveInt = 200
    """Samples of each round's policy for the report."""
    seed: NonNegativeInt = 0
