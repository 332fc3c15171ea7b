"""Stability over seeds, the consensus of several, and which SAE of many is best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from saev_core.config.base import PluginRef
from saev_core.config.stages import TrainConfig
from saev_core.errors import CheckpointError
from saev_core.evaluation.consensus import consensus
from saev_core.evaluation.pareto import EvaluatedSAE, pareto
from saev_core.evaluation.seed_agreement import Stability, identity, points, stability
from saev_core.sae.base import SAE, make_sae
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.topk import TopK
from saev_core.testing.sae_contract import ArraySource, planted
from saev_core.training.train import TrainSpec, train

VARIANTS = ("topk:3", "relu", "batchtopk:3", "jumprelu:3", "gated", "matryoshka", "p-anneal", "mp:3", "kmeans", "transcoder", "crosscoder")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(sae: SAE, variant: str, seed: int, **train: Any) -> Checkpoint:
    made = {"config": {"seed": 0, "lr": 0.0, "log_every": 25}, "lr": 1e-3, "seed": seed, **train}
    return Checkpoint(sae, Norm.identity(sae.d_in), {"name": variant, "dist": "", "version": ""}, "resid.0", train=made)


def randomised(variant: str, d_in: int = 24, d_sae: int = 64, seed: int = 0) -> SAE:
    """An SAE of a variant with weights that no two features share."""
    sae = make_sae(variant, d_in, n_vectors=128 * d_sae, n_sites=2 if variant in ("transcoder", "crosscoder") else 1)
    assert sae.d_sae == d_sae
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator).to(tensor))
        sae.W_dec.copy_(F.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1))
    return sae


def shuffled(sae: SAE, order: torch.Tensor, noise: float, seed: int) -> SAE:
    """The same features in another order, a little different each."""
    generator = torch.Generator().manual_seed(seed)
    made = type(sae)(sae.cfg)
    state = {}
    for name, tensor in sae.state_dict().items():
        axis = next((i for i, size in enumerate(tensor.shape) if size == sae.d_sae), None)
        moved = tensor if axis is None else tensor.index_select(axis, order)
        state[name] = moved + noise * torch.randn(moved.shape, generator=generator).to(moved)
    state["W_dec"] = F.normalize(state["W_dec"], dim=1)
    made.load_state_dict(state)
    return made


def everything_live(group: dict[str, Checkpoint]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.ones(c.sae.d_sae, bool) for name, c in group.items()}


def compared(group: dict[str, Checkpoint]) -> Stability:
    return stability(group, everything_live(group))


@pytest.mark.parametrize("variant", VARIANTS)
def test_consensus_of_permuted_noisy_copies_is_the_original(variant: str, tmp_path: Path) -> None:
    """Of every variant with its thresholds, gates and biases; saved and loaded by the same plugin."""
    true = randomised(variant)
    orders = [torch.randperm(64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    group = {f"s{i}": checkpoint(shuffled(true, order, 0.004, i), variant.partition(":")[0], i) for i, order in enumerate(orders)}
    found = compared(group)
    made = consensus(group, found, 0.9)
    made.save(tmp_path / "c")
    again = Checkpoint.load(tmp_path / "c").sae
    assert type(again) is type(true)
    assert again.d_sae == 64
    # Its features stand in the order of the seed that agrees best, whichever that is.
    order = next(o for o in orders if torch.allclose(again.W_dec, true.W_dec[o], atol=0.02))
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        for name, tensor in again.state_dict().items():
            axis = next((i for i, size in enumerate(tensor.shape) if size == 64), None)
            want = true.state_dict()[name]
            torch.testing.assert_close(tensor, want if axis is None else want.index_select(axis, order), atol=0.02, rtol=0)
        assert again.codes(x).d_sae == 64


def test_what_only_one_seed_found_is_left_out() -> None:
    a = randomised("jumprelu:3")
    b = shuffled(a, torch.arange(64).flip(0), 0.003, 1)
    with torch.no_grad():
        b.W_dec[:20] = F.normalize(torch.randn(20, 24, generator=torch.Generator().manual_seed(4)), dim=1)
    group = {"a": checkpoint(a, "jumprelu", 1), "b": checkpoint(b, "jumprelu", 2)}
    found = compared(group)
    made = consensus(group, found, 0.95)
    assert made.sae.d_sae == 44
    assert made.train["consensus"]["of"] == ["a", "b"]
    assert made.train["consensus"]["mean_cosine"] > 0.99
    assert "seed" not in made.train
    torch.testing.assert_close(made.sae.W_dec.norm(dim=1), torch.ones(44))
    told = found.to_json()
    assert told["above_0.9"] == pytest.approx(44 / 64)
    assert told["matching"] == "exact"
    per = found.per_feature(0)
    assert (per[:44] > 0.95).all(), "the flipped features of b that were kept"
    assert (per[44:] < 0.95).all()


def test_only_live_features_count() -> None:
    a = randomised("topk:3")
    group = {"a": checkpoint(a, "topk", 1), "b": checkpoint(shuffled(a, torch.arange(64), 0.0, 1), "topk", 2)}
    live = everything_live(group)
    live["a"][:30] = False
    found = stability(group, live)
    assert found.to_json()["n_live"] == [34, 64]
    assert found.to_json()["mean_cosine"] == pytest.approx(2 * 34 / (34 + 64), abs=1e-5)
    per = found.per_feature(0)
    assert np.isnan(per[:30]).all()
    np.testing.assert_allclose(per[30:], 1, atol=1e-5)
    assert consensus(group, found, 0.9).sae.d_sae == 34
    dead = {name: np.zeros(64, bool) for name in group}
    assert stability(group, dead).to_json()["mean_cosine"] == 0


def test_a_feature_must_agree_over_every_two_seeds() -> None:
    """b and c each resemble a in their own way, and not one another."""
    a = randomised("topk:3")
    generator = torch.Generator().manual_seed(5)
    away = torch.randn(64, 24, generator=generator)
    away = F.normalize(away - (away * a.W_dec).sum(1, keepdim=True) * a.W_dec, dim=1).detach()
    group = {"a": checkpoint(a, "topk", 0)}
    for seed, sign in ((1, 1), (2, -1)):
        other = shuffled(a, torch.arange(64), 0.0, seed)
        with torch.no_grad():
            other.W_dec.copy_(F.normalize(a.W_dec + sign * away, dim=1))  # cosine .71 to a, 0 to each other
        group[f"s{seed}"] = checkpoint(other, "topk", seed)
    found = compared(group)
    assert found.pairs[0, 1].cosine.mean() > 0.7
    with pytest.raises(CheckpointError, match=r"no feature in common above a cosine of 0\.7; lower evaluate\.consensus"):
        consensus(group, found, 0.7)


@pytest.mark.parametrize("variant", [*VARIANTS[:5], "mp:3"])
def test_calibration_never_makes_a_consensus_worse(variant: str) -> None:
    a = randomised(variant)
    if not a.tied:
        with torch.no_grad():
            a.W_enc.copy_(0.3 * a.W_dec.T)
            a.b_enc.zero_()
            a.b_dec.zero_()
    group = {n: checkpoint(shuffled(a, torch.arange(64), 0.01, s), variant.partition(":")[0], s) for s, n in enumerate("ab")}
    x = 2 * torch.randn(500, 24, generator=torch.Generator().manual_seed(3))

    def error(made: Checkpoint) -> float:
        return float((x - made.decode(made.codes(x))).square().sum())

    plain, scaled = (error(consensus(group, compared(group), 0.9, sample)) for sample in (None, x))
    assert scaled <= plain * (1 + 1e-6)
    if variant in ("topk:3", "relu", "jumprelu:3"):
        assert scaled < 0.98 * plain


def test_a_computed_dictionary_is_refused_in_one_line() -> None:
    a = make_sae("archetypal:3", 24, n_vectors=128 * 64)
    group = {name: checkpoint(a, "archetypal", seed) for seed, name in enumerate("ab")}
    with pytest.raises(CheckpointError, match="Archetypal computes its dictionary from A, R"):
        consensus(group, compared(group), 0.5)


def test_options_that_the_width_bounds_are_lowered_with_it() -> None:
    a = make_sae(PluginRef(name="topk", options={"k": 3, "k_warmup": 40}), 24, n_vectors=128 * 64)
    live = {"a": np.arange(64) < 2, "b": np.arange(64) < 2}
    group = {name: checkpoint(a, "topk", seed) for seed, name in enumerate("ab")}
    made = consensus(group, stability(group, live), 0.9).sae
    assert isinstance(made, TopK)
    assert (made.d_sae, made.cfg.k, made.cfg.k_warmup) == (2, 2, 2)


def test_a_width_that_the_variant_cannot_have_is_refused_in_one_line() -> None:
    a = randomised("matryoshka")
    live = {"a": np.arange(64) < 9, "b": np.arange(64) < 9}
    group = {name: checkpoint(a, "matryoshka", seed) for seed, name in enumerate("ab")}
    with pytest.raises(CheckpointError, match=r"a Matryoshka of 9 features cannot be built: .* lower n_groups"):
        consensus(group, stability(group, live), 0.9)


@pytest.mark.slow
def test_seeds_that_were_really_trained_agree_on_planted_directions(tmp_path: Path) -> None:
    x, directions = planted(4000, 32, 48)
    trainees = [
        TrainSpec(f"{name}-s{seed}", make_sae(f"{name}:3", 32, seed=seed, n_vectors=64 * 128), seed=seed)
        for name, n_seeds in (("topk", 3), ("batchtopk", 2))
        for seed in range(1, n_seeds + 1)
    ]
    cfg = TrainConfig(batch_size=256, n_tokens=256 * 400, n_init=4000)
    source = ArraySource(x)
    made = dict(zip([t.name for t in trainees], train(source, trainees, cfg), strict=True))
    seeds = {name: c.train["seed"] for name, c in made.items()}
    groups = points({name: identity(c) for name, c in made.items()}, seeds)
    assert groups == {"topk": ["topk-s1", "topk-s2", "topk-s3"], "batchtopk": ["batchtopk-s1", "batchtopk-s2"]}
    for names in groups.values():
        group = {name: made[name] for name in names}
        live = {name: (c.codes(x).counts() > 0).numpy() for name, c in group.items()}
        found = stability(group, live)
        assert found.to_json()["mean_cosine"] > 0.6
        one = consensus(group, found, 0.7)
        assert identity(one) == "", "a consensus is no seed"
        rows = F.normalize(one.sae.W_dec.detach(), dim=1)
        near = (directions @ rows.T).amax(1)
        assert float(near.mean()) > 0.9
        # Of what it kept, nearly all is true; of what a seed has, less.
        kept = float(((rows @ directions.T).amax(1) > 0.9).double().mean())
        parent = F.normalize(group[names[0]].sae.W_dec.detach(), dim=1)[live[names[0]]]
        assert kept >= float(((parent @ directions.T).amax(1) > 0.9).double().mean())
        assert kept > 0.9
        one.save(tmp_path / "one")
        assert Checkpoint.load(tmp_path / "one").codes(x[:10]).d_sae == one.sae.d_sae


def test_points_are_grouped_by_everything_but_the_seed() -> None:
    a = randomised("topk:3")
    made = {f"topk-lr0.001-s{seed}": checkpoint(a, "topk", seed) for seed in (2, 0, 11)}
    made["topk-lr0.1-s0"] = checkpoint(a, "topk", 0, lr=0.1)
    made["other"] = checkpoint(randomised("topk:4"), "topk", 0)
    made["elsewhere"] = replace(made["topk-lr0.001-s2"], site="resid.3")
    made["logged"] = checkpoint(a, "topk", 5, config={"seed": 1, "lr": 0.0, "log_every": 1})
    seeds = {name: c.train["seed"] for name, c in made.items()}
    groups = points({name: identity(c) for name, c in made.items()}, seeds)
    assert list(groups.values()) == [["topk-lr0.001-s0", "topk-lr0.001-s2", "logged", "topk-lr0.001-s11"]]
    del made["logged"]
    groups = points({name: identity(c) for name, c in made.items()}, seeds)
    assert groups == {"topk-lr0.001": ["topk-lr0.001-s0", "topk-lr0.001-s2", "topk-lr0.001-s11"]}


@pytest.mark.parametrize("changed", [{"memory_gb": 2.0}, {"evaluate_every": 50, "evaluate_vectors": 64}, {"checkpoint_every": 7}])
def test_seeds_trained_with_other_memory_or_reporting_are_still_seeds_of_one_point(changed: dict[str, Any]) -> None:
    a = randomised("topk:3")
    made = [checkpoint(a, "topk", seed, config=TrainConfig(**cfg).model_dump(mode="json")) for seed, cfg in enumerate([{}, changed])]
    assert identity(made[0]) == identity(made[1])


def test_a_seed_trained_before_zeros_became_words_is_a_seed_of_the_same_point() -> None:
    a = randomised("topk:3")
    old = {"n_tokens": 0, "lr": 0.0, "ema": 0.0, "evaluate_every": 0, "memory_gb": 0.0, "seed": 0}
    assert identity(checkpoint(a, "topk", 0, config=old)) == identity(
        checkpoint(a, "topk", 1, config=TrainConfig().model_dump(mode="json"))
    )


def point(name: str, l0: float, nmse: float) -> EvaluatedSAE:
    return EvaluatedSAE(name, "topk", l0, nmse, 0.0, 64, 0, 1e-3)


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.sampled_from([0.1, 0.2, 0.3])), max_size=8))
def test_the_front_is_what_nothing_beats(scores: list[tuple[float, float]]) -> None:
    found = pareto([point(str(i), *score) for i, score in enumerate(scores)])
    for p in found.points:
        beaten = any(l0 <= p.l0 and nmse <= p.nmse and (l0, nmse) != (p.l0, p.nmse) for l0, nmse in scores)
        assert p.on_front == (not beaten)
    assert [p.l0 for p in found.points] == sorted(p.l0 for p in found.points)
    assert sum(p.best for p in found.points) == bool(scores)
    if scores:
        assert next(p for p in found.points if p.best).on_front


def test_best_has_the_lowest_error_within_a_stated_l0() -> None:
    some = [point("k8", 8, 0.3), point("k32", 32, 0.2), point("loose", 33, 0.19), point("k128", 128, 0.1)]
    assert pareto(some).best_l0 == pytest.approx(1.1 * 32.5)
    assert pareto(some).best == "loose", "an SAE that misses its k a little is not left out"
    assert pareto(some, 32).best == "k32"
    assert pareto(some, 1000).best == "k128"
    assert pareto(some, 4).best is None
    assert pareto(some, 32).to_json()["points"][1] == {
        **{"name": "k32", "variant": "topk", "l0": 32, "nmse": 0.2, "dead": 0.0, "d_sae": 64, "seed": 0, "lr": 1e-3},
        **{"consensus": False, "on_front": True, "best": True},
    }
