"""`split`: which images are held out from training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool


def split(n_images: int, heldout: float, seed: int) -> Bool[np.ndarray, " n_images"]:
    """Which images are held out from training; at least one on each side if any are and there are two.

    Depends on the arguments alone; a larger share holds out the same images and more.
    """
    held = np.zeros(n_images, bool)
    if heldout > 0 and n_images >= 2:
        n = min(max(round(n_images * heldout), 1), n_images - 1)
        # RandomState: numpy promises its stream will never change.
        held[np.random.RandomState(seed % 2**32).permutation(n_images)[:n]] = True
    return held
