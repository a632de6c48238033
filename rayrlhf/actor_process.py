"""What each worker process that Ray starts for a run does first, before it gets any work.

Ray calls `settle` by its name (`worker_process_setup_hook`): nothing that it imports may be large.
"""

from __future__ import annotations

import os
import sys

from rayrlhf.launchers import forget_launchers
from rayrlhf.python_path import LAST, KeptLast, move_last

SETTLE = f"{__name__}.settle"
FORGET_LAUNCHERS = "RAYRLHF_FORGET_LAUNCHERS"
"""Set to 1 for processes that meet others by `torch.distributed`: what a launcher left is none of their business."""


def settle() -> None:
    """Puts the user's working folder at the end of the search for modules, and forgets launchers where asked to."""
    last = [folder for folder in os.environ.get(LAST, "").split(os.pathsep) if folder]
    here = os.getcwd()
    if here in sys.path and here not in last:  # a job's working directory, which Ray has put in front
        last.append(here)
    if last:
        move_last(last)
        sys.meta_path.insert(0, KeptLast(last))
    if os.environ.pop(FORGET_LAUNCHERS, "") == "1":
        forget_launchers()
