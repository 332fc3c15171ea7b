"""Results of the single-feature probes: a row per class, a summary, and the files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors.numpy import save

from saev_core import TaskContext
from saev_core.errors import RunError
from saev_core.support.files import replace_file
from saev_tasks.probe1d.pairs import Pairs, best

Row = dict[str, Any]


def class_rows(
    names: Sequence[str], pairs: Pairs, size: Int[np.ndarray, " n"], held: Int[np.ndarray, " n"], several: Sequence[Row]
) -> list[Row]:
    """One row per class that has training units: features are chosen on these, all other numbers are on validation units."""
    by_r, by_ap = best(pairs.r_train)[:, 0], best(pairs.ap_train)[:, 0]
    rows = []
    for c in np.flatnonzero(size > 0).tolist():
        row: Row = {"class": names[c], "n_train": int(size[c]), "n_val": int(held[c])}
        f, g = int(by_r[c]), int(by_ap[c])
        row |= {"r_feature": f, "r": _at(pairs.r, f, c), "r_train": _at(pairs.r_train, f, c), "weight": _at(pairs.weight, f, c)}
        row |= {"bias": _at(pairs.bias, f, c), "ap_feature": g, "ap": _at(pairs.ap, g, c), "ap_train": _at(pairs.ap_train, g, c)}
        row |= {"auroc": _at(pairs.auroc, g, c), "purity": _at(pairs.purity, g, c)}
        for each in several:
            if each["class"] == c:
                head = "dense" if each["k"] is None else f"k{each['k']}"
                row |= {f"{head}_{key}": each[key] for key in ("accuracy", "f1", "auroc", "ap")}
                if each["k"] is not None:
                    row[f"{head}_features"] = each["features"]
        rows.append(row)
    return rows


def _at(values: np.ndarray, feature: int, c: int) -> float:
    return float(values[feature, c]) if feature >= 0 else math.nan


def summary(rows: Sequence[Row], pairs: Pairs, tau: Sequence[float], k: int) -> Row:
    """Means over the classes present in validation images, and coverage: the share of them whose feature has an AP of at least `tau`."""
    ap = np.array([row["ap"] for row in rows if row["n_val"]])
    told: Row = {
        "n_classes": len(ap),
        "map": _mean(rows, "ap"),
        "mean_r": _mean(rows, "r"),
        "mean_auroc": _mean(rows, "auroc"),
        f"purity@{k}": _mean(rows, "purity"),
        "coverage": {f"{t:g}": float((np.nan_to_num(ap) >= t).mean()) if len(ap) else math.nan for t in tau},
        "n_features": len(pairs.r),
        "n_pairs": int(np.isfinite(pairs.weight).sum()),
    }
    heads = dict.fromkeys(key.rpartition("_")[0] for row in rows for key in row if key.endswith("_f1"))
    told["probes"] = {head: {key: _mean(rows, f"{head}_{key}") for key in ("accuracy", "f1", "auroc", "ap")} for head in heads}
    return told


def _mean(rows: Sequence[Row], key: str) -> float:
    values = [row[key] for row in rows if row["n_val"] and math.isfinite(row.get(key, math.nan))]
    return float(np.mean(values)) if values else math.nan


def write(cx: TaskContext, told: Row, rows: Sequence[Row], pairs: Pairs, names: Sequence[str]) -> Row:
    """Print the results, and write `classes.csv`, `pairs.safetensors` and the result; returns what `--json` prints."""
    _say(cx, told, rows)
    folder = cx.folder()
    head = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: " ".join(map(str, each)) if isinstance(each, list) else each for key, each in row.items()})
    try:
        replace_file(folder / "classes.csv", text.getvalue().encode())
        replace_file(folder / "pairs.safetensors", save(pairs.arrays(), metadata={"classes": "\n".join(names)}))
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror or error}); free some disk space, or check permissions.") from None
    answer = {**told, "classes": list(rows), "csv": str(folder / "classes.csv"), "pairs": str(folder / "pairs.safetensors")}
    from saev_core.tasks.task import plain

    cx.run.write_result("probe1d", {key: each for key, each in plain(answer).items() if key not in ("csv", "pairs")})
    return answer


def _say(cx: TaskContext, told: Row, rows: Sequence[Row]) -> None:
    probes = list(told["probes"])
    n = told["n_units"]
    cx.say(f"{n['train']:,} training and {n['val']:,} validation {told['units']}, {told['n_features']:,} features, {len(rows)} classes")
    names = {head: "dense" if head == "dense" else f"{head[1:]} feat." for head in probes}
    header = ["class", "n val", "feature", "R", "feature", "AP", "purity", *(f"F1 {names[head]}" for head in probes)]
    table = [
        [
            row["class"],
            f"{row['n_val']:,}",
            row["r_feature"],
            _number(row["r"]),
            row["ap_feature"],
            _number(row["ap"]),
            _number(row["purity"]),
        ]
        + [_number(row.get(f"{head}_f1")) for head in probes]
        for row in rows
    ]
    purity = next(each for key, each in told.items() if key.startswith("purity@"))
    means = [_number(told["probes"][head]["f1"]) for head in probes]
    cx.table([*table, ["mean", "", "", _number(told["mean_r"]), "", _number(told["map"]), _number(purity), *means]], header)
    if probes:
        keys = ("accuracy", "f1", "auroc", "ap")
        cx.say("")
        cx.table(
            [[names[head], *(_number(told["probes"][head][key]) for key in keys)] for head in probes],
            ["probe, mean over classes", "accuracy", "F1", "AUROC", "AP"],
        )
    covered = ", ".join(f"{share:.0%} at AP {t}" for t, share in told["coverage"].items())
    cx.say(f"mAP {_number(told['map'])}; classes covered by one feature: {covered}")


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"
