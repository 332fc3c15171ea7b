"""`evaluate`: quality metrics of an SAE on held-out images; the single definition of each metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.config.stages import EvaluateConfig
from saev_core.errors import CheckpointError
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.codes import Codes
from saev_core.support.progress import Track, silent

if TYPE_CHECKING:
    from saev_core.activations.sources.image_vectors import ImageVectors


LOG_FREQUENCY = np.linspace(-8, 0, 81)
"""Edges of the histogram of log10 frequency."""
LOG_VALUE = np.linspace(-4, 3, 71)
"""Edges of the histogram of log10 mean value."""


@dataclass(frozen=True)
class Evaluation:
    """The card (JSON values, saved in the checkpoint), and two numbers per feature."""

    card: dict[str, Any]
    frequency: np.ndarray[Any, np.dtype[np.float64]]
    """Fraction of vectors on which each feature is active."""
    mean_value: np.ndarray[Any, np.dtype[np.float64]]
    """Mean of each feature over the vectors where it is active; 0 if there are none."""


class Tally:
    """Sums over a stream of normalised vectors, in float64: call `add` repeatedly, then `result`.

    NMSE (also FVU) = sum |x - x_hat|^2 / (sum |x|^2 - |sum x|^2 / N): the variance is over the whole set, about
    the mean VECTOR. It is invariant to shift and scale, so it is the same for raw and normalised activations. Joined sites
    are scaled separately, so that they have equal weight; `nmse_by_site` has one value per site.
    """

    def __init__(self, d_out: int, d_sae: int, device: torch.device | str = "cpu", *, n_sites: int = 1) -> None:
        """
        Args:
            n_sites: number of sites joined in the vectors.
        """
        self.n = 0
        self._x = torch.zeros(d_out, dtype=torch.float64, device=device)
        self._x_sq, self._error = (torch.zeros(n_sites, dtype=torch.float64, device=device) for _ in range(2))
        self._count = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self._value = torch.zeros(d_sae, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, x: Float[Tensor, "n d_out"], x_hat: Float[Tensor, "n d_out"], codes: Codes) -> None:
        """Add target vectors, their reconstructions, and the codes."""
        x64 = x.double()
        self.n += len(x)
        self._x += x64.sum(0)
        self._x_sq += self._by_site(x64)
        self._error += self._by_site(x64 - x_hat)
        self._count += codes.counts()
        self._value += torch.bincount(codes.feature, weights=codes.value.double(), minlength=codes.d_sae)

    def answer(self, sae: SAE, x: Float[Tensor, "n d_in"]) -> None:
        """Add normalised vectors and their reconstruction by an SAE in its inference form."""
        codes = sae.codes(x)
        self.add(sae.split(x)[1], sae.reconstruct(x, codes), codes)

    @classmethod
    def of(cls, sae: SAE, device: torch.device | str = "cpu") -> Tally:
        """An empty tally for the vectors that this SAE reconstructs."""
        return cls(sae.d_out, sae.d_sae, device, n_sites=sae.d_out * sae.cfg.n_sites // sae.d_in)

    def _by_site(self, x: Float[Tensor, "n d_out"]) -> Float[Tensor, " n_sites"]:
        """Sum of squares per site."""
        return torch.stack([block.square().sum() for block in x.chunk(len(self._error), dim=1)])

    def result(self, cfg: EvaluateConfig) -> Evaluation:
        """All metrics, computed from the sums.

        Raises:
            CheckpointError: nothing was added.
        """
        if self.n == 0:
            raise CheckpointError("there are no vectors to evaluate on; check read.heldout and that the recording is complete.")
        spreads = (self._x_sq - self._by_site(self._x[None]) / self.n).tolist()
        errors = self._error.tolist()
        spread, error = sum(spreads), sum(errors)
        nmse = error / spread if spread > 0 else 0.0
        frequency = (self._count / self.n).cpu().numpy()
        mean = (self._value / self._count.clamp_min(1)).cpu().numpy()
        fires = frequency > 0
        groups = {"dead": ~fires, "almost_dead": fires & (frequency < cfg.almost_dead), "dense": frequency > cfg.dense}
        card: dict[str, Any] = {
            "nmse": nmse,
            "explained_variance": 1 - nmse,
            "l0": float(self._count.sum()) / self.n,
            "l1": float(self._value.sum()) / self.n,
            "mse": error / self.n,
            **{name: float(mask.mean()) for name, mask in groups.items()},
            **{f"n_{name}": int(mask.sum()) for name, mask in groups.items()},
            "n_vectors": self.n,
            "d_sae": len(frequency),
            "thresholds": {"almost_dead": cfg.almost_dead, "dense": cfg.dense},
            "histograms": {
                "log_frequency": _histogram(np.log10(frequency[fires]), LOG_FREQUENCY),
                "log_value": _histogram(np.log10(mean[fires]), LOG_VALUE),
            },
        }
        if len(errors) > 1:
            card["nmse_by_site"] = [e / s if s > 0 else 0.0 for e, s in zip(errors, spreads, strict=True)]
        return Evaluation(card, frequency, mean)


def _histogram(values: np.ndarray[Any, Any], edges: np.ndarray[Any, Any]) -> dict[str, list[float] | list[int]]:
    """Counts between edges; values outside count in the outermost bins."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(c) for c in counts]}


@torch.no_grad()
def measure(
    checkpoint: Checkpoint,
    vectors: ImageVectors,
    cfg: EvaluateConfig,
    *,
    images: Literal["heldout", "train", "all"] | np.ndarray[Any, Any] = "heldout",
    track: Track = silent,
) -> Evaluation:
    """Evaluate a checkpoint on held-out (or other) images, from a store or directly from the model.

    Args:
        vectors: what its `read` selects: the source that it was trained on, or `StoredVectors(store, checkpoint.read)`.

    The card: `nmse`, `explained_variance`, `l0` (mean count of active features), `l1` (mean sum of values), `mse` (mean
    squared distance per vector, normalised units), shares and counts of `dead` (never active here), `almost_dead`
    and `dense` features, histograms of log10 frequency and log10 mean value, and the data used; `nmse_by_site`
    if joined sites are reconstructed, and the variant's own facts about its dictionary (`SAE.facts`).

    Raises:
        CheckpointError: they are not of the store or model that the SAE was trained on, or there are no vectors to evaluate on.
    """
    from saev_core.activations.sources.heldout import heldout_mask

    checkpoint.check(vectors)
    read = checkpoint.read
    what: str = "chosen"
    if isinstance(images, str):
        held = heldout_mask(vectors.n_images, read.heldout, read.split_seed)
        chosen = {"heldout": held, "train": ~held, "all": np.ones_like(held)}[images].nonzero()[0]
        what = images
    else:
        chosen = np.asarray(images)
    if len(chosen) == 0:
        raise CheckpointError(
            f"no image to evaluate on ({what}; read.heldout is {read.heldout:g}); pass images='all', or train with read.heldout > 0."
        )
    device = checkpoint.sae.W_dec.device
    tally = Tally.of(checkpoint.sae, device)
    sae = checkpoint.sae.frozen()
    per_image = checkpoint.selection.n_tokens(vectors.grid)
    seen: set[int] = set()
    with track("evaluate", len(chosen), "images") as meter:
        for index, x, _ in vectors.in_order(chosen, max(1, cfg.batch_size // per_image)):
            tally.answer(sae, checkpoint.norm(x.reshape(-1, x.shape[-1]).to(device)))
            # With read.layer "all" an image appears once per site.
            fresh = set(index.tolist()) - seen
            seen |= fresh
            meter.update(len(fresh))
    result = tally.result(cfg)
    result.card.update(n_images=len(seen), images=what, heldout=read.heldout, split_seed=read.split_seed, **checkpoint.sae.facts())
    return result


def evaluate(
    checkpoint: Checkpoint,
    vectors: ImageVectors,
    cfg: EvaluateConfig,
    *,
    images: Literal["heldout", "train", "all"] | np.ndarray[Any, Any] = "heldout",
    track: Track = silent,
) -> dict[str, Any]:
    """Only the card, as saved in the checkpoint; see `measure`."""
    return measure(checkpoint, vectors, cfg, images=images, track=track).card
