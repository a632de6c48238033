"""Where a model lies that somebody has named: a shipped one, a folder, a run's or a checkpoint's model, a hub's.

Whatever is nowhere is answered at once, with what is near it.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
from pathlib import Path

from rayrlhf.checkpoint import MANIFEST, MODEL, newest_model, verify, whole_checkpoints
from rayrlhf.errors import CheckpointError, ModelError
from rayrlhf.model_config import check_claims, first_line
from rayrlhf.reading import check_files, printable

ASSETS = Path(__file__).parent / "assets"
HUB_TIMEOUT_S = 10.0  # of each of two tries to reach it

logger = logging.getLogger(__name__)


def resolve_model(path: str) -> str:
    """The folder of a shipped model, the absolute path of a local folder, or a hub name as it is.

    Of a run, its folder of checkpoints or a checkpoint the model is taken, which is said.

    Raises ModelError for a path that looks local and is no model folder, one whose config.json claims what its weights
    cannot be, and a hub name where there is no hub.
    """
    if not path.strip() or "\0" in path:
        raise ModelError(f"model {printable(path)!r}: this names no model; give a folder or a hub's name")
    try:
        shipped = ASSETS / path
        if "/" not in path and shipped.is_dir() and not Path(path).exists():
            return str(shipped)
        folder = Path(path).expanduser()
        if folder.is_dir():
            return str(_model_folder(folder, path))
        if folder.exists():
            raise ModelError(
                f"model {path}: this is a file; give the folder that holds config.json and model.safetensors"
            )
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a zero byte, ~nobody
        raise ModelError(f"model {printable(path)[:200]}: this is no path: {first_line(error)}") from error
    if _looks_local(path, folder):
        raise ModelError(f"model {path}: no such folder{_near(folder)}")
    reach_hub(path)
    return path


def _model_folder(folder: Path, path: str) -> Path:
    found = folder if (folder / "config.json").is_file() else _saved_in(folder, path)
    check_files(found, ModelError)
    check_claims(found, path)
    return found.resolve()


def _saved_in(folder: Path, path: str) -> Path:
    """The model of a run or checkpoint at `folder`. Raises ModelError where it is neither."""
    try:
        found = _checkpoints_model(folder)
    except CheckpointError as error:
        raise ModelError(f"model {path}: {error}") from error
    if found is None:
        inner = sorted(str(file.parent) for file in [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])
        hint = f"; there are models in {', '.join(inner[:3])}" if inner else _near_inside(folder)
        raise ModelError(f"model {path}: the folder has no config.json, so it is no saved model{hint}")
    _tell(path, str(found))
    return found


def _checkpoints_model(folder: Path) -> Path | None:
    if (folder / "config.yaml").is_file() and not (folder / "checkpoints").is_dir():
        raise CheckpointError("this is the folder of a run that has no checkpoint yet")
    if (folder / "checkpoints").is_dir():
        return newest_model(folder / "checkpoints")
    if (folder / MANIFEST).is_file() and (folder / MODEL).is_dir():
        verify(folder)
        return folder / MODEL
    if whole_checkpoints(folder):
        return newest_model(folder)
    return None


@functools.cache
def _tell(path: str, found: str) -> None:
    """Once a process."""
    logger.warning("model %s: this is no model's folder; the model in %s is taken", path, found)


def _near_inside(folder: Path) -> str:
    runs = sorted(str(entry.parent) for entry in folder.glob("*/checkpoints"))
    return f"; there are runs in it: {', '.join(runs[:3])}" if runs else ""


def _looks_local(path: str, folder: Path) -> bool:
    """A hub name has one slash at most; and none is meant where its first part is a folder that is there."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    return "/" in path and folder.parent.is_dir() and not _on_disk(path)


def _near(folder: Path) -> str:
    """What has a name like that of the first folder on the way that is missing."""
    missing = folder
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    entries = (
        sorted(entry.name for entry in missing.parent.iterdir() if entry.is_dir()) if missing.parent.is_dir() else []
    )
    shown = [name for name in entries if not name.startswith(".")]
    close = difflib.get_close_matches(missing.name, shown, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(str(missing.parent / name) for name in close)}?"
    return f"; in {missing.parent} there are {', '.join(shown[:5])}" if shown else f"; {missing.parent} holds no folder"


def _near_name(path: str) -> str:
    names = [entry.name for place in (ASSETS, Path()) for entry in place.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(path, [name for name in names if not name.startswith(".")], n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _on_disk(name: str) -> bool:
    """Whether an earlier download of this model is kept."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


@functools.cache
def reach_hub(name: str) -> None:
    """Asks the hub for a model once, and once more, before libraries ask five times for each of its files.

    Where it cannot be reached an earlier download is used. Raises ModelError where there is none, or no such model.
    """
    from huggingface_hub import constants, hf_hub_url, utils
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    absent = f"model {name}: there is no folder of this name here{_near_name(name)}"
    if constants.HF_HUB_OFFLINE:
        if not _on_disk(name):
            raise ModelError(f"{absent}, no earlier download of it is kept, and the hub is off (HF_HUB_OFFLINE)")
        return
    before = utils.logging.get_verbosity()
    utils.logging.set_verbosity_error()  # that it tries again is no news
    try:
        url, headers = hf_hub_url(name, "config.json", endpoint=constants.ENDPOINT), utils.build_hf_headers()
        answer = utils.http_backoff("HEAD", url, max_retries=1, timeout=HUB_TIMEOUT_S, headers=headers)
    except HFValidationError as error:
        raise ModelError(f"{absent}, and it is no hub's name for a model") from error
    except HfHubHTTPError as error:
        answer = error.response
    except Exception as error:
        if not _on_disk(name):
            raise ModelError(
                f"{absent}, and the hub {constants.ENDPOINT} cannot be reached: {first_line(error)}"
            ) from error
        logger.warning("model %s: the hub cannot be reached; the earlier download is used", name)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        return
    finally:
        utils.logging.set_verbosity(before)
    if answer.status_code in (401, 403, 404):
        raise ModelError(
            f"{absent}, and the hub {constants.ENDPOINT} shows no such model (HTTP {answer.status_code}): mind the "
            "spelling, or log in where it is not open to all"
        )
