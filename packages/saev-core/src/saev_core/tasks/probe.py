"""`Probe`: a linear classifier of RAW activations, saved with the site and store it was trained on.

<folder>/probe.safetensors   `weight [n_classes, d]`, `bias [n_classes]`
<folder>/probe.json          classes, site, tokens, metadata of the store, and evaluation card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from saev_core.errors import ProbeError
from saev_core.support.files import recover_folder, replace_folder

FORMAT = 1
"""Version of the layout; others are rejected."""
WEIGHTS, META = "probe.safetensors", "probe.json"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map from raw activations to class logits, and the site it applies to."""

    weight: Float[Tensor, "n_classes d"]
    bias: Float[Tensor, " n_classes"]
    classes: list[str]
    site: str
    """The site its activations were taken from, as `str(Site)`."""
    tokens: str = "patches"
    """The tokens it reads: `cls`, `mean` (over the patches), `patches` (each separately) or `token:N` (patch N)."""
    store: dict[str, Any] = field(default_factory=dict)
    """Metadata of the store: `fingerprint`, `model`, `dataset`, `transform`."""
    card: dict[str, Any] = field(default_factory=dict)
    """How it was trained and evaluated: solver, rates, split, accuracy."""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape[0] != len(self.classes) or self.bias.shape != (len(self.classes),):
            raise ProbeError(
                f"a probe of {len(self.classes)} classes needs weights [{len(self.classes)}, d] and as many biases, "
                f"not {list(self.weight.shape)} and {list(self.bias.shape)}."
            )

    @property
    def d(self) -> int:
        """Width of its input activations."""
        return int(self.weight.shape[1])

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n_classes"]:
        """Logits of raw activations.

        Raises:
            ProbeError: their width is not `d`.
        """
        if x.shape[-1] != self.d:
            raise ProbeError(f"the probe takes activations {self.d} wide, not {x.shape[-1]}; train a probe on this model and site.")
        return x.to(self.weight.device, self.weight.dtype) @ self.weight.T + self.bias

    def to(self, device: torch.device | str) -> Probe:
        return Probe(self.weight.to(device), self.bias.to(device), self.classes, self.site, self.tokens, self.store, self.card)

    def check(self, store: Any, *, site: str | None = None, classes: Sequence[str] | None = None) -> None:
        """Reject a store, a site or a list of classes that this probe was not trained for.

        Args:
            store: an `ActivationStore`, or any object with a `StoreMeta` as `meta`; the images may differ.
            site: the site of the activations to classify.
            classes: class names, in label order.

        Raises:
            ProbeError: model, transform, width, site or classes differ; the message names which.
        """
        meta = store.meta
        for what in ("model", "transform"):
            if what in self.store and self.store[what] != (have := getattr(meta, what)):
                ours, theirs = (value.get("name", value) if isinstance(value, dict) else value for value in (self.store[what], have))
                raise ProbeError(f"the probe was trained on {what} {ours}, the store's is {theirs}; train a probe on this store.")
        if meta.d_model != self.d:
            raise ProbeError(f"the probe takes activations {self.d} wide, the store's are {meta.d_model}; train a probe on this store.")
        if site is not None and site != self.site:
            raise ProbeError(f"the probe was trained at {self.site}, not {site}; train one with --site {site.rpartition('.')[2]}.")
        if classes is not None and list(classes) != self.classes:
            raise ProbeError(
                f"the probe was trained on {_listed(self.classes)}, the data set has {_listed(classes)}; train a probe on these classes."
            )

    def save(self, folder: str | Path) -> Path:
        """Write the folder atomically. Replaces an existing probe.

        Raises:
            ProbeError: it cannot be written, or the folder contains something else.
        """
        folder = Path(folder)
        weights = save({"weight": self.weight.detach().cpu().contiguous(), "bias": self.bias.detach().cpu().contiguous()})
        names = ("classes", "site", "tokens", "store", "card")
        meta = {"saev_probe": FORMAT, **{name: getattr(self, name) for name in names}, "sha256": hashlib.sha256(weights).hexdigest()}
        try:
            text = json.dumps(meta, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ProbeError(f"{folder}: the probe's metadata is not valid JSON ({error}); use plain finite numbers in the card.") from None
        try:
            _write(folder, weights, text)
        except OSError as error:
            raise ProbeError(f"{folder} cannot be written: {error.strerror or error}; free disk space or choose another folder.") from None
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Probe:
        """Load the probe in a folder.

        Raises:
            ProbeError: it is missing, damaged, or has another format version.
        """
        folder = Path(folder)
        recover_folder(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            weights = (folder / WEIGHTS).read_bytes()
        except OSError as error:
            raise ProbeError(f"{folder} is not a probe ({error.strerror or error}: {META}, {WEIGHTS}); train one first.") from None
        except ValueError as error:
            raise ProbeError(f"{folder / META} is damaged ({error}); train the probe again.") from None
        version = meta.get("saev_probe") if isinstance(meta, dict) else None
        if version != FORMAT:
            raise ProbeError(f"{folder} has probe format {version}, this version of saev reads {FORMAT}; train the probe again.")
        if hashlib.sha256(weights).hexdigest() != meta.get("sha256"):
            raise ProbeError(f"{folder / WEIGHTS} is damaged (its checksum differs); train the probe again.")
        try:
            tensors = load(weights)
            made = cls(
                tensors["weight"],
                tensors["bias"],
                meta["classes"],
                meta["site"],
                meta["tokens"],
                meta.get("store", {}),
                meta.get("card", {}),
            )
        except (KeyError, SafetensorError) as error:
            raise ProbeError(f"{folder} is damaged ({error} is missing or wrong); train the probe again.") from None
        return made.to(device)


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def _write(folder: Path, weights: bytes, meta: str) -> None:
    if folder.exists() and not (folder / META).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProbeError(f"{folder} contains something other than a probe; choose another folder.")
    with replace_folder(folder) as new:
        (new / WEIGHTS).write_bytes(weights)
        (new / META).write_text(meta, encoding="utf-8")
