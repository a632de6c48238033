"""drawn"""

from __future__ import annotations

from tests.mutations.runner import Mutation

DRAWN: tuple[Mutation, ...] = ()
