"""Packages that come with an extra of RayRLHF: what is not installed is one line that names the extra."""

from __future__ import annotations

import importlib.util

from rayrlhf.errors import InstallationError

PACKAGES = {"rating": ("fastapi", "uvicorn"), "sweep": ("optuna",)}
"""Extra -> the modules that it brings."""


def require(extra: str, what: str) -> None:
    """Raises InstallationError where a package of an extra is missing. what: needs it, as the user calls it."""
    missing = [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallationError(f"{what} needs {', '.join(missing)}: pip install 'rayrlhf[{extra}]'")
