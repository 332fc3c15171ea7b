"""`Seen`: which features fire where on one picture, a recorded or a new one. Knows no gradio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from saev_core.errors import RunError
from saev_core.types import Box, Grid, Site

if TYPE_CHECKING:
    from saev_core.checkpoint import Checkpoint
    from saev_core.codes import Codes
    from saev_core.model import VisionModel
    from saev_core.store import ActivationStore


@dataclass(frozen=True)
class Seen:
    """Active features of every patch, patch by patch: patch i holds entries `offsets[i]` to `offsets[i + 1] - 1`."""

    size: tuple[int, int]
    """Width and height of the original, pixels."""
    crop: Box
    """What of it the model saw, in its pixels."""
    grid: Grid
    offsets: Int[np.ndarray, " n_patches_plus_1"]
    feature: Int[np.ndarray, " nnz"]
    value: Float[np.ndarray, " nnz"]

    def map(self, feature: int) -> Float[np.ndarray, "rows cols"]:
        """The feature's value on every patch."""
        patch = np.repeat(np.arange(self.grid.n_patches), np.diff(self.offsets))
        out = np.zeros(self.grid.n_patches, np.float32)
        here = self.feature == feature
        out[patch[here]] = self.value[here]
        return np.asarray(out.reshape(self.grid.rows, self.grid.cols))

    def strongest(self, upper: Float[np.ndarray, " d_sae"], n: int = 20) -> list[int]:
        """Features that come nearest to, or above, their usual upper end `upper` anywhere on the picture."""
        share = self.value / np.maximum(upper[self.feature], 1e-12)
        order = np.argsort(-share, kind="stable")
        return [int(feature) for feature in dict.fromkeys(self.feature[order].tolist())][:n]


def recorded(checkpoint: Checkpoint, store: ActivationStore, index: int) -> Seen:
    """A picture of the store, from its recorded activations: needs no model.

    Raises:
        RunError: it is not there, or was recorded as missing.
        StoreError: the store is damaged.
    """
    from saev_core.source import ordered

    if not 0 <= index < store.n_images:
        raise RunError(f"image {index}: this run has images 0 to {store.n_images - 1}.")
    read = checkpoint.read.model_copy(update={"labels": None})
    found = next(iter(ordered(store, read, np.array([index]), 1)), None)
    if found is None:
        raise RunError(f"image {index} was not recorded: it could not be read.")
    width, height = (int(side) for side in store.sizes[index])
    grid = store.grid if read.tokens == "patches" else Grid(1, 1, max(store.grid.width_px, store.grid.height_px))
    return _seen((width, height), store.crop(index), grid, checkpoint.codes(found[1][0].to(checkpoint.sae.W_dec.device)))


def new(checkpoint: Checkpoint, model: VisionModel, image: Image.Image) -> Seen:
    """A picture that the model has not seen yet.

    Raises:
        ModelError: its transform refuses the picture.
        RunError: the SAE reads something else than one block's patches.
    """
    import torch

    read = checkpoint.read
    if read.tokens != "patches" or not isinstance(read.layer, int):
        raise RunError(
            f"this SAE reads {read.tokens} of {checkpoint.site}; a new picture can be shown only where patches of one block are read."
        )
    site = Site.parse(checkpoint.site)
    pixels = torch.as_tensor(model.transform(image))[None].to(model.device)
    tokens = model.record(pixels, [site])[site][0, model.grid.n_prefix :].float()
    if read.clamp is not None:
        tokens = tokens.clamp(-read.clamp, read.clamp)
    return _seen(image.size, model.crop(*image.size), model.grid, checkpoint.codes(tokens))


def _seen(size: tuple[int, int], crop: Box, grid: Grid, codes: Codes) -> Seen:
    value = codes.value.float().cpu().numpy()
    patch, feature = codes.rows.cpu().numpy()[value > 0], codes.feature.cpu().numpy()[value > 0]
    offsets = np.searchsorted(patch, np.arange(grid.n_patches + 1))
    return Seen(size, crop, grid, offsets, feature, value[value > 0])
