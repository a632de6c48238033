"""`rayrlhf` and `python -m rayrlhf`: runs the command line, and ends it with one message where the user can act."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import NoReturn

from rayrlhf.errors import StorageError, UserError
from rayrlhf.interrupts import ended_as_by_ctrl_c
from rayrlhf.python_path import working_folder_last

INTERRUPTED = 130  # exit code: 128 + SIGINT


def main() -> None:
    """Exits 0, with a command's own code, 2 for what the user gave, 1 where the disk gave out, 130 for Ctrl-C; a bug keeps
    its traceback."""
    for stream in (sys.stdout, sys.stderr):  # what the terminal's encoding lacks is escaped, and stops nothing
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        working_folder_last()  # before much is imported: a file there may have the name of what we need
        from rayrlhf.cli import app
        from rayrlhf.messages import show_plainly

        show_plainly()
        with ended_as_by_ctrl_c():
            app(prog_name="rayrlhf")
    except UserError as error:
        _end_with(error)
    except OSError as error:
        from rayrlhf.files import fault_of_system

        fault = fault_of_system(error)
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
    from rayrlhf.reading import printable

    print(f"error: {printable(str(error))}", file=sys.stderr)  # it may repeat what a stranger wrote
    sys.exit(1 if isinstance(error, StorageError) else 2)


def _say_interrupted() -> None:
    print("interrupted", file=sys.stderr)


if __name__ == "__main__":
    main()
