"""Writing files so that a reader sees all of one or nothing."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["check_distinct", "check_target", "replacing"]


def check_target(option: str, path: Path | None) -> None:
    """Refuse, before any work is done, what can't be written afterwards."""
    if path is None:
        return
    target = Path(os.path.realpath(path))
    if target.is_symlink() or (target.exists() and not target.is_file()) or not target.parent.is_dir():
        raise ValueError(f"{option}: got {path}, expected an ordinary file in an existing directory")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: got {path}, expected a file in a directory that may be written to")


def check_distinct(paths: Mapping[str, Path | None]) -> None:
    """Refuse options that name one file, by whatever names: one would be written over the other."""
    seen: dict[object, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        status = path.stat() if path.exists() else None
        key = os.path.realpath(path) if status is None else (status.st_dev, status.st_ino)
        if key in seen:
            raise ValueError(f"{option}: got {path}, expected another file than that of {seen[key]}")
        seen[key] = option


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; it takes that name if the ``with`` block succeeds.

    What was written through a link is in the file that it leads to, and a file that existed keeps its permissions.
    ValueError for a device; OSError where nothing can be written.
    """
    given, target = Path(path), Path(os.path.realpath(path))
    if given.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(given))
    if given.exists() and not stat.S_ISREG(given.stat().st_mode):
        raise ValueError(f"{given}: got a device, expected an ordinary file or none")
    if target.is_symlink():  # what a link leads to is none, unless it leads to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(given))
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    # never readable by more than the file it replaces; the umask takes permissions away, which are given back
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(temporary, flags, 0o666 if mode is None else mode)
    except OSError as error:
        raise _renamed(error, temporary, path) from None
    try:
        with os.fdopen(handle, "wb") as stream:
            if mode is not None:
                os.chmod(temporary, mode)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise _renamed(error, temporary, path) from None
        raise


def _renamed(error: OSError, temporary: Path, path: str | os.PathLike[str]) -> OSError:
    """Return an error that calls the file as its user does."""
    return OSError(error.errno, error.strerror, os.fspath(path)) if error.filename == str(temporary) else error
