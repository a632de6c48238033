"""The option --trust of every command that reads what a stranger may have made; see trust.py."""

from __future__ import annotations

from typing import Annotated

import typer

TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="FOLDER",
        help="Run the code that this folder, file or model names or brings, and say which. May be repeated.",
        show_default=False,
    ),
]
