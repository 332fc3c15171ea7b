"""Agreement of SAEs that differ only in their seed: the matched cosine of every live feature's decoder row."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saev_core.config.affects import settings_that_matter
from saev_core.config.base import validate
from saev_core.config.stages import TrainConfig
from saev_core.evaluation.match_features import EXACT, match
from saev_core.sae.checkpoint import Checkpoint

LEVELS = (0.9, 0.7)
"""Cosine thresholds; the share of features above each is reported."""


@dataclass(frozen=True)
class Pair:
    """The matching of two SAEs; features that are dead in their own SAE are excluded."""

    partner: Int[np.ndarray, " d_sae"]
    """For each feature of the first, its partner in the second; -1: none, or dead."""
    cosine: Float[np.ndarray, " d_sae"]
    """Their cosine; 0 without a partner."""


@dataclass(frozen=True)
class Stability:
    """SAEs of one point, matched pairwise."""

    names: list[str]
    seeds: list[int]
    live: list[Bool[np.ndarray, " d_sae"]]
    """For each SAE, which features fire at all."""
    pairs: dict[tuple[int, int], Pair]
    """Keyed by the positions of both SAEs in `names`; (i, j) and (j, i) are the same matching, from either side."""

    def per_feature(self, i: int) -> Float[np.ndarray, " d_sae"]:
        """Mean cosine of each feature of SAE `i` to its partners in the others; NaN for dead features."""
        others = [pair.cosine for (a, _), pair in self.pairs.items() if a == i]
        return np.where(self.live[i], np.mean(others, 0), np.nan).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The content of `results/stability.json`; means and shares are over the live features of both SAEs."""
        rows = []
        for i, j in combinations(range(len(self.names)), 2):
            each = np.concatenate([self.pairs[a, b].cosine[self.live[a]] for a, b in ((i, j), (j, i))])
            shares = {f"above_{level:g}": float((each > level).mean()) if len(each) else 0.0 for level in LEVELS}
            rows.append({"a": self.names[i], "b": self.names[j], "mean_cosine": float(each.mean()) if len(each) else 0.0, **shares})
        return {
            "saes": self.names,
            "seeds": self.seeds,
            "d_sae": [len(live) for live in self.live],
            "n_live": [int(live.sum()) for live in self.live],
            "matching": "exact" if max(int(live.sum()) for live in self.live) <= EXACT else "exact among candidates",
            **{key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key not in ("a", "b")},
            "pairs": rows,
        }


def stability(checkpoints: Mapping[str, Checkpoint], live: Mapping[str, Bool[np.ndarray, " d_sae"]]) -> Stability:
    """Match the decoder rows of every pair of SAEs.

    Args:
        checkpoints: at least two of one point, by name; see `points`.
        live: which features of each fire at all. Dead ones match nothing and would distort the agreement.
    """
    names = list(checkpoints)
    rows = [checkpoints[name].sae.W_dec.detach() for name in names]
    places = [np.flatnonzero(live[name]) for name in names]
    pairs = {}
    for i, j in combinations(range(len(names)), 2):
        partner, cosine = match(rows[i][places[i]], rows[j][places[j]])
        there, back = (Pair(np.full(len(rows[k]), -1), np.zeros(len(rows[k]), np.float32)) for k in (i, j))
        taken = partner >= 0
        a, b = places[i][taken], places[j][partner[taken]]
        there.partner[a], there.cosine[a] = b, cosine[taken]
        back.partner[b], back.cosine[b] = a, cosine[taken]
        pairs[i, j], pairs[j, i] = there, back
    seeds = [int(checkpoints[name].train.get("seed", 0)) for name in names]
    return Stability(names, seeds, [np.asarray(live[name]) for name in names], pairs)


def identity(checkpoint: Checkpoint) -> str:
    """Everything that determines a checkpoint except its seed, as text; empty for a consensus, which has no seed.

    Plugin, options, site, reading, store, normaliser and training configuration.
    """
    if "consensus" in checkpoint.train:
        return ""
    train = {key: value for key, value in checkpoint.train.items() if key != "seed"}
    config = settings_that_matter(validate(TrainConfig, train.get("config", {}), where="train.config"))
    train["config"] = {key: value for key, value in config.items() if key != "seed"}
    mean = hashlib.sha256(checkpoint.norm.mean.cpu().numpy().tobytes()).hexdigest()
    store = checkpoint.store.get("fingerprint", "")
    parts = [checkpoint.ref["name"], checkpoint.sae.describe(), checkpoint.site, store, checkpoint.norm.scale, mean, train]
    return json.dumps([*parts, settings_that_matter(checkpoint.read)], sort_keys=True)


def points(identities: Mapping[str, str], seeds: Mapping[str, int]) -> dict[str, list[str]]:
    """Groups of two or more SAEs that differ only in their seed, sorted by seed, keyed by the name of their point.

    Args:
        identities: `identity` of each checkpoint, by its name.
        seeds: the seed of each.
    """
    groups: dict[str, list[str]] = {}
    for name, text in identities.items():
        if text:
            groups.setdefault(text, []).append(name)
    several = [sorted(names, key=lambda name: (seeds[name], name)) for names in groups.values() if len(names) > 1]
    return {_point_name(names, [seeds[name] for name in names]): names for names in several}


def _point_name(names: Sequence[str], seeds: Sequence[int]) -> str:
    """The common name: the names without their seeds if these are equal, else the first name."""
    bare = {re.sub(rf"-?s(?:eed)?{seed}$", "", name) for name, seed in zip(names, seeds, strict=True)}
    return bare.pop() if len(bare) == 1 and all(bare) else names[0]
