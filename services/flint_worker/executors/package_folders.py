"""Folders of installed packages: made the worker's own, and recognised when somebody changed them. All of it blocks."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

from flint_worker.processes.folders import remove_folder

__all__ = ["WorkersFolder", "is_kept_by", "signature", "taken_over"]

_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_YOUNG_S: Final = 60.0


def taken_over(source: Path, target: Path, owner: int) -> None:
    """Copy a tree of `owner` into the new folder `target`, so that only this process's user can change it.

    A copy, because whoever wrote the originals may still hold them open. Raises OSError for anything but folders and
    plain files of `owner`: a link could lead to what only this process may read.
    """
    target.mkdir(mode=0o700)
    for root, folders, files, at in os.fwalk(source, follow_symlinks=False):
        into = target / Path(root).relative_to(source)
        for name in folders:
            if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                raise OSError(f"a package holds a link: {name}")
            (into / name).mkdir(mode=0o755)
            (into / name).chmod(0o755)
        for name in files:
            number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
            with os.fdopen(number, "rb") as original:
                status = os.fstat(number)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
                    raise OSError(f"a package holds what is no file of its own: {name}")
                with (into / name).open("xb") as copy:
                    shutil.copyfileobj(original, copy)
                (into / name).chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)
    target.chmod(0o755)


def is_kept_by(folder: Path, user: int) -> bool:
    """Whether a folder belongs to `user` or root and nobody else may write into it; False when there is none."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (user, 0) and not status.st_mode & _OTHERS_MAY_WRITE


def signature(folder: Path) -> bytes:
    """What changes with every change below: identities, sizes and times, among them the one that no program can set."""
    digest = hashlib.sha256()
    todo = [str(folder)]
    while todo:
        place = todo.pop()
        status = os.lstat(place)
        identity = (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        digest.update(repr((place, identity)).encode("utf-8", "surrogateescape"))
        if stat.S_ISDIR(status.st_mode):
            todo += [os.path.join(place, name) for name in sorted(os.listdir(place))]  # noqa: PTH118, PTH208
    return digest.digest()


class WorkersFolder:
    """A folder of this worker process alone; those of workers that died are removed when another begins."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        for other in parent.glob("worker-*"):
            _remove_if_left(other)
        self.path = Path(tempfile.mkdtemp(prefix="worker-", dir=parent))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Removes it."""
        remove_folder(self.path)
        os.close(self._lock)


def _remove_if_left(folder: Path) -> None:
    try:
        if time.time() - folder.lstat().st_mtime < _YOUNG_S:
            return  # perhaps not locked yet
        number = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone, or none of ours
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_folder(folder)
    except BlockingIOError:
        return  # its worker lives
    finally:
        os.close(number)
