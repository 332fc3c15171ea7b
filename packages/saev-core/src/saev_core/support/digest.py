"""Digests of JSON values, files and folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def content_digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files, 16 hex digits."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(f"{file.relative_to(path)}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def digest(*parts: object) -> str:
    """sha256 of the parts as JSON, 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
