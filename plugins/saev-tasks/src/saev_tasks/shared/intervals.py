"""Confidence intervals: of shares by Wilson, of statistics over images by bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def wilson(hits: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """A 95 % confidence interval of a share; (0, 1) if n is 0.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference. https://doi.org/10.2307/2276774
    """
    if n <= 0:
        return 0.0, 1.0
    p = hits / n
    middle, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float((middle - reach) / (1 + z * z / n))), min(1.0, float((middle + reach) / (1 + z * z / n)))


N_RESAMPLES = 1000


def interval(
    per_image: Float[np.ndarray, "n_images k"], of: Callable[[np.ndarray], np.ndarray], seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """A confidence interval by bootstrap over images, percentile method.

    Args:
        per_image: values summed over images.
        of: the statistic, as a function of sums `[..., k]`.

    Source: Efron 1979, Bootstrap methods: another look at the jackknife. https://doi.org/10.1214/aos/1176344552
    """
    n = len(per_image)
    rng = np.random.RandomState(seed)
    drawn = np.stack([np.bincount(rng.randint(0, n, n), minlength=n) for _ in range(N_RESAMPLES)])
    values = of(drawn.astype(np.float64) @ per_image.astype(np.float64))
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail], axis=0) if np.isfinite(values).any() else (values[0], values[0])
    return np.asarray(low), np.asarray(high)
