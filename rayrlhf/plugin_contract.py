"""Checks of a plugin against its contract: one result a check, for rewards and environments alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rayrlhf.errors import UserError


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the contract: passed, or why not."""

    name: str
    passed: bool
    detail: str = ""  # what happened and the input it happened with; a remark or empty where it passed


class ContractError(Exception):
    """A check failed; the message says how."""


def checked(name: str, check: Callable[[], object]) -> CheckResult:
    """Runs a check, which raises ContractError or a UserError where it fails; text that it returns is a remark."""
    try:
        remark = check()
    except (ContractError, UserError) as error:
        return CheckResult(name, passed=False, detail=str(error))
    return CheckResult(name, passed=True, detail=remark if isinstance(remark, str) else "")
