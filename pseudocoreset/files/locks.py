"""One process a directory: a lock that ends with the process that took it."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import threading

from pseudocoreset.files.storage import check_replaceable

__all__ = ["DirectoryLock"]

_HELD: dict[tuple[int, int], int] = {}  # process that holds the lock file of this device and number
_GUARD = threading.Lock()


class DirectoryLock:
    """Holds ``directory / "lock"`` until ``release``, or until this process ends.

    The lock is the process's own (POSIX record locks): a child that was forked meanwhile has no part in it, so that it
    may outlive this process without keeping the directory. Such locks do not keep a process from itself; a list of what
    is held does.

    Args:
        directory: an existing one.

    Raises:
        BlockingIOError: if another process, or another run of this one, holds it.
        CorruptFileError: if something else than a file is in the place of the lock.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        path = directory / "lock"
        check_replaceable(path)
        refusal = BlockingIOError(
            f"another process, or another run of this one, is using the checkpoints in {directory}"
        )
        with _GUARD:
            # Looked for before the file is opened: to close a second descriptor would give up the lock.
            if path.exists() and _HELD.get(_identity(path.stat())) == os.getpid():
                raise refusal
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise refusal from error
                raise
            self._descriptor, self._key = descriptor, _identity(os.fstat(descriptor))
            _HELD[self._key] = os.getpid()

    def release(self) -> None:
        """Give the directory free; nothing the second time, or in a child of the process that holds it."""
        with _GUARD:
            if _HELD.get(self._key) == os.getpid():
                del _HELD[self._key]
                os.close(self._descriptor)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
