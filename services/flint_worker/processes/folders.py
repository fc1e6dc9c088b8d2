"""Work folders: one for each program, gone when it has ended, whatever it left there."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from flint_ops.logging import get_logger

__all__ = ["make_folder", "remove_folder"]

_PREFIX: Final = "flint-program-"
_RM_S: Final = 60.0

_log = get_logger("flint_worker.processes")


def make_folder(parent: str, files: dict[str, bytes], owner: tuple[int, int] | None) -> Path:
    """A new folder that only `owner` (user and group id; None: the worker's own) can enter, with these files."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent or None))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
            if owner is not None:
                os.chown(folder / name, *owner)
        if owner is not None:
            os.chown(folder, *owner)
    except BaseException:
        remove_folder(folder)
        raise
    return folder


def remove_folder(folder: Path) -> None:
    """Removes it with everything in it. Blocks; what cannot be removed is logged, never raised."""
    try:
        shutil.rmtree(folder)
        return
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        pass  # folders without permissions, or thousands deep: the two steps below take both
    _open_up(folder)
    removed = subprocess.run(  # noqa: S603  (a fixed command on a folder of our own)
        ["/bin/rm", "-rf", "--", str(folder)], capture_output=True, timeout=_RM_S, check=False, env={}
    )
    if removed.returncode != 0:
        _log.warning("work_folder_stays", folder=str(folder))


def _open_up(folder: Path) -> None:
    """Makes every folder below readable and writable again, without following links."""
    todo = [str(folder)]
    while todo:
        place = todo.pop()
        try:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                continue
            os.chmod(place, 0o700)  # noqa: PTH101  (paths as scandir gives them)
            with os.scandir(place) as entries:
                todo += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # too long a path, or gone; `rm` says what stays
