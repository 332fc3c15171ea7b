"""Unpack untrusted archives: no member leaves the folder, no link or device is created, and the bytes written are limited."""

from __future__ import annotations

import errno
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from saev_core.errors import DownloadError

MAX_MEMBERS = 5_000_000
CHUNK = 1 << 20

KINDS = {".zip": "zip", ".tar": "tar", ".tgz": "tar", ".tar.gz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar"}
"""File name suffix -> kind of archive; any other file is taken as it is."""


def kind_of(name: str) -> str:
    """`zip`, `tar`, or empty for a plain file."""
    return next((kind for ending, kind in KINDS.items() if name.lower().endswith(ending)), "")


def unpack(archive: Path, folder: Path, limit: int) -> int:
    """Unpack a zip or tar file into `folder`; file modes, owners and times are not restored.

    Args:
        folder: new or empty; the caller renames it on success.
        limit: maximum number of bytes to write.

    Returns:
        Number of bytes written.

    Raises:
        DownloadError: it is damaged or encrypted; a member would leave the folder, or is a link or a device; it unpacks
            to more than `limit` bytes or five million members; or the disk is full.
    """
    members = _zip(archive) if kind_of(archive.name) == "zip" else _tar(archive)
    written = 0
    try:
        for number, (name, stream) in enumerate(members):
            if number >= MAX_MEMBERS:
                raise DownloadError(f"{archive} has more than {MAX_MEMBERS:,} members, too many for a data set of images.")
            path = folder.joinpath(*parts_of(name, archive))
            if stream is None:
                _make(path)
                continue
            _make(path.parent)
            written = _copy(stream, path, archive, written, limit)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{archive} is damaged ({error or type(error).__name__}); delete it and download it again.") from None
    return written


def parts_of(name: str, archive: Path) -> list[str]:
    """A member's name as path components that stay inside the folder.

    Raises:
        DownloadError: it is absolute, contains `..`, or names a drive.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", plain) or "\0" in plain:
        raise DownloadError(f"{archive} contains {name!r}, which would be written outside its folder; the archive was rejected.")
    return parts


def _zip(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DownloadError(f"{archive} contains {member.filename!r}, a link or a device; the archive was rejected.")
            if member.flag_bits & 1:
                raise DownloadError(f"{archive} is encrypted; it cannot be unpacked.")
            if member.is_dir():
                yield member.filename, None
            else:
                with opened.open(member) as stream:
                    yield member.filename, stream


def _tar(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with tarfile.open(archive, "r|*") as opened:
        for member in opened:
            opened.members = []  # type: ignore[attr-defined]  # otherwise every header stays in memory
            if member.isdir():
                yield member.name, None
            elif member.isreg():
                stream = opened.extractfile(member)
                assert stream is not None
                yield member.name, stream
            else:
                raise DownloadError(f"{archive} contains {member.name!r}, a link or a device; the archive was rejected.")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _copy(stream: IO[bytes], path: Path, archive: Path, written: int, limit: int) -> int:
    try:
        file = path.open("wb")
    except OSError as error:
        raise _cannot_write(path, error) from None
    with file:
        while data := stream.read(CHUNK):
            written += len(data)
            if written > limit:
                raise DownloadError(f"{archive} unpacks to more than {limit / 1e6:,.0f} MB, more than expected; the archive was rejected.")
            try:
                file.write(data)
            except OSError as error:
                raise _cannot_write(path, error) from None
    return written


def _cannot_write(path: Path, error: OSError) -> DownloadError:
    full = "; free some disk space and re-run the same command" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return DownloadError(f"{path} cannot be written ({error.strerror or error}){full}.")
