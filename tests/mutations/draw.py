"""Draws mutations from all that cosmic-ray proposes for the code between a config and an update.

    python -m venv ENV && ENV/bin/pip install cosmic-ray
    ENV/bin/python tests/mutations/draw.py [COUNT [SEED]]

prints each as a difference; nothing is changed. cosmic-ray is no dependency of the project: this reads source text
alone. `drawn.py` has the 60 of seed 20260, from the code as it was then; from other code the same seed draws others.

Places are drawn, each as likely as the next, and then one of what is proposed there: there are eleven operators to put
in place of a `+`, most of which raise at once, and two numbers in place of a 1. Annotations are left out, since nothing
evaluates them.
"""

from __future__ import annotations

import ast
import difflib
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

PACKAGE = Path(__file__).resolve().parents[2] / "rayrlhf"
MODULES = (
    "algorithms/*", "kl*", "losses", "advantages", "batch_loss", "learner", "micro_batches", "packed_sequences", "rollout",
    "controllers", "update_statistics", "update_checks", "value", "policy_network", "run_parts",
)  # fmt: skip
COUNT, SEED = 60, 20260
WITH_SETTINGS = {"core/VariableReplacer", "core/VariableInserter"}  # operators that want names to look for

Position = tuple[tuple[int, int], tuple[int, int]]


class Positions(Visitor):
    """Where an operator of cosmic-ray proposes something, in the order of its occurrences."""

    def __init__(self, operator: object) -> None:
        self.operator, self.found = operator, []

    def visit(self, node: object) -> object:
        self.found += self.operator.mutation_positions(node)  # type: ignore[attr-defined]
        return node


def annotations(source: str) -> list[Position]:
    nodes = [
        annotation
        for node in ast.walk(ast.parse(source))
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
    ]
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in nodes]


def proposals(file: Path) -> Iterator[tuple[str, Position, str, int]]:
    """Module, place, operator and its occurrence, of all that is proposed for a file."""
    source = file.read_text()
    left_out = annotations(source)
    for name in sorted(set(operator_names()) - WITH_SETTINGS):
        positions = Positions(get_operator(name)())
        positions.walk(get_ast(source))
        for occurrence, (start, end) in enumerate(positions.found):
            if not any(first <= start and end <= last for first, last in left_out):
                yield str(file), (start, end), name, occurrence


def main(count: int = COUNT, seed: int = SEED) -> None:
    files = sorted({file for pattern in MODULES for file in PACKAGE.glob(f"{pattern}.py")})
    places: dict[tuple[str, Position], list[tuple[str, int]]] = {}
    for file in files:
        for module, position, name, occurrence in proposals(file):
            places.setdefault((module, position), []).append((name, occurrence))
    print(f"{sum(map(len, places.values()))} proposals at {len(places)} places of {len(files)} files; seed {seed}")
    rng = random.Random(seed)
    for number, place in enumerate(sorted(rng.sample(sorted(places), count))):
        name, occurrence = rng.choice(sorted(places[place]))
        file, source = Path(place[0]), Path(place[0]).read_text()
        mutated = mutate_code(source, get_operator(name)(), occurrence)
        print(f"\n{number}: {file.relative_to(PACKAGE)}:{place[1][0][0]} {name} {occurrence}")
        lines = difflib.unified_diff(source.splitlines(), mutated.splitlines(), lineterm="", n=0)
        print("\n".join(line for line in lines if not line.startswith(("---", "+++", "@@"))))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
