"""`rayrlhf` and `python -m rayrlhf`: runs the command line, and ends it with one message where the user can act."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from rayrlhf.errors import StorageError, UserError

INTERRUPTED = 130  # exit code: 128 + SIGINT


def main() -> None:
    """Exits 0, with a command's own code, 2 for what the user gave, 1 where the disk gave out, 130 for Ctrl-C; a bug keeps
    its traceback."""
    folder = os.getcwd()
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)  # so that `my_rewards:MyReward` loads, whichever way we were started
    try:
        from rayrlhf.cli import app

        app(prog_name="rayrlhf")
    except UserError as error:
        _end_with(error)
    except OSError as error:
        from rayrlhf.files import disk_is_full

        fault = disk_is_full(error)
        if fault is None:
            raise
        _end_with(fault)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # the command line turns Ctrl-C into this code, in silence
            _say_interrupted()
        raise


def _end_with(error: UserError) -> NoReturn:
    from rayrlhf.files import printable

    print(f"error: {printable(str(error))}", file=sys.stderr)  # it may repeat what a stranger wrote
    sys.exit(1 if isinstance(error, StorageError) else 2)


def _say_interrupted() -> None:
    print("interrupted", file=sys.stderr)


if __name__ == "__main__":
    main()
