"""`Archive`, declared by a data set, and `download`, which fetches and unpacks archives into the folder that the data set reads."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saev_core.data.unpack import kind_of, unpack
from saev_core.errors import DownloadError
from saev_core.support.files import move_into_place, write_json
from saev_core.support.progress import Track, silent

log = logging.getLogger(__name__)

RECEIPT = "downloaded.json"
"""Record of a download, in the folder itself: URLs, sha256, and the entries created."""
WORK = ".download"
"""Complete and partial archives, in the folder itself, until all are unpacked."""
RATIO, SLACK = 30, 100_000_000
"""Images hardly compress: an archive that unpacks to over 30 times its size plus 100 MB, and does not declare it, is rejected."""


@dataclass(frozen=True)
class Archive:
    """A remote file of a data set: a zip or tar file, or any other file, taken as it is."""

    url: str
    checksum: str = ""
    """`md5:...`, `sha1:...` or `sha256:...` as published; empty if none is."""
    size: int = 0
    """Approximate bytes, for the disk space check."""
    unpacked: int = 0
    """Approximate bytes after unpacking; 0: about `size`."""
    inner: tuple[str, ...] = ()
    """Archives inside it, unpacked in place."""

    @property
    def name(self) -> str:
        """File name."""
        return self.url.partition("?")[0].rpartition("/")[2]

    @property
    def room(self) -> int:
        """Bytes of disk needed while it is unpacked."""
        return self.size + (self.unpacked or self.size) * (2 if self.inner else 1)


def download(
    archives: Sequence[Archive],
    folder: str | Path,
    *,
    again: bool = False,
    keep: bool = False,
    track: Track = silent,
    say: Callable[[str], None] = log.info,
    tries: int = 5,
    pause_s: float = 1.0,
) -> dict[str, Any]:
    """Download archives and unpack them into `folder`; each entry appears whole or not at all.

    Calling it again resumes a broken transfer. A file downloaded before is compared with the new one.

    Args:
        again: download even if everything is up to date.
        keep: keep the archives in `folder/.download`.
        track: receives the progress of each transfer.
        say: called with human-readable status lines.

    Returns:
        The contents of `downloaded.json`.

    Raises:
        DownloadError: the disk is too small, the network unreachable, or an archive damaged, changed or malicious; or `folder` holds
            other entries of the same name.
    """
    folder = Path(folder).expanduser()
    receipt = read_receipt(folder)
    if receipt.get("complete") and not again and set(receipt["archives"]) == {each.name for each in archives}:
        say(f"{folder} is up to date, skipping.")
        return receipt
    work = folder / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{folder} cannot be written ({error.strerror or error}); choose another folder.") from None
    with _alone(work):
        return _download(archives, folder, work, receipt, keep=keep, track=track, say=say, tries=tries, pause_s=pause_s)


def _download(
    archives: Sequence[Archive],
    folder: Path,
    work: Path,
    receipt: dict[str, Any],
    *,
    keep: bool,
    track: Track,
    say: Callable[[str], None],
    tries: int,
    pause_s: float,
) -> dict[str, Any]:
    from saev_core.data.http import fetch  # lazy: urllib would slow down importing a data set

    _need_room(archives, work)
    made = work / "unpacked"
    shutil.rmtree(made, ignore_errors=True)
    came = {}
    for archive in archives:
        about = fetch(
            archive.url, work / archive.name, checksum=archive.checksum, size=archive.size, track=track, tries=tries, pause_s=pause_s
        )
        _compare(archive, about, receipt, work, say)
        came[archive.name] = about
    for archive in archives:
        say(f"unpack {archive.name}")
        _unpack(archive, work, made)
    entries = sorted(entry.name for entry in made.iterdir())
    ours = set(receipt.get("entries", []))
    if strange := [name for name in entries if (folder / name).exists() and name not in ours]:
        raise DownloadError(f"{folder / strange[0]} already exists and was not downloaded here; move it away, or choose another folder.")
    # Before the entries: if this process dies in between, the next one knows that they are ours.
    receipt = {"complete": False, "archives": came, "entries": sorted(ours | set(entries))}
    write_json(folder / RECEIPT, receipt)
    for name in entries:
        move_into_place(made / name, folder / name)
    receipt |= {"complete": True, "entries": entries}
    write_json(folder / RECEIPT, receipt)
    if keep:
        shutil.rmtree(made)
    else:
        shutil.rmtree(work)
    return receipt


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Lock the folder against other downloads, where the file system has locks; a lock ends with its process."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another process is downloading into {work.parent}; wait until it is done.") from None
        except OSError:  # a file system without locks
            log.debug("no lock in %s", work)
        yield


def read_receipt(folder: Path) -> dict[str, Any]:
    """The record of what was downloaded into a folder; empty if nothing was.

    Raises:
        DownloadError: the receipt is not readable.
    """
    path = folder / RECEIPT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not {"complete", "archives", "entries"} <= set(found):
            raise ValueError("keys are missing")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise DownloadError(f"{path} cannot be read ({error}); delete it to download again.") from None
    return dict(found)


def _need_room(archives: Sequence[Archive], work: Path) -> None:
    # What has been downloaded of the archives needs no further space.
    there = sum(path.stat().st_size for path in work.iterdir() if path.is_file())
    need, free = sum(each.room for each in archives) - there, shutil.disk_usage(work).free
    if need > free:
        raise DownloadError(f"{work.parent} has {free / 1e9:,.1f} GB free, and {need / 1e9:,.1f} GB are needed; choose another folder.")


def _compare(archive: Archive, about: dict[str, Any], receipt: dict[str, Any], work: Path, say: Callable[[str], None]) -> None:
    before = receipt.get("archives", {}).get(archive.name, {}).get("sha256", about["sha256"])
    if before != about["sha256"]:
        bad = work / f"{archive.name}.bad"
        (work / archive.name).replace(bad)
        raise DownloadError(f"{archive.url} has changed: its sha256 is {about['sha256']}, and was {before}; kept as {bad}.")
    if not archive.checksum:
        say(f"no checksum is published for {archive.name}; its sha256 {about['sha256']} is saved in {RECEIPT} for later comparison.")


def _unpack(archive: Archive, work: Path, made: Path) -> None:
    made.mkdir(exist_ok=True)
    path = work / archive.name
    if not kind_of(archive.name):
        shutil.copyfile(path, made / archive.name)
        return
    limit = archive.unpacked * 3 // 2 if archive.unpacked else path.stat().st_size * RATIO + SLACK
    limit -= unpack(path, made, limit)
    for name in archive.inner:
        inside = made / name
        if not inside.is_file():
            raise DownloadError(f"{archive.url} does not contain {name}; the archive has changed.")
        limit -= unpack(inside, inside.parent, limit)
        inside.unlink()


__all__ = ["RECEIPT", "Archive", "download", "read_receipt"]
