"""`rayrlhf` and `python -m rayrlhf`: runs the command line, and ends it with one message where the user can act."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from pathlib import Path

from rayrlhf.errors import UserError

INTERRUPTED = 130  # exit code: 128 + SIGINT


def main() -> None:
    """Exits 0, with a command's own code, 2 for what the user gave, 130 for Ctrl-C; a bug keeps its traceback."""
    folder = os.getcwd()
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)  # so that `my_rewards:MyReward` loads, whichever way we were started
    warnings.formatwarning = _told_warning
    try:
        from rayrlhf.cli import app

        app(prog_name="rayrlhf")
    except UserError as error:
        from rayrlhf.files import printable

        print(f"error: {printable(str(error))}", file=sys.stderr)  # it may repeat what a stranger wrote
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # one that a person or a file gave: whoever asks for it, it is nowhere
            raise
        from rayrlhf.files import printable

        name = printable(str(error.filename))
        shown = name if len(name) <= 100 else f"{name[:50]}...{name[-50:]}"
        print(f"error: {shown}: no file has so long a name ({len(name)} characters)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # the command line turns Ctrl-C into this code, in silence
            _say_interrupted()
        raise


def _told_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Ours as one line, for the person who started the command; a library's with its place."""
    from rayrlhf.files import printable

    own = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent)
    return f"{'warning' if own else f'{filename}:{lineno}: {category.__name__}'}: {printable(str(message))}\n"


def _say_interrupted() -> None:
    print("interrupted", file=sys.stderr)


if __name__ == "__main__":
    main()
