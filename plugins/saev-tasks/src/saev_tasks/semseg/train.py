"""Linear segmentation probes on patch activations: a sweep over learning rate and weight decay, trained in one pass.

By default the loss is per pixel: the cross-entropy of logits upsampled bilinearly to the mask, which is what `validate`
measures. Upsampling is linear and its weights sum to one, so the logits of a pixel are the probe's output for the vector
interpolated between the four patches around it: each epoch samples new pixels, interpolates their vectors, and runs the same
solver. `patches` trains on the majority class of each patch instead: it needs no masks once a store is recorded, is faster,
and is better on whole patches, worse on thin objects and borders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core import Grid, Site
from saev_core.errors import DatasetError
from saev_core.support.progress import Track, silent
from saev_core.tasks.fit_probes import Fitted, ProbeSetting, fit_probes
from saev_tasks.semseg.scores import Counts, majority, predict
from saev_tasks.shared.patch_vectors import Targets, Truth, listed, mixed, patch_shares, stored

log = logging.getLogger(__name__)

_PIXELS_AT_ONCE = 2**22


class Bilinear:
    """The four patches around a pixel of the transformed image, and their weights; consistent with `scores.upsample`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._down, self._across = (_axis(n, grid.patch_px) for n in (grid.rows, grid.cols))

    def __call__(
        self, x: Float[Tensor, "n n_patches d"], row: Int[np.ndarray, "n k"], col: Int[np.ndarray, "n k"]
    ) -> Float[Tensor, "n k d"]:
        """Interpolated vectors at pixels of each image."""
        image = torch.arange(len(x))[:, None]
        out = x.new_zeros(*row.shape, x.shape[2])
        for patch_row, down in self._down(row):
            for patch_col, across in self._across(col):
                patch = torch.from_numpy(patch_row * self.grid.cols + patch_col)
                out += x[image, patch] * torch.from_numpy((down * across).astype(np.float32))[..., None]
        return out


def _axis(n: int, px: int) -> Callable[[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    def around(at: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        place = np.clip((at + 0.5) / px - 0.5, 0, n - 1)
        low = np.minimum(place.astype(np.int64), max(n - 2, 0))
        high = np.minimum(low + 1, n - 1)
        return [(low, 1 - (place - low)), (high, place - low)]

    return around


def pixel_targets(truth: Truth, pixels: Int[np.ndarray, "n height width"], n_drawn: int) -> Targets:
    """Interpolated vectors and classes of `n_drawn` random pixels per image; class -1 where there is none."""
    grid, n_classes, at = truth.grid, len(truth.classes), Bilinear(truth.grid)

    def draw(places: Int[np.ndarray, " n"], x: Tensor, rng: np.random.RandomState) -> tuple[Tensor, Tensor]:
        row, col = (rng.randint(0, side, (len(places), n_drawn)) for side in (grid.height_px, grid.width_px))
        y = torch.from_numpy(pixels[places[:, None], row, col].astype(np.int64))
        return at(x, row, col).flatten(0, 1), torch.where(y < n_classes, y, -1).flatten()

    return draw


def patch_targets(labels: Int[np.ndarray, "n n_patches"]) -> Targets:
    """Every patch and its majority class, -1 where there is none."""
    kept = torch.from_numpy(labels)

    def take(places: Int[np.ndarray, " n"], x: Tensor, rng: np.random.RandomState) -> tuple[Tensor, Tensor]:
        return x.flatten(0, 1), kept[torch.from_numpy(places)].flatten()

    return take


def train_probes(
    truth: Truth,
    site: Site,
    images: Int[np.ndarray, " n"],
    points: Sequence[ProbeSetting],
    *,
    loss: str,
    n_drawn: int,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    track: Track = silent,
    say: Callable[[str], None] = log.info,
) -> list[Fitted]:
    """One probe per setting, all trained on the same batches.

    Args:
        loss: `pixels` or `patches`.
        n_drawn: with `pixels`, pixels sampled per image and epoch.
        say: receives a warning about classes without training examples.

    Raises:
        DatasetError: no image shows a class, or all show the same one.
        ProbeError: as `fit_probes`.
    """
    if loss == "pixels":
        pixels = truth.pixels(images, track)
        there = np.unique(pixels)
        targets = pixel_targets(truth, pixels, n_drawn)
    else:
        labels = truth.patches(images)
        there = np.unique(labels[labels >= 0])
        targets = patch_targets(labels)
    there = there[there < len(truth.classes)]
    if len(there) < 2:
        shown = f"only {truth.classes.names[int(there[0])]}" if len(there) else "no class"
        raise DatasetError(f"the masks of the {len(images)} training images show {shown}; a probe needs at least two classes.")
    if missing := [truth.classes.names[c] for c in truth.classes.kept if c not in there]:
        say(f"no training image shows {listed(missing)}: the probe will rarely predict it")
    with track("probes", epochs, "epochs") as meter:
        return fit_probes(
            mixed(truth.store, site, images, targets, batch_size, seed), truth.store.meta.d_model, len(truth.classes), points,
            epochs=epochs, device=device, after_epoch=lambda epoch: meter.update(1),
        )  # fmt: skip


def measure(
    truth: Truth,
    site: Site,
    images: Int[np.ndarray, " n"],
    heads: Sequence[tuple[Tensor, Tensor]],
    *,
    patches: bool = False,
    track: Track = silent,
) -> list[Counts]:
    """Counts of several heads `(weight, bias)` on the pixels of images, or with `patches` on the majority classes of patches."""
    found: list[list[Counts]] = [[] for _ in heads]
    grid, n_classes = truth.grid, len(truth.classes)
    step = max(1, _PIXELS_AT_ONCE // (n_classes * grid.height_px * grid.width_px))
    with track("scores", len(images), "images") as meter:
        for numbers, x in stored(truth.store, site, images):
            want = truth.patches(numbers) if patches else truth.pixels(numbers)
            for (weight, bias), parts in zip(heads, found, strict=True):
                logits = x.to(weight.device) @ weight.T + bias
                for start in range(0, len(x), step):
                    said = predict(logits[start : start + step], grid, truth.classes, "patches" if patches else "pixels").cpu().numpy()
                    parts.append(Counts.of(said, want[start : start + step], n_classes))
            meter.update(len(numbers))
    return [Counts.join(parts) for parts in found]


def ceilings(truth: Truth, images: Int[np.ndarray, " n"], track: Track = silent) -> dict[str, Counts]:
    """Scores of an oracle that knows only each patch's majority class, or the share of every class in it.

    `majority` is predicted per patch (`blocks`) or upsampled as logits (`upsampled`); `shares` are upsampled as logits. Borders inside
    a patch are lost; a probe may do better, since its logits can encode how far a border is from a patch's centre.
    """
    grid, n_classes, px = truth.grid, len(truth.classes), truth.grid.patch_px
    found: dict[str, list[Counts]] = {"majority, blocks": [], "majority, upsampled": [], "shares, upsampled": []}
    step = max(1, _PIXELS_AT_ONCE // (n_classes * grid.height_px * grid.width_px))
    with track("ceiling", len(images), "images") as meter:
        for start in range(0, len(images), step):
            want = truth.pixels(images[start : start + step])
            shares = patch_shares(want, grid, n_classes)
            best = torch.from_numpy(majority(shares).astype(np.float32))
            blocks = grid.to_map(predict(best, grid, truth.classes, "patches").numpy()).repeat(px, 1).repeat(px, 2)
            found["majority, blocks"].append(Counts.of(blocks, want, n_classes))
            for name, logits in (("majority", best), ("shares", torch.from_numpy(shares))):
                said = predict(logits, grid, truth.classes).numpy()
                found[f"{name}, upsampled"].append(Counts.of(said, want, n_classes))
            meter.update(len(want))
    return {name: Counts.join(parts) for name, parts in found.items()}
