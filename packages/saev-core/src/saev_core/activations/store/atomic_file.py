"""`Temporary`: a store file, written at arbitrary offsets under a temporary name and renamed when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import socket
from pathlib import Path
from typing import Self

from saev_core.errors import StoreError
from saev_core.support.files import remove_abandoned, sync

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Temporary:
    """A temporary file beside its final path; `publish` moves it there atomically.

    It is locked while its writer lives, so that a later writer can tell leftovers of a killed process from work in progress.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
            self.temp = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{id(self):x}.tmp")
            self._fd = os.open(self.temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _failed(path, error) from None
        self._settled = False
        # Without locks, leftovers of killed writers cannot be cleaned up; nothing else changes.
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes on the disk, if the file system can: writing them then takes a third less processor time.

        Raises:
            StoreError: the disk is too full. The file is removed first.
        """
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno in _FULL:
                self.discard()
                raise _failed(self.path, error) from None

    def send(self, offset: int, size: int) -> None:
        """Start flushing written bytes to the disk, so that `settle` has less to wait for."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                # Starts the transfer and drops cached pages already on the disk; bytes just written are not, so they stay cached.
                os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_DONTNEED)

    def cut(self, size: int) -> None:
        """Release the space reserved beyond `size`.

        Raises:
            StoreError: the disk is gone. The partial file is removed first.
        """
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self.discard()
            raise _failed(self.path, error) from None

    def write(self, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at `offset`.

        Raises:
            StoreError: the disk is full or gone. The partial file is removed first.
        """
        self._settled = False
        view = memoryview(data)
        try:
            while view:
                n = os.pwrite(self._fd, view, offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            self.discard()
            raise _failed(self.path, error) from None

    def settle(self) -> None:
        """Flush every byte to the disk.

        Raises:
            StoreError: the flush failed. The partial file is removed first.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            self.discard()
            raise _failed(self.path, error) from None
        self._settled = True

    def publish(self) -> None:
        """Settle, if not done yet, then rename into place."""
        if not self._settled:
            self.settle()
        try:
            self.temp.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            self.discard()
            raise _failed(self.path, error) from None
        os.close(self._fd)
        self._fd = -1

    def discard(self) -> None:
        """Remove the temporary file. Harmless after `publish`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.temp.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()


def _failed(path: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreError(
            f"{path}: the disk is full ({error.strerror}); free some space or record to another disk with --store. "
            "Finished shards are kept; re-run the same command to resume."
        )
    return StoreError(f"{path}: cannot be written ({error.strerror or error}); check the folder's permissions, or pass --store.")
