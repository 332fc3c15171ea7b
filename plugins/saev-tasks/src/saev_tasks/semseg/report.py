"""Results of the segmentation task: scores as mappings, and table rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from saev_tasks.semseg.control import PixelRow
from saev_tasks.semseg.scores import Counts, ratio
from saev_tasks.shared.intervals import interval
from saev_tasks.shared.patch_vectors import Classes

HEADER = ("class", "features", "strength", "flipped", "95 %", "others lose", "worst", "IoU", "after", "random", "direction")
"""Header of the rows that `told` makes."""


def scores(counts: Counts) -> dict[str, float]:
    return {"miou": counts.miou, "accuracy": counts.accuracy, "mean_accuracy": counts.mean_accuracy}


def line(scores: Mapping[str, Any], n: int) -> str:
    return (
        f"{n} validation images: mean IoU {scores['miou']:.3f}, pixel accuracy {scores['accuracy']:.3f}, "
        f"mean class accuracy {scores['mean_accuracy']:.3f}"
    )


def class_intervals(counts: Counts) -> Float[np.ndarray, "n_classes 2"]:
    stacked = np.concatenate([counts.hit, counts.truth, counts.predicted], 1)

    def of(sums: np.ndarray) -> np.ndarray:
        hit, truth, predicted = np.split(sums, 3, axis=-1)
        return ratio(hit, truth + predicted - hit)

    there = np.isfinite(counts.iou)
    low, high = interval(stacked, lambda sums: np.where(there, np.nan_to_num(of(sums)), 0.0))
    return np.where(there[:, None], np.stack([low, high], -1), np.nan)


def flat(row: PixelRow) -> dict[str, Any]:
    """One CSV row."""
    out: dict[str, Any] = {"class": row.name, "number": row.number, "n_right": row.n_right, "strength": row.choice.strength}
    out |= {
        "features": " ".join(map(str, row.choice.features)),
        "train_flipped": row.choice.flipped,
        "train_others_lost": row.choice.others_lost,
    }
    out |= {"iou_before": row.iou, "others_iou_before": row.others_iou}
    for name in ("suppressed", "random_features", "random_direction"):
        for key, value in asdict(getattr(row, name)).items():
            if isinstance(value, tuple):
                out |= {f"{name}_{key.removesuffix('_interval')}_low": value[0], f"{name}_{key.removesuffix('_interval')}_high": value[1]}
            else:
                out[f"{name}_{key}"] = value
    out |= {"over_features_low": row.over_features[0], "over_features_high": row.over_features[1]}
    return out | {"over_direction_low": row.over_direction[0], "over_direction_high": row.over_direction[1], "passes": row.passes}


def told(row: PixelRow) -> list[str]:
    """One table row."""
    s = row.suppressed
    return [
        row.name, str(len(row.choice.features)), f"{row.choice.strength:g}", f"{s.flipped:.1%}",
        f"{s.flipped_interval[0]:.1%} to {s.flipped_interval[1]:.1%}", f"{s.others_lost:.2%}", f"{s.worst_lost:.1%} ({s.worst_class})",
        f"{row.iou:.2f}", f"{s.iou:.2f}", f"{row.random_features.flipped:.1%}", f"{row.random_direction.flipped:.1%}",
    ]  # fmt: skip


def class_rows(pixels: Counts, bounds: Float[np.ndarray, "n_classes 2"], classes: Classes) -> list[dict[str, Any]]:
    """One row per class, including ignored ones; `bounds` from `class_intervals`."""
    return [
        {
            "class": name,
            "number": c,
            "ignored": c in classes.ignored,
            "iou": float(pixels.iou[c]),
            "iou_low": float(bounds[c, 0]),
            "iou_high": float(bounds[c, 1]),
            "accuracy": float(pixels.class_accuracy[c]),
            "pixels": int(pixels.totals[1][c]),
            "predicted": int(pixels.totals[2][c]),
        }
        for c, name in enumerate(classes.names)
    ]
