"""`Checkpoint`: a trained SAE with everything needed to use it on raw activations, as a folder without pickle files.

<name>/sae.safetensors    the SAE's tensors, and `norm.mean`
<name>/checkpoint.json    SAE plugin, normaliser, site, store, training configuration, evaluation card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from saev_core.config.affects import settings_that_matter
from saev_core.config.base import PluginRef, validate
from saev_core.config.stages import ReadConfig
from saev_core.errors import CheckpointError, SaevError, ShapeError
from saev_core.plugins.registry import installed, resolve
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint_card import FORMAT, META, WEIGHTS
from saev_core.sae.codes import Codes
from saev_core.sae.norm import Norm
from saev_core.sae.selection import Selection
from saev_core.support.files import recover_folder, replace_file, replace_folder


@dataclass(frozen=True)
class Checkpoint:
    """An SAE with its normaliser and provenance. Takes and returns RAW activations."""

    sae: SAE
    norm: Norm
    ref: dict[str, str]
    """The SAE plugin: `name`, `dist`, `version`."""
    site: str
    """Where in the model the activations were recorded, as `str(Site)`; joined sites like `resid.6+10`."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """The selection of recorded vectors it was trained on, and the split into training and held-out images."""
    store: dict[str, Any] = field(default_factory=dict)
    """Description of the store: `fingerprint`, `model`, `dataset`, `transform`, grid."""
    train: dict[str, Any] = field(default_factory=dict)
    """Training configuration and outcome."""
    card: dict[str, Any] = field(default_factory=dict)
    """Evaluation on held-out images; empty before `evaluate`."""

    @property
    def selection(self) -> Selection:
        """Which vectors of a model's tokens it reads. With `layer="all"` and `"mean"` the sites are those of the store; see
        `Selection.among`.

        Raises:
            UsageError: `site` is not a valid site name.
        """
        return Selection.named(self.site, self.read)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "*batch d_in"]) -> Codes:
        """Sparse feature activations of raw vectors, clamped and normalised as in training, from the inference form of the SAE.

        Leading axes are flattened: row i of the codes is vector i of `x.reshape(-1, d_in)`.

        Raises:
            ShapeError: the vectors do not have width `d_in`.
        """
        return self.sae.frozen().codes(self._normed(x))

    @torch.no_grad()
    def decode(self, codes: Float[Tensor, "*batch d_sae"] | Codes) -> Float[Tensor, "*batch d_out"]:
        """Raw vectors from codes, `[n, d_out]` for `Codes`; for a transcoder those of the later site, without its skip
        connection.

        Raises:
            ShapeError: the codes have a different number of features.
        """
        width = codes.d_sae if isinstance(codes, Codes) else codes.shape[-1]
        if width != self.sae.d_sae:
            raise ShapeError(f"codes have {width} features, this SAE has {self.sae.d_sae} features.")
        if isinstance(codes, Codes):
            return self._raw(self.sae.frozen().decode(codes))
        x_hat = self.sae.frozen().decode(codes.reshape(-1, width))
        return self._raw(x_hat).reshape(*codes.shape[:-1], self.sae.d_out)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruct raw vectors, clamped as in training; for a transcoder, predict the later site's from the earlier site's.

        Raises:
            ShapeError: the vectors do not have width `d_in`.
        """
        normed, frozen = self._normed(x), self.sae.frozen()
        x_hat = self._raw(frozen.reconstruct(normed, frozen.codes(normed)))
        return x_hat.reshape(*x.shape[:-1], self.sae.d_out)

    def _normed(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "n d_in"]:
        """Raw vectors clamped and normalised as in training, on the SAE's device."""
        self.sae.check_width(x)
        x = x.reshape(-1, self.sae.d_in).to(self.sae.W_dec.device, torch.float32)
        return self.norm(x if self.read.clamp is None else x.clamp(-self.read.clamp, self.read.clamp))

    def _raw(self, x_hat: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_out"]:
        return self.norm.inverse(x_hat, lambda each: self.sae.split(each)[1])

    def to(self, device: torch.device | str) -> Checkpoint:
        return replace(self, sae=self.sae.to(device), norm=self.norm.to(device))

    def with_card(self, card: Mapping[str, Any]) -> Checkpoint:
        """A copy with another evaluation card."""
        return replace(self, card=dict(card))

    @property
    def fingerprint(self) -> str:
        """sha256 over the SAE, its normaliser, site and selection, 64 hex digits; excludes the evaluation card."""
        meta = self._meta()
        parts = {key: meta[key] for key in ("norm_scale", "site", "store")}
        # Without defaults: an option added in a later version must not change the fingerprint.
        parts |= {"ref": self.ref["name"], "sae": settings_that_matter(self.sae.cfg, defaults=False)}
        parts["read"] = settings_that_matter(self.read, defaults=False)
        return hashlib.sha256(json.dumps([parts, _digest(self._weights())], sort_keys=True).encode()).hexdigest()

    @property
    def weights_digest(self) -> str:
        """sha256 over the tensors only: `sha256` in `checkpoint.json`, to compare checkpoints without loading them."""
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
        """Write the folder atomically, replacing an existing checkpoint.

        Raises:
            CheckpointError: it cannot be written, or the folder contains other files.
        """
        folder = Path(folder)
        weights = self._weights()
        meta = {**self._meta(), "sha256": _digest(weights)}
        try:
            text = json.dumps(meta, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: the checkpoint's description is not valid JSON ({error}); use only plain finite numbers in the card."
            ) from None
        try:
            _write(folder, weights, text)
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be written: {error.strerror or error}; free some disk space or choose another --out."
            ) from None
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", *, kind: type[SAE] | None = None) -> Checkpoint:
        """Load the checkpoint in a folder.

        Args:
            kind: the SAE's class, if it is not installed as a plugin; by default the plugin named in the checkpoint.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or has another format version.
            UnknownPluginError: the SAE's plugin is not installed.
        """
        folder = Path(folder)
        recover_folder(folder)
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
                f"{folder} has checkpoint format {version}, this version reads {FORMAT}; train again or use the saev version that wrote it."
            )
        if _digest(weights) != meta.get("sha256"):
            raise CheckpointError(f"{folder / WEIGHTS} is damaged (checksum mismatch); train again or restore it.")
        try:
            tensors = load(weights)
            scale = meta["norm_scale"]
            norm = Norm(tensors.pop("norm.mean"), tuple(map(float, scale)) if isinstance(scale, list) else float(scale))
            sae = _build(meta, kind)
            sae.load_state_dict(tensors)
            read = validate(ReadConfig, meta["read"], where="read")
            made = cls(sae, norm, meta["ref"], meta["site"], read, meta["store"], meta["train"], meta["card"])
        except (KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} does not match its SAE ({str(error).splitlines()[0]}); check whether its plugin has changed."
            ) from None
        return made.to(device)

    def check(self, store: Any, *, same_data: bool = True) -> None:
        """Reject an `ActivationStore` this SAE was not trained on.

        Args:
            same_data: false allows other images, recorded from the same model in the same way.

        Raises:
            CheckpointError: model, transform, width or (if `same_data`) images differ; names which.
        """
        theirs = store.meta
        if self.store.get("fingerprint") == theirs.fingerprint:
            return
        ours = self.store
        for what in ("model", "transform", *(("dataset",) if same_data else ())):
            have = getattr(theirs, what)
            if what in ours and ours[what] != have:
                raise CheckpointError(
                    f"the SAE was trained on {what} {_short(ours[what])}, but the store has {_short(have)}; record that or train again."
                )
        if (width := theirs.d_model * self.read.n_sites) != self.sae.d_in:
            raise CheckpointError(f"the SAE takes activations of width {self.sae.d_in}, the store has {width}; train an SAE on this store.")
        if same_data:
            raise CheckpointError(
                "the SAE was trained on another store (fingerprint mismatch); train again, or use the store named in the checkpoint."
            )


def ref_of(sae: SAE) -> dict[str, str]:
    """Name, distribution and version of the plugin an SAE's class is registered as; the class name if it is not registered."""
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


def _write(folder: Path, weights: bytes, meta: str) -> None:
    if folder.exists() and not (folder / META).exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} contains files that are not a checkpoint; choose another folder.")
    if _holds(folder, weights):
        replace_file(folder / META, meta)
        return
    with replace_folder(folder) as new:
        (new / WEIGHTS).write_bytes(weights)
        (new / META).write_text(meta, encoding="utf-8")


def _holds(folder: Path, weights: bytes) -> bool:
    file = folder / WEIGHTS
    return file.exists() and file.stat().st_size == len(weights) and file.read_bytes() == weights
