"""Comparison of the SAEs of one run: what `saev evaluate` computes beyond each one's card, and where it is stored.

results/pareto.json               every SAE's L0 and error, the front, the best
results/stability.json            agreement and consensus of each point with several seeds
results/stability/<sae>.npy       each feature's mean cosine to its partners in the other seeds, NaN if it is dead
results/frequency/<sae>.npy       each feature's frequency on held-out images
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saev_core.errors import CheckpointError
from saev_core.evaluation.consensus import consensus
from saev_core.evaluation.pareto import EvaluatedSAE
from saev_core.evaluation.seed_agreement import identity, points, stability
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.checkpoint_card import META
from saev_core.support.files import write_json


@dataclass(frozen=True)
class Measured:
    """The data of an evaluated SAE needed for comparisons, without its weights."""

    point: EvaluatedSAE
    identity: str
    fingerprint: str

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> Self:
        return cls(EvaluatedSAE.of(name, checkpoint), identity(checkpoint), checkpoint.fingerprint)


def is_consensus(run: Run, name: str) -> bool:
    """Whether an SAE is a consensus of others; does not read its weights."""
    try:
        return "consensus" in json.loads((run.sae_dir(name) / META).read_text(encoding="utf-8"))["train"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # damaged: loading it reports the problem


def frequency_path(run: Run, name: str) -> Path:
    """The file with an SAE's feature frequencies."""
    return run.results_path("frequency").with_suffix("") / f"{name}.npy"


def keep_frequency(run: Run, name: str, frequency: Float[np.ndarray, " d_sae"]) -> None:
    """Save an SAE's feature frequencies if the run has other SAEs to compare it with."""
    path = frequency_path(run, name)
    path.unlink(missing_ok=True)
    if len(run.sae_names) > 1:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, frequency.astype(np.float32))


def seeds_of(found: Mapping[str, Measured]) -> dict[str, list[str]]:
    """Names of SAEs that differ only in their seed, by the name of their point."""
    return points({name: m.identity for name, m in found.items()}, {name: m.point.seed or 0 for name, m in found.items()})


def compare_seeds(
    run: Run,
    name: str,
    checkpoints: Mapping[str, Checkpoint],
    frequency: Mapping[str, Float[np.ndarray, " d_sae"]],
    above: float | None,
    x: Float[Tensor, "n d_in"] | None = None,
) -> dict[str, Any]:
    """Match the seeds of one point, save each feature's stability, and build their consensus.

    Args:
        name: name of the point; the consensus is named `<name>-consensus`.
        above: minimum cosine of a feature of the consensus; None: no consensus.
        x: raw training vectors used to rescale it.

    Returns:
        The point's entry in `results/stability.json`.
    """
    found = stability(checkpoints, {each: values > 0 for each, values in frequency.items()})
    folder = run.results_path("stability").with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for i, each in enumerate(found.names):
        np.save(folder / f"{each}.npy", found.per_feature(i))
    entry = found.to_json()
    if above is None:
        return entry
    made = run.sae_dir(f"{name}-consensus")
    try:
        one = consensus(checkpoints, found, above, x)
        one.save(made)
    except CheckpointError as error:
        if is_consensus(run, made.name):
            shutil.rmtree(made)  # from other seeds, or another threshold
        return {**entry, "consensus": {"why": str(error)}}
    return {**entry, "consensus": {"name": made.name, "above": above, "d_sae": one.sae.d_sae}}


def write_stability(run: Run, entries: Mapping[str, Mapping[str, Any]], evaluated: Iterable[EvaluatedSAE]) -> dict[str, Any]:
    """Write `results/stability.json`: the entries, and for each consensus its error and its parents'."""
    by_name = {point.name: point for point in evaluated}
    whole = {}
    for name, entry in entries.items():
        made = dict(entry.get("consensus", {}))
        if point := by_name.get(made.get("name", "")):
            made |= {"nmse": point.nmse, "l0": point.l0, "parents_nmse": mean(by_name[each].nmse for each in entry["saes"])}
        whole[name] = {**entry, **({"consensus": made} if made else {})}
    if whole or run.results_path("stability").exists():
        write_json(run.results_path("stability"), whole)
    return whole
