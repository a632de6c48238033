"""What RAY_ADDRESS says, looked at before anything large is imported: an address that leads nowhere is refused at once.

Ray itself would wait for 45 s and end in a traceback. It is not imported here.
"""

from __future__ import annotations

import os
import socket

from rayrlhf.errors import InstallationError

OWN = ("", "local")
"""What RAY_ADDRESS says where a cluster of the run's own is to be started."""
ANSWER_TIMEOUT_S = 5.0  # of a connection to the head node's port
ELSEWHERE = (
    "run on a node of the cluster with RAY_ADDRESS=auto, or submit with `ray job submit`; without RAY_ADDRESS the run "
    "starts a cluster of its own on this machine"
)


def given_address() -> str | None:
    """The address of the cluster to join; None where the run starts one of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in OWN else address


def check_address(address: str | None, taken_for: str | None = None) -> None:
    """Raises InstallationError where no cluster can be at `address`, what `given_address` says.

    taken_for: what Ray makes of it; of this machine it takes the outer address.
    """
    if address is None:
        return
    if "://" in address:
        client = address.startswith("ray://")
        kind = "Ray's client, which this program does not use" if client else "no head node's HOST:PORT"
        raise InstallationError(f"RAY_ADDRESS={address} is an address of {kind}: {ELSEWHERE}")
    if address != "auto":
        _check_answers(taken_for or address, address)


def _check_answers(address: str, given: str) -> None:
    """Raises InstallationError where nobody listens at HOST:PORT."""
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise InstallationError(f"RAY_ADDRESS={given} is no HOST:PORT, such as 10.0.0.1:6379: {ELSEWHERE}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        there = "there" if address == given else f"at {address}, which Ray takes for it"
        raise InstallationError(f"RAY_ADDRESS={given}: no Ray cluster answers {there} ({why}): {ELSEWHERE}") from error
