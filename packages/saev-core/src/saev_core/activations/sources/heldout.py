"""Which images of a store are held out from training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool


def heldout_mask(n_images: int, heldout: float, seed: int) -> Bool[np.ndarray, " n_images"]:
    """Which images are held out from training; if `heldout` is not 0 and there are two images, at least one on each side.

    Depends only on the arguments; a larger fraction holds out a superset of the images.
    """
    held = np.zeros(n_images, bool)
    if heldout > 0 and n_images >= 2:
        n = min(max(round(n_images * heldout), 1), n_images - 1)
        # RandomState: numpy guarantees that its stream never changes.
        held[np.random.RandomState(seed % 2**32).permutation(n_images)[:n]] = True
    return held
