"""Fetch one file over HTTP: resumes partial downloads, retries with exponential backoff, verifies the checksum."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import math
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saev_core.errors import DownloadError
from saev_core.support.progress import Track, silent

log = logging.getLogger(__name__)

CHUNK = 1 << 18
TIMEOUT_S = 60.0
LONGEST_PAUSE_S = 60.0
MOST_ATTEMPTS = 100
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class _Begun:
    """What the server said about a partially downloaded file; stored beside the partial file."""

    url: str
    etag: str = ""
    modified: str = ""
    total: int = -1


class _Broken(Exception):
    """The transfer broke off and can be resumed."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def fetch(
    url: str,
    path: Path,
    *,
    checksum: str = "",
    size: int = 0,
    track: Track = silent,
    tries: int = 5,
    pause_s: float = 1.0,
) -> dict[str, Any]:
    """Download `url` to `path`. A partial download is resumed if the file on the server is unchanged.

    Args:
        checksum: `md5:...`, `sha1:...` or `sha256:...`; empty: unknown.
        size: approximate bytes; more than twice as many are refused. 0: unknown.
        tries: consecutive attempts that receive nothing before giving up; two if the host is not found.
        pause_s: seconds to wait after the first of them, doubled after each further one.

    Returns:
        `url`, `sha256`, `size`, and `checked`: the checksum that was verified, or None.

    Raises:
        DownloadError: it cannot be reached or written, or does not match its checksum; the file is then kept as `NAME.bad`.
    """
    if not re.match(r"https?://", url):
        raise DownloadError(f"{url}: only http and https URLs are supported.")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(f"{path.parent} cannot be written ({error.strerror or error}).") from None
        _bring(url, path, size, track, tries, pause_s)
    return check(url, path, checksum)


def check(url: str, path: Path, checksum: str) -> dict[str, Any]:
    """Verify a downloaded file against its checksum.

    Raises:
        DownloadError: they differ; the file is renamed to `NAME.bad`.
    """
    algorithm, _, wanted = checksum.partition(":")
    sums = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", algorithm or "sha256"}}
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            for each in sums.values():
                each.update(data)
    found = sums[algorithm or "sha256"].hexdigest()
    if wanted and found != wanted.lower():
        bad = path.with_name(f"{path.name}.bad")
        path.replace(bad)
        raise DownloadError(
            f"{url}: {algorithm} is {found}, expected {wanted}: the download is corrupt or the file has changed; "
            f"kept as {bad}. Re-run the same command to download it again."
        )
    return {"url": url, "sha256": sums["sha256"].hexdigest(), "size": path.stat().st_size, "checked": checksum or None}


def _bring(url: str, path: Path, size: int, track: Track, tries: int, pause_s: float) -> None:
    part = path.with_name(f"{path.name}.part")
    failed = 0
    for _ in range(MOST_ATTEMPTS):
        before = _size(part)
        try:
            _transfer(url, part, size, track)
        except _Broken as error:
            failed = 1 if _size(part) > before else failed + 1
            if failed >= (min(tries, 2) if isinstance(error.__cause__, socket.gaierror) else tries):
                kept = (
                    f" The {_size(part) / 1e6:,.1f} MB received so far are kept: re-run the same command to resume." if _size(part) else ""
                )
                raise DownloadError(f"{url} cannot be fetched ({error}); is this machine online?{kept}") from None
            wait = min(max(error.wait_s, pause_s * 2 ** (failed - 1)), LONGEST_PAUSE_S)
            log.warning("%s: %s; resuming in %.0f s", url, error, wait)
            time.sleep(wait)
            continue
        part.replace(path)
        _notes(part).unlink(missing_ok=True)
        return
    raise DownloadError(f"{url}: the transfer broke off {MOST_ATTEMPTS} times; partial data is kept: re-run the same command to resume.")


def _transfer(url: str, part: Path, size: int, track: Track) -> None:
    """One attempt.

    Raises:
        _Broken: it can be retried.
        DownloadError: a retry would not help.
    """
    have, begun = _size(part), _known(part)
    headers = {"User-Agent": "saev", "Accept-Encoding": "identity"}
    if have and begun.url == url:
        headers["Range"] = f"bytes={have}-"
        if unchanged := begun.etag or begun.modified:
            headers["If-Range"] = unchanged
    else:
        have = 0
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            _receive(url, part, response, have, begun, size, track)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                if have and have == begun.total:
                    return
                part.unlink(missing_ok=True)
                raise _Broken("the file on the server has changed") from None
            if error.code in _AGAIN:
                after = error.headers.get("Retry-After", "")
                raise _Broken(f"{error.code} {error.reason}", float(after) if after.isdigit() else 0.0) from None
            raise DownloadError(
                f"{url} returned {error.code} {error.reason}; if it has moved, save the file as {part.with_suffix('')} "
                "and re-run the same command."
            ) from None
    except (http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        cause = reason if isinstance(reason, socket.gaierror) else None
        raise _Broken(str(getattr(reason, "strerror", None) or reason) or type(error).__name__) from cause


def _receive(url: str, part: Path, response: Any, have: int, begun: _Begun, size: int, track: Track) -> None:
    length = response.headers.get("Content-Length")
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        total = int(found[2]) if found and found[2] != "*" else begun.total
        same = response.headers.get("ETag", begun.etag) == begun.etag or not begun.etag
        if not found or int(found[1]) != have or total != begun.total or not same:
            part.unlink(missing_ok=True)
            raise _Broken("the file on the server has changed")
    else:
        have, total = 0, int(length) if length else -1
    if size and total > 2 * size + 10**6:
        raise DownloadError(f"{url} is {total / 1e6:,.0f} MB, expected about {size / 1e6:,.0f} MB; not downloading it.")
    room = shutil.disk_usage(part.parent).free
    if total - have > room:
        raise DownloadError(
            f"{part.parent} has {room / 1e6:,.0f} MB free, {url} needs {(total - have) / 1e6:,.0f} MB; free some disk space."
        )
    etag = response.headers.get("ETag", "")
    known = _Begun(url, "" if etag.startswith("W/") else etag, response.headers.get("Last-Modified", ""), total)
    _write(_notes(part), json.dumps(asdict(known)).encode(), "wb")
    with track(f"fetch {part.stem}", max(math.ceil(total / 1e6), 0), "MB") as meter:
        meter.skip(int(have / 1e6))
        _pour(url, part, response, have, total, 2 * size + 10**6 if size else 0, meter)


def _pour(url: str, part: Path, response: Any, have: int, total: int, most: int, meter: Any) -> None:
    try:
        file = part.open("ab" if have else "wb")
    except OSError as error:
        raise _cannot_write(part, error) from None
    came = have
    with file:
        while data := response.read(CHUNK):
            try:
                file.write(data)
            except OSError as error:
                raise _cannot_write(part, error) from None
            meter.update(int((came + len(data)) / 1e6) - int(came / 1e6))
            came += len(data)
            if most and came > most:
                raise DownloadError(f"{url} sent more than {most / 1e6:,.0f} MB, twice the expected size; giving up.")
    if came < total:
        # http.client does not raise when the connection drops.
        raise _Broken(f"connection lost after {came:,} of {total:,} bytes")


def _write(path: Path, data: bytes, mode: str) -> None:
    try:
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> DownloadError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    todo = "free some disk space and re-run the same command to resume" if full else "check its permissions"
    return DownloadError(f"{path} cannot be written ({error.strerror or error}); {todo}.")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _known(part: Path) -> _Begun:
    try:
        return _Begun(**json.loads(_notes(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Begun("")  # truncated: start over


__all__ = ["check", "fetch"]
