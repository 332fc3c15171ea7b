"""Fetching one file over HTTP: resumed where it broke off, tried again with growing pauses, checked by its checksum."""

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
    """What is known of a file of which a part has come: kept beside the part."""

    url: str
    etag: str = ""
    modified: str = ""
    total: int = -1


class _Broken(Exception):
    """The transfer broke off; it may be gone on with."""

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
    """Bring `url` to `path`. A part that came before is gone on with, if the server still has the same file.

    Args:
        checksum: `md5:...`, `sha1:...` or `sha256:...`; empty: none is known.
        size: bytes, about; more than twice as many are refused. 0: not known.
        tries: attempts in a row that bring nothing; of those that find no such host, two.
        pause_s: seconds after the first of them; each further one doubles it.

    Returns:
        `url`, `sha256`, `size`, and `checked`: the checksum that was compared, or None.

    Raises:
        DownloadError: it cannot be reached or written, or is not what it should be; then it is kept as `NAME.bad`.
    """
    if not re.match(r"https?://", url):
        raise DownloadError(f"{url}: only http and https addresses are fetched.")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(f"{path.parent} cannot be written ({error.strerror or error}).") from None
        _bring(url, path, size, track, tries, pause_s)
    return check(url, path, checksum)


def check(url: str, path: Path, checksum: str) -> dict[str, Any]:
    """What came, compared with its checksum.

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
            f"{url}: the {algorithm} of what came is {found}, not {wanted}: damaged on the way, or another file than it was; "
            f"kept as {bad}. Run the same command to fetch it again."
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
                    f" The {_size(part) / 1e6:,.1f} MB that have come are kept: run the same command again to go on." if _size(part) else ""
                )
                raise DownloadError(f"{url} cannot be fetched ({error}); is this machine online?{kept}") from None
            wait = min(max(error.wait_s, pause_s * 2 ** (failed - 1)), LONGEST_PAUSE_S)
            log.warning("%s: %s; going on in %.0f s", url, error, wait)
            time.sleep(wait)
            continue
        part.replace(path)
        _notes(part).unlink(missing_ok=True)
        return
    raise DownloadError(f"{url} broke off {MOST_ATTEMPTS} times; what has come is kept: run the same command again to go on.")


def _transfer(url: str, part: Path, size: int, track: Track) -> None:
    """One attempt.

    Raises:
        _Broken: it may be tried again.
        DownloadError: it need not be.
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
                raise _Broken("the server has another file now") from None
            if error.code in _AGAIN:
                after = error.headers.get("Retry-After", "")
                raise _Broken(f"{error.code} {error.reason}", float(after) if after.isdigit() else 0.0) from None
            raise DownloadError(
                f"{url} answers {error.code} {error.reason}; if it has moved, put the file that it was at {part.with_suffix('')} "
                "and run the same command again."
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
            raise _Broken("the server has another file now")
    else:
        have, total = 0, int(length) if length else -1
    if size and total > 2 * size + 10**6:
        raise DownloadError(f"{url} is {total / 1e6:,.0f} MB, and should be about {size / 1e6:,.0f}; nothing is fetched.")
    room = shutil.disk_usage(part.parent).free
    if total - have > room:
        raise DownloadError(
            f"{part.parent} has room for {room / 1e6:,.0f} MB, and {url} needs {(total - have) / 1e6:,.0f}; make room first."
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
                raise DownloadError(f"{url} sends more than {most / 1e6:,.0f} MB, twice what it should be; given up.")
    if came < total:
        # http.client ends quietly when the connection does.
        raise _Broken(f"it broke off after {came:,} of {total:,} bytes")


def _write(path: Path, data: bytes, mode: str) -> None:
    try:
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> DownloadError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    todo = "make room and run the same command again; what has come is kept" if full else "check its permissions"
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
        return _Begun("")  # half a note: begin anew


__all__ = ["check", "fetch"]
