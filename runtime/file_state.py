"""Whether a file has changed, and whether another process uses it."""

from __future__ import annotations

import errno
from pathlib import Path

from .errors import OutputError

Stamp = tuple[int, int, int]
"""A file's size in bytes, and the times in nanoseconds of its last change of content (mtime) and metadata (ctime)."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""How a file system without locks refuses one: Lustre as most clusters mount it, NFS without a lock service, others."""


def stamp(path: Path) -> Stamp | None:
    """Size and times by which a change of the file is noticed; None if it does not exist or cannot be examined."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def lock(descriptor: int, refusal: str, *, alone: bool = False) -> None:
    """Lock a file that is open for writing, until it is closed.

    Without ``fcntl`` (Windows), or on a file system that has no locks, this does nothing.

    Args:
        descriptor: of the open file.
        refusal: message of the error.
        alone: take a POSIX record lock, which child processes do not inherit, since a forked process may outlive this
            one when it is killed. Such a lock does not exclude other users of the file within the same process.

    Raises:
        OutputError: with ``refusal`` if another process holds the lock.
        OSError: the lock failed in another way.
    """
    try:
        import fcntl
    except ImportError:  # Windows refuses to rename or remove an open file, which stops a second run as well
        return
    try:
        (fcntl.lockf if alone else fcntl.flock)(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        raise OutputError(refusal) from None
    except OSError as err:
        if err.errno not in _NO_LOCKS:
            raise
