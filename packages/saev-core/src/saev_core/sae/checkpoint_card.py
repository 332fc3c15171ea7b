"""`CheckpointCard`: a checkpoint's description, read without loading its SAE. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from saev_core.config.base import validate
from saev_core.config.stages import ReadConfig
from saev_core.errors import CheckpointError

FORMAT = 1
"""Format version; checkpoints of other versions are rejected."""
WEIGHTS, META = "sae.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class CheckpointCard:
    """The description in a checkpoint's folder; the fields are documented in `Checkpoint`."""

    folder: Path
    ref: dict[str, str]
    sae: dict[str, Any]
    """Options of the SAE plugin, including `d_in` and `d_sae`."""
    site: str
    read: ReadConfig
    store: dict[str, Any]
    train: dict[str, Any]
    card: dict[str, Any]
    weights_digest: str
    """As `Checkpoint.weights_digest`; not verified, since the weights are not read."""

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load the description of the checkpoint in a folder.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or has another format version.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{folder} is not a checkpoint ({error.strerror or error}: {META}); train one first.") from None
        except ValueError as error:
            raise CheckpointError(f"{folder / META} is damaged ({error}); train again or restore it.") from None
        version = meta.get("saev_checkpoint") if isinstance(meta, dict) else None
        if version != FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {version}, this version reads {FORMAT}; train again or use the saev version that wrote it."
            )
        try:
            read = validate(ReadConfig, meta["read"], where="read")
            plain = {key: meta[key] for key in ("ref", "sae", "site", "store", "train", "card")}
            return cls(folder, read=read, weights_digest=meta["sha256"], **plain)
        except KeyError as error:
            raise CheckpointError(f"{folder / META} has no key {error}; train again or restore it.") from None

    def decoder(self) -> Float[np.ndarray, "d_sae d_out"]:
        """The decoder's rows in float32, for normalised activations. Reads only this tensor.

        Raises:
            CheckpointError: the weights are missing or damaged.
        """
        try:
            with safe_open(self.folder / WEIGHTS, framework="numpy") as file:
                return np.asarray(file.get_tensor("W_dec"), np.float32)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"the decoder in {self.folder} cannot be read ({error}); train again or restore it.") from None


__all__ = ["FORMAT", "META", "WEIGHTS", "CheckpointCard"]
