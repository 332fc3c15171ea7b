"""`Checkpoint`: a trained SAE with everything needed to use it on raw activations. A folder; no pickle anywhere.

<name>/sae.safetensors    the SAE's tensors, and `norm.mean`
<name>/checkpoint.json    which SAE, normaliser, site, store, training configuration, evaluation card
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from saev_core.config.base import PluginRef, validate
from saev_core.config.stages import ReadConfig
from saev_core.errors import CheckpointError, SaevError
from saev_core.plugins.registry import installed, resolve
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint_card import FORMAT, META, WEIGHTS
from saev_core.sae.codes import Codes
from saev_core.sae.norm import Norm
from saev_core.support.files import sync, write_synced

ASIDE = ".incomplete"


@dataclass(frozen=True)
class Checkpoint:
    """An SAE, its normaliser, and where both came from. Takes and gives RAW activations."""

    sae: SAE
    norm: Norm
    ref: dict[str, str]
    """The SAE plugin: `name`, `dist`, `version`."""
    site: str
    """Where in the model the activations were taken, as `str(Site)`; joined ones like `resid.6+10`."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Which recorded vectors it was trained on, and which images were held out."""
    store: dict[str, Any] = field(default_factory=dict)
    """What the store said of itself: `fingerprint`, `model`, `dataset`, `transform`, grid."""
    train: dict[str, Any] = field(default_factory=dict)
    """Training configuration and outcome."""
    card: dict[str, Any] = field(default_factory=dict)
    """Evaluation on held-out images; empty before `evaluate`."""

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        """Sparse feature activations of raw vectors, by the inference form of the SAE.

        Raises:
            ShapeError: they are not `d_in` wide.
        """
        self.sae.check_width(x)
        return self.sae.frozen().codes(self.norm(x.to(self.sae.W_dec.device, torch.float32)))

    @torch.no_grad()
    def decode(self, codes: Tensor | Codes) -> Float[Tensor, "n d_out"]:
        """Raw vectors from codes alone; of a transcoder the later site's, without what its skip connection adds."""
        return self._raw(self.sae.frozen().decode(codes))

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """Raw vectors there and back; of a transcoder the later site's, predicted from the earlier's.

        Raises:
            ShapeError: they are not `d_in` wide.
        """
        self.sae.check_width(x)
        normed = self.norm(x.to(self.sae.W_dec.device, torch.float32))
        frozen = self.sae.frozen()
        return self._raw(frozen.reconstruct(normed, frozen.codes(normed)))

    def _raw(self, x_hat: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_out"]:
        return self.norm.inverse(x_hat, lambda each: self.sae.split(each)[1])

    def to(self, device: torch.device | str) -> Checkpoint:
        return replace(self, sae=self.sae.to(device), norm=self.norm.to(device))

    def with_card(self, card: Mapping[str, Any]) -> Checkpoint:
        """The same with another evaluation card."""
        return replace(self, card=dict(card))

    @property
    def fingerprint(self) -> str:
        """sha256 over the SAE, its normaliser, site and reading, 64 hex digits; the evaluation card is not part of it."""
        meta = self._meta()
        parts = {key: meta[key] for key in ("norm_scale", "site", "store")}
        # Without what stands at its default: an option that a later version adds must not make this another checkpoint.
        parts |= {"ref": self.ref["name"], "sae": self.sae.cfg.model_dump(mode="json", exclude_defaults=True)}
        parts["read"] = self.read.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps([parts, _digest(self._weights())], sort_keys=True).encode()).hexdigest()

    @property
    def weights_digest(self) -> str:
        """sha256 over the tensors alone: what `checkpoint.json` calls `sha256`, to compare without loading anything."""
        return _digest(self._weights())

    def _weights(self) -> bytes:
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.sae.state_dict().items()}
        return save({**tensors, "norm.mean": self.norm.mean.detach().cpu().contiguous()})

    def _meta(self) -> dict[str, Any]:
        return {
            "saev_checkpoint": FORMAT,
            "ref": self.ref,
            "sae": self.sae.describe(),
            "norm_scale": self.norm.scale,
            "site": self.site,
            "read": self.read.model_dump(mode="json"),
            "store": self.store,
            "train": self.train,
            "card": self.card,
        }

    def save(self, folder: str | Path) -> Path:
        """Write the folder: it is there whole or not at all. Replaces a checkpoint that is there already.

        Raises:
            CheckpointError: it cannot be written, or the folder holds something else.
        """
        folder = Path(folder)
        weights = self._weights()
        meta = {**self._meta(), "sha256": _digest(weights)}
        try:
            text = json.dumps(meta, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: the checkpoint's description is not JSON ({error}); a card holds plain finite numbers."
            ) from None
        try:
            _write(folder, {WEIGHTS: weights, META: text.encode()})
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}; free space or choose another --out.") from None
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", *, kind: type[SAE] | None = None) -> Checkpoint:
        """The checkpoint in a folder.

        Args:
            kind: the SAE's class, where it is not installed as a plugin; by default the plugin that the folder names.

        Raises:
            CheckpointError: there is none, it is damaged, or of another format version.
            UnknownPluginError: the SAE's plugin is not installed.
        """
        folder = Path(folder)
        _recover(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            weights = (folder / WEIGHTS).read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{folder} is not a checkpoint ({error.strerror or error}: {META}, {WEIGHTS}); train one first."
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{folder / META} is damaged ({error}); train again or restore it.") from None
        version = meta.get("saev_checkpoint") if isinstance(meta, dict) else None
        if version != FORMAT:
            raise CheckpointError(
                f"{folder} is of checkpoint format {version}, this saev reads {FORMAT}; train again or use the saev that wrote it."
            )
        if _digest(weights) != meta.get("sha256"):
            raise CheckpointError(f"{folder / WEIGHTS} is damaged (its checksum differs); train again or restore it.")
        try:
            tensors = load(weights)
            scale = meta["norm_scale"]
            norm = Norm(tensors.pop("norm.mean"), tuple(map(float, scale)) if isinstance(scale, list) else float(scale))
            sae = _build(meta, kind)
            sae.load_state_dict(tensors)
            read = validate(ReadConfig, meta["read"], where="read")
            made = cls(sae, norm, meta["ref"], meta["site"], read, meta["store"], meta["train"], meta["card"])
        except (KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} does not fit its SAE ({str(error).splitlines()[0]}); was its plugin changed since?") from None
        return made.to(device)

    def check(self, store: Any, *, same_data: bool = True) -> None:
        """Refuse an `ActivationStore` that this SAE was not trained on.

        Args:
            same_data: false allows other images, recorded from the same model in the same way.

        Raises:
            CheckpointError: model, transform, width or (if `same_data`) the images differ; says which.
        """
        theirs = store.meta
        if self.store.get("fingerprint") == theirs.fingerprint:
            return
        ours = self.store
        for what in ("model", "transform", *(("dataset",) if same_data else ())):
            have = getattr(theirs, what)
            if what in ours and ours[what] != have:
                raise CheckpointError(
                    f"the SAE was trained on {what} {_short(ours[what])}, the store holds {_short(have)}; record that or train again."
                )
        if (width := theirs.d_model * self.read.n_sites) != self.sae.d_in:
            raise CheckpointError(f"the SAE takes activations {self.sae.d_in} wide, the store's are {width}; train one on this store.")
        if same_data:
            raise CheckpointError(
                "the SAE was trained on another store (its fingerprint differs); train again, or point at the store it names."
            )


def ref_of(sae: SAE) -> dict[str, str]:
    """Name, distribution and version of the plugin that an SAE's class is registered as; the class's own name if none is."""
    target = f"{type(sae).__module__}:{type(sae).__qualname__}"
    for plugin in installed("sae"):
        if plugin.target == target:
            return {"name": plugin.name, "dist": plugin.dist, "version": plugin.version}
    return {"name": type(sae).__qualname__, "dist": "", "version": ""}


def _build(meta: dict[str, Any], kind: type[SAE] | None) -> SAE:
    if kind is not None:
        return kind(validate(kind.Config, meta["sae"], where="sae"))
    name, dist = meta["ref"]["name"], meta["ref"].get("dist")
    try:
        cls, cfg = resolve("sae", PluginRef(name=f"{dist}:{name}" if dist else name, options=meta["sae"]))
    except SaevError as error:
        raise CheckpointError(f"the checkpoint's SAE cannot be built: {error}") from None
    sae = cls(cfg)
    assert isinstance(sae, SAE)
    return sae


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _short(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)[:80]


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """The files as a new folder, moved into place when they are safely on disk."""
    if folder.exists() and not (folder / META).exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} holds something else than a checkpoint; choose another folder.")
    # Not beside the others: a search for sae/*/checkpoint.json must not find it.
    aside = folder.parent / ASIDE
    new, old = aside / f"{folder.name}.{os.getpid()}", aside / f"{folder.name}.old"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name, data in files.items():
            write_synced(new / name, data)
        if _holds(folder, files[WEIGHTS]):
            (new / META).replace(folder / META)
        else:
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            new.rename(folder)
        sync(folder.parent)
    finally:
        for left in (new, old) if folder.exists() else (new,):
            shutil.rmtree(left, ignore_errors=True)
        if not any(aside.iterdir()):
            aside.rmdir()


def _holds(folder: Path, weights: bytes) -> bool:
    file = folder / WEIGHTS
    return file.exists() and file.stat().st_size == len(weights) and file.read_bytes() == weights


def _recover(folder: Path) -> None:
    """Put back a checkpoint that was being replaced when the process died, between the two renames."""
    old = folder.parent / ASIDE / f"{folder.name}.old"
    if old.exists() and not folder.exists():
        old.rename(folder)
