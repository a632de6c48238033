"""What the checks of labels are given and what they give back."""

from __future__ import annotations

from dataclasses import dataclass

from rayrlhf.preferences.records import Item
from rayrlhf.preferences.schema import Record


@dataclass(frozen=True, slots=True)
class Label:
    """One label, or texts to rate, and where it stands."""

    place: str  # `file:line`, or folder and id
    items: tuple[Item, ...]
    record: Record | None
    rows: int = 1  # of its file


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or suspicious."""

    kind: str  # findings of a kind are reported together
    place: str
    message: str
    fault: bool = False  # else a warning
