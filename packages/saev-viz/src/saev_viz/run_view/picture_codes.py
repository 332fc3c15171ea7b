"""`Seen`: which features fire where on one picture, recorded or new. Does not import gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from saev_core import Box, Grid
from saev_core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from saev_core import ActivationStore, Checkpoint, Selection, Site, VisionModel


@dataclass(frozen=True)
class Seen:
    """Active features of every patch, patch by patch: patch i holds entries `offsets[i]` to `offsets[i + 1] - 1`."""

    size: tuple[int, int]
    """Width and height of the original, pixels."""
    crop: Box
    """The model's input crop, in pixels of the original."""
    grid: Grid
    offsets: Int[np.ndarray, " n_patches_plus_1"]
    feature: Int[np.ndarray, " nnz"]
    value: Float[np.ndarray, " nnz"]
    about: str = ""
    """A note for reading the patches; empty if they are patches of one block."""

    def map(self, feature: int) -> Float[np.ndarray, "rows cols"]:
        """The feature's value on every patch."""
        patch = np.repeat(np.arange(self.grid.n_patches), np.diff(self.offsets))
        out = np.zeros(self.grid.n_patches, np.float32)
        here = self.feature == feature
        out[patch[here]] = self.value[here]
        return np.asarray(out.reshape(self.grid.rows, self.grid.cols))

    def strongest(self, upper: Float[np.ndarray, " d_sae"], n: int = 20) -> list[int]:
        """Features with the largest value anywhere on the picture relative to their upper end `upper`."""
        share = self.value / np.maximum(upper[self.feature], 1e-12)
        order = np.argsort(-share, kind="stable")
        return [int(feature) for feature in dict.fromkeys(self.feature[order].tolist())][:n]


def recorded(checkpoint: Checkpoint, store: ActivationStore, index: int) -> Seen:
    """Codes of a picture of the store, from its recorded activations; needs no model.

    Raises:
        RunError: there is no such image, or it was recorded as unreadable.
        StoreError: the store is damaged.
    """
    from saev_core import StoredVectors

    if not 0 <= index < store.n_images:
        raise RunError(f"image {index}: this run has images 0 to {store.n_images - 1}.")
    read = checkpoint.read.model_copy(update={"labels": None})
    found = [batch.x[0] for batch in StoredVectors(store, read).in_order(np.array([index]), 1)]
    if not found:
        raise RunError(f"image {index} was not recorded: it could not be read.")
    width, height = (int(side) for side in store.sizes[index])
    return _seen((width, height), store.crop(index), store.grid, checkpoint, found)


def new(checkpoint: Checkpoint, model: VisionModel, image: Image.Image, sites: Sequence[Site] = ()) -> Seen:
    """Codes of a new picture; runs the model.

    Args:
        sites: the recorded sites; needed if the SAE reads all of them, or their mean.

    Raises:
        ModelError: its transform rejects the picture.
        RunError: the SAE reads all recorded layers, or their mean, and `sites` does not name them.
    """
    import torch

    selection = checkpoint.selection.among(sites)
    if not selection.sites:
        raise RunError(f"this SAE reads {checkpoint.site}; which layers those are is unknown without the run's store.")
    pixels = torch.as_tensor(model.transform(image))[None].to(model.device)
    with torch.no_grad():
        tokens = {site: x.float() for site, x in model.record(pixels, selection.sites).items()}
    vectors = [x[0] for x in selection.of_tokens(tokens, model.grid.n_prefix)]
    return _seen(image.size, model.crop(*image.size), model.grid, checkpoint, vectors)


def _seen(size: tuple[int, int], crop: Box, grid: Grid, checkpoint: Checkpoint, vectors: Sequence[Tensor]) -> Seen:
    """Codes of a picture's vectors `[n_tokens, d]`; with several sites, each feature's maximum over sites on each patch."""
    if checkpoint.read.tokens != "patches":
        grid = Grid(1, 1, max(grid.width_px, grid.height_px))
    patches, features, values = [], [], []
    for x in vectors:
        codes = checkpoint.codes(x)
        value = codes.value.float().cpu().numpy()
        patches.append(codes.rows.cpu().numpy()[value > 0])
        features.append(codes.feature.cpu().numpy()[value > 0])
        values.append(value[value > 0])
    patch, feature, value = np.concatenate(patches), np.concatenate(features), np.concatenate(values)
    if len(vectors) > 1:
        order = np.lexsort((-value, feature, patch))
        patch, feature, value = patch[order], feature[order], value[order]
        first = np.r_[True, (np.diff(patch) != 0) | (np.diff(feature) != 0)][: len(patch)]
        patch, feature, value = patch[first], feature[first], value[first]
    return Seen(size, crop, grid, np.searchsorted(patch, np.arange(grid.n_patches + 1)), feature, value, about(checkpoint.selection))


def about(selection: Selection) -> str:
    """A note for reading a picture's patches."""
    tokens = {
        "cls": "This SAE reads the CLS token, so there is one set of features for the whole picture.",
        "mean": "This SAE reads the mean over all patches, so there is one set of features for the whole picture.",
    }.get(selection.tokens, "")
    layers = {
        "all": "This SAE reads every recorded layer; each patch shows a feature's maximum over the layers.",
        "mean": "This SAE reads the mean over all recorded layers.",
        "joined": f"This SAE reads layers {' and '.join(str(site.layer) for site in selection.sites)} of the model together.",
    }.get(selection.layers, "")
    return " ".join(part for part in (tokens, layers) if part)
