"""Results of the classification verbs: `results/classification.json`, table and CSV rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saev_tasks.classification.data import LabelPart
from saev_tasks.classification.train import Candidate
from saev_tasks.shared.control_experiment import Row

CONTROL = ("class", "features", "strength", "flipped", "95 %", "others lose", "95 %", "worst", "random", "lose", "direction", "lose")
"""Header of the control experiment's table; shares in %, flipped and lost by others for both baselines."""


def per_class(one: Candidate, x: Float[Tensor, "n d"], part: LabelPart, names: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy of each class: `{class, n, accuracy}`; None for a class without images."""
    said = (x.float() @ one.weight.T + one.bias).argmax(1).numpy()
    n = np.bincount(part.labels, minlength=len(names))
    hits = np.bincount(part.labels[said == part.labels], minlength=len(names))
    return [{"class": name, "n": int(n[c]), "accuracy": float(hits[c] / n[c]) if n[c] else None} for c, name in enumerate(names)]


def setting(row: Mapping[str, Any]) -> str:
    """A readable sweep setting."""
    return f"C {row['c']:g}" if row["solver"] == "logistic" else f"lr {row['lr']:g}, weight decay {row['weight_decay']:g}"


def ranked(rows: Sequence[Mapping[str, Any]], n: int = 8) -> list[list[str]]:
    """Table cells of the chosen setting and the next best ones."""
    order = sorted(rows, key=lambda row: (not row["best"], -row["tune_accuracy"], row["tune_loss"]))[:n]
    return [[row["solver"], setting(row), *(f"{row[f'{part}_accuracy']:.4f}" for part in ("train", "tune", "val"))] for row in order]


def fires(one: Mapping[str, Any]) -> str:
    """A proposed feature, with the shares of the class's and of other images on which it fires."""
    return f"{one['feature']} ({one['share']:.2f}/{one['share_others']:.2f})"


def flat(row: Row) -> dict[str, Any]:
    """A CSV row of the control experiment."""
    choice = row.choice
    out: dict[str, Any] = {"class": row.name, "n_right": row.n_right, "features": " ".join(map(str, choice.features))}
    out |= {"strength": choice.strength, "train_flipped": choice.flipped, "train_others_lost": choice.others_lost}
    for name in ("suppressed", "random_features", "random_direction"):
        out |= {f"{name}_{key}": value for key, value in asdict(getattr(row, name)).items()}
    out |= {"over_features": row.over_features, "over_direction": row.over_direction, "passes": row.passes}
    spread: dict[str, Any] = {}
    for key, value in out.items():
        spread |= {f"{key}_low": value[0], f"{key}_high": value[1]} if isinstance(value, tuple) else {key: value}
    return spread


def told(row: Row) -> list[str]:
    """A table row of the control experiment; see `CONTROL`."""
    one, features, direction = row.suppressed, row.random_features, row.random_direction

    def ends(two: tuple[float, float]) -> str:
        return f"{100 * two[0]:.0f}-{100 * two[1]:.0f}"

    shares = [f"{100 * one.flipped:.1f}", ends(one.flipped_interval), f"{100 * one.others_lost:.1f}", ends(one.others_lost_interval)]
    beside = [f"{100 * value:.1f}" for each in (features, direction) for value in (each.flipped, each.others_lost)]
    return [row.name, str(len(row.choice.features)), f"{row.choice.strength:g}", *shares, f"{100 * one.worst_lost:.1f}", *beside]
