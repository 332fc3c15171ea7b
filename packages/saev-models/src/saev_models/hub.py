"""Checkpoint files from a local folder or a Hugging Face repository, with a one-line error if they are unavailable."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from saev_core.errors import ModelError

_CONNECT_S = 5.0
"""Timeout for connecting to the hub, in seconds."""


class Files(Protocol):
    """The files of one checkpoint."""

    def find(self, *names: str) -> Path | None:
        """Local path of the first of `names` that exists."""
        ...


class Folder:
    """A local folder, or the folder of a local file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def find(self, *names: str) -> Path | None:
        return next((self.path / name for name in names if (self.path / name).is_file()), None)


class Repo:
    """A repository on the hub, downloaded file by file into the hub client's cache."""

    def __init__(self, name: str, revision: str = "") -> None:
        self.name, self.revision = name, revision

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @cached_property
    def _endpoint(self) -> str:
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    @cached_property
    def _unreachable(self) -> str:
        """Why the hub is unreachable, or "". Checked first, because the hub client retries for half a minute per file."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            return "HF_HUB_OFFLINE is set"
        if urllib.request.getproxies():
            return ""
        url = urlsplit(self._endpoint)
        try:
            socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), timeout=_CONNECT_S).close()
        except OSError as error:
            return f"{url.hostname} cannot be reached: {error.strerror or error}"
        return ""

    def find(self, *names: str) -> Path | None:
        """The first of `names` that the repository has.

        Raises:
            ModelError: the repository cannot be read.
        """
        from huggingface_hub import errors as hub
        from huggingface_hub import hf_hub_download

        absent = ""
        for name in names:
            try:
                return Path(
                    hf_hub_download(
                        self.name,
                        name,
                        revision=self.revision or None,
                        endpoint=self._endpoint,
                        local_files_only=bool(self._unreachable),
                        etag_timeout=_CONNECT_S,
                    )
                )
            except hub.GatedRepoError:
                raise ModelError(
                    f"{self} is gated: accept its terms at {self._endpoint}/{self.name}, then run `hf auth login` or set HF_TOKEN."
                ) from None
            except hub.RevisionNotFoundError:
                raise ModelError(f"{self.name} has no revision {self.revision!r}; check model.revision.") from None
            except hub.RepositoryNotFoundError:
                raise ModelError(self._absent()) from None
            except hub.LocalEntryNotFoundError as error:  # before its base class EntryNotFoundError
                absent = self._unreachable or _why(error.__cause__ or error)
            except hub.EntryNotFoundError:
                continue
            except hub.HFValidationError:
                raise ModelError(f"{self.name!r} is neither a local path nor a name like owner/model on the hub.") from None
            except (hub.HfHubHTTPError, OSError) as error:
                if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                    raise ModelError(self._absent()) from None
                raise ModelError(f"{self} cannot be downloaded ({_why(error)}); {OFFLINE}") from None
        if absent:
            raise ModelError(f"{self} is not in the local cache and {absent}; {OFFLINE}")
        return None

    def _absent(self) -> str:
        # Without authentication the hub does not distinguish private from missing repositories.
        return f"{self.name} is not on {self._endpoint}, or is private: check the name, or run `hf auth login` or set HF_TOKEN."


OFFLINE = "download it elsewhere and give its path as model.checkpoint."


def _why(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"the hub answered {status}" if status else first_line(error)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def open_files(checkpoint: str, revision: str = "") -> Folder | Repo:
    """The source of `checkpoint`: a local folder, the folder of a local file, or a repository.

    Raises:
        ModelError: it looks like a path that does not exist.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Folder(path.parent)
    if is_path(checkpoint):
        raise ModelError(f"{checkpoint}: no such file or folder; model.checkpoint takes a local path or a name like owner/model.")
    return Repo(checkpoint.removeprefix("hf-hub:"), revision)


def is_path(text: str) -> bool:
    """Whether `text` must be a path: a hub name has one slash and no leading dot."""
    return text.startswith((".", "~", os.sep)) or text.count("/") > 1 or (os.sep != "/" and os.sep in text)


def need(files: Folder | Repo, *names: str) -> Path:
    """The first of `names` that exists.

    Raises:
        ModelError: none exists; the message lists them.
    """
    if path := files.find(*names):
        return path
    raise ModelError(f"{files} has no {' or '.join(names)}; it is not a checkpoint this plugin can read.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable as JSON ({first_line(error)}).") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return data


def weight_files(files: Folder | Repo, *stems: str) -> list[Path]:
    """The weights in one file or in shards, safetensors first.

    Args:
        stems: names without suffix, in order of preference; `model` and `pytorch_model` if none is given.

    Raises:
        ModelError: there are none, or a shard is missing.
    """
    stems = stems or ("model", "pytorch_model")
    names = [f"{stem}{ending}" for ending in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json") for stem in stems]
    first = need(files, *names)
    if first.suffix != ".json":
        return [first]
    shards = sorted(set(read_json(first).get("weight_map", {}).values()))
    return [need(files, shard) for shard in shards]
