"""`score_names`: accuracy of proposed names, given the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saev_core.features.naming.names import Names


def score_names(names: Names, best_values: Sequence[tuple[int, str, float]], telling: float = 0.6) -> dict[str, Any]:
    """Measure the accuracy of names, given the ground truth.

    A name is right if it is the value that the feature detects best (largest F1 on patches, `Recovery.best_value`), alone (`red`) or
    with its factor (`colour: red`). `precision` is the share of names that are right. A feature that detects no value with an F1 of at
    least `telling` may represent two at once (red circles), so that a correct name counts as wrong. Among the others, `found` is the
    share with the right name, `silent` the share without a name, and `precision_telling` the share of their names that are right.
    """
    truth = {feature: (value, f1) for feature, value, f1 in best_values}
    right = {f for f, name in names.names.items() if f in truth and name.name in (truth[f][0], truth[f][0].partition(": ")[2])}
    clear = {f for f, (_, f1) in truth.items() if f1 >= telling}
    n_clear_named = len(clear & names.names.keys())
    return {
        "source": names.source,
        "threshold": names.threshold,
        "n_alive": names.n_alive,
        "n_named": len(names.names),
        "n_unnamed": names.n_alive - len(names.names),
        "n_right": len(right),
        "precision": len(right) / len(names.names) if names.names else None,
        "n_telling": len(clear),
        "found": len(right & clear) / len(clear) if clear else None,
        "silent": 1 - n_clear_named / len(clear) if clear else None,
        "precision_telling": len(right & clear) / n_clear_named if n_clear_named else None,
        "wrong": [
            {"feature": f, "name": names.names[f].name, "score": names.names[f].score, "truth": truth[f][0] if f in truth else "",
             "f1": round(truth[f][1], 4) if f in truth else 0.0}
            for f in sorted(names.names.keys() - right)
        ],
    }  # fmt: skip
