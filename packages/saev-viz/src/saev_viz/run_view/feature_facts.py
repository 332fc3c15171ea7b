"""Per-feature facts outside the index: proposed names, ground truth, agreement across seeds. Does not import gradio."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float

from saev_core import Run
from saev_core.errors import RunError
from saev_core.features.naming.names import Names

log = logging.getLogger(__name__)

TELLING = 0.6
"""Minimum F1 for a feature to count as detecting a ground-truth value."""


def read_names(path: Path, checkpoint: str = "") -> dict[int, tuple[str, float]]:
    """Proposed names and their scores, by feature, from `features/<sae>.names.json`; empty if there are none.

    Args:
        checkpoint: fingerprint of the SAE; names of another one are ignored. Empty: no check.

    Raises:
        RunError: the file is damaged, or of another format.
    """
    if not path.exists():
        return {}
    saved = Names.load(path)
    if checkpoint and saved.checkpoint != checkpoint:
        log.warning("%s holds names of another checkpoint, ignoring them; rebuild them with saev index --names.", path)
        return {}
    return {feature: (name.name, name.score) for feature, name in saved.names.items()}


def known_truth(run: Run, sae: str) -> dict[int, list[tuple[str, float]]]:
    """Feature -> the ground-truth values it detects, such as `colour: red`, with F1 on held-out pictures, best first."""
    rows = run.result("recovery").get(sae, {}).get("rows", [])
    found: dict[int, list[tuple[str, float]]] = {}
    for row in sorted(rows, key=lambda row: -float(row["f1"])):
        if float(row["f1"]) >= TELLING:
            found.setdefault(int(row["feature"]), []).append((f"{row['factor']}: {row['value']}", float(row["f1"])))
    return found


def read_stability(run: Run, sae: str) -> Float[np.ndarray, " d_sae"] | None:
    """Mean cosine of each feature to its partners in the SAEs of other seeds; None if there are none.

    Raises:
        RunError: the file is damaged.
    """
    path = run.results_path("stability").with_suffix("") / f"{sae}.npy"
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} cannot be read ({error}); rebuild it with saev run, or delete it.") from None
