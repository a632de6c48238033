"""The table of mutations is of the code as it is, and its runner tells what a test catches from what it does not.

`make mutations` runs the table itself; here is what must hold for that to mean something, in seconds.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from tests.mutations.drawn import DRAWN
from tests.mutations.guards import GUARDS
from tests.mutations.runner import ROOT, Mutation
from tests.mutations.table import MUTATIONS

ALL = (*MUTATIONS, *DRAWN, *GUARDS)


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.name)
def test_its_line_stands_once_in_its_function(mutation: Mutation) -> None:
    """Code that is moved or rewritten takes its mutations along: an entry that fits no more guards nothing."""
    source = (ROOT / mutation.file).read_text()
    assert mutation.applied(source) != source


def test_the_tests_that_are_to_catch_them_are_there() -> None:
    for file in {node_id.partition("::")[0] for mutation in ALL for node_id in mutation.node_ids}:
        named = {n.partition("::")[2].partition("[")[0] for m in ALL for n in m.node_ids if n.startswith(f"{file}::")}
        there = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert named <= there, file


def test_no_two_of_them_have_one_name() -> None:
    assert [name for name, count in Counter(mutation.name for mutation in ALL).items() if count > 1] == []


def test_a_place_or_line_that_is_not_there_is_named() -> None:
    source = "def f(a):\n    return a + 1 + 1\n\n\nclass C:\n    def f(self):\n        return 2\n"

    def refused(place: str, old: str, new: str) -> str:
        with pytest.raises(ValueError) as caught:
            Mutation("n", place, old, new, ()).applied(source)
        return str(caught.value)

    assert Mutation("n", "m:C.f", "return 2", "return 3", ()).applied(source) == source.replace("return 2", "return 3")
    assert "'+ 1' stands 2 times in m:f, not once" in refused("m:f", "+ 1", "- 1")
    assert "'return 2' stands 0 times in m:f, not once" in refused("m:f", "return 2", "return 3")
    assert "there is not one g, but 0" in refused("m:C.g", "return 2", "return 3")
    assert "changes nothing" in refused("m:f", "return a", "return  a")


PROGRAM = """
import sys
from tests.mutations.__main__ import main
from tests.mutations.runner import Mutation

def mutation(name, new):
    return Mutation(name, "text_statistics:duplicate_rate", "1.0 - len(set(texts))", new, "test_text_statistics.py")

imported = ["torch", "pytest", "hypothesis"]
for words in sys.argv[1:]:
    print("exit code", main([], [mutation(*one.split(": ")) for one in words.split("; ")], imported=imported), flush=True)
"""


def package() -> str:
    """A fingerprint of the package's code."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "rayrlhf").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def test_what_survives_and_what_breaks_ends_in_exit_code_1() -> None:
    """The whole runner, twice in a process of its own; the checkout stays as it is."""
    before, wrong = package(), "wrong: 1.0 + len(set(texts))"
    others = f"the same: 1.0 - len({{*texts}}); {wrong}; no program: 1.0 - len(set(unheard_of))"
    command = [sys.executable, "-c", PROGRAM, wrong, others]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    all_caught, not_all = done.stdout.split("exit code 0\n")
    assert "caught" in all_caught
    assert "1 mutations, 1 caught, 0 lines to look at" in all_caught
    for said in ("SURVIVED", "caught", "BROKEN", "name 'unheard_of' is not defined", "3 mutations, 1 caught, 2 lines"):
        assert said in not_all
    assert not_all.endswith("exit code 1\n")
    assert package() == before
