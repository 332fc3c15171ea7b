"""The feature index against a dense float64 reference."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import killed_before_rename

from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef, validate
from saev_core.config.stages import IndexConfig, ReadConfig
from saev_core.errors import CheckpointError, RunError, StoreError
from saev_core.features import top_images
from saev_core.features.accumulate import PERCENTILES, FeatureAccumulator
from saev_core.features.build import index_features
from saev_core.features.histogram import LogHistogram, edges
from saev_core.features.index import FORMAT, FeatureIndex
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.codes import Codes
from saev_core.sae.norm import Norm
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Site

N, T, D, K = 150, 12, 40, 6
GRID = {"rows": 3, "cols": 4, "patch_px": 8}
HEAD = {"saev_features": FORMAT, "grid": GRID}


def activations(seed: int, *, ties: bool = False, n: int = N) -> np.ndarray:
    """[n, T, D] float32, mostly zero: features 0 to 2 are dead, 3 is dense, 4 fires on two images, 5 on two patches of one."""
    rng = np.random.default_rng(seed)
    z = rng.lognormal(0, 1.5, (n, T, D)) * (rng.random((n, T, D)) < 0.04)
    if ties:
        z = np.ceil(z)
    z[:, :, :3] = 0
    z[:, :, 3] = rng.random((n, T)) + 0.5
    z[:, :, 4:6] = 0
    z[[7, 30], 2, 4] = 1.0
    z[11, [3, 8], 5] = 2.5
    return z.astype(np.float32)


def accumulate(z: np.ndarray, batch: int, *, numbers: np.ndarray | None = None, labels: np.ndarray | None = None, block: int = 37):
    numbers = np.arange(len(z)) if numbers is None else numbers
    n_labels = 0 if labels is None else int(labels.max()) + 1
    found = FeatureAccumulator(D, T, K, n_labels=n_labels)
    found.top._block = block
    for start in range(0, len(z), batch):
        part = torch.from_numpy(z[start : start + batch]).flatten(0, 1)
        found.add(numbers[start : start + batch], Codes.from_dense(part), None if labels is None else labels[start : start + batch])
    return found


def reference_top(z: np.ndarray, numbers: np.ndarray, feature: int) -> list[tuple[int, int, float]]:
    peak = z[:, :, feature].astype(np.float64).max(1)
    order = sorted((i for i in range(len(z)) if peak[i] > 0), key=lambda i: (-peak[i], numbers[i]))[:K]
    return [(int(numbers[i]), int(z[i, :, feature].argmax()), peak[i]) for i in order]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("batch", "block"), [(1, 10), (16, 37), (64, 1), (200, 1024)])
def test_index_agrees_with_a_dense_float64_reference(tmp_path: Path, ties: bool, batch: int, block: int) -> None:
    z = activations(0, ties=ties)
    numbers = np.sort(np.random.default_rng(1).choice(1000, N, replace=False))
    accumulate(z, batch, numbers=numbers, block=block).write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    flat = z.reshape(-1, D).astype(np.float64)
    fires = flat > 0
    assert (index.n_images, index.n_vectors, index.d_sae) == (N, N * T, D)
    np.testing.assert_allclose(index.frequency, fires.mean(0), rtol=1e-12)
    np.testing.assert_allclose(index.image_frequency, (z > 0).any(1).mean(0), rtol=1e-12)
    np.testing.assert_allclose(index.mean, flat.sum(0) / np.maximum(fires.sum(0), 1), rtol=1e-6)
    np.testing.assert_array_equal(index.max, flat.max(0).astype(np.float32))
    np.testing.assert_array_equal(index.histogram.sum(1), fires.sum(0))
    np.testing.assert_allclose(index.position.sum(1), fires.any(0), atol=1e-5)
    np.testing.assert_array_equal(index.patch_active, np.bincount(fires.sum(1)))
    np.testing.assert_array_equal(index.image_active, np.bincount((z > 0).any(1).sum(1)))
    for feature in range(D):
        top = index.top(feature)
        assert [(t.index, t.token, t.value) for t in top] == reference_top(z, numbers, feature)
        for t in top:
            np.testing.assert_array_equal(t.map, z[list(numbers).index(t.index), :, feature].astype(np.float16))
        values = flat[fires[:, feature], feature]
        if len(values):
            want = np.percentile(values, PERCENTILES, method="inverted_cdf")
            np.testing.assert_allclose(index.percentiles[feature], want, rtol=1 / 64)


def test_several_layers_are_so_many_examples_and_a_map_shows_their_largest_value(tmp_path: Path) -> None:
    first, second = activations(0), activations(1)
    found = FeatureAccumulator(D, T, K)
    for start in range(0, N, 16):
        codes = [Codes.from_dense(torch.from_numpy(z[start : start + 16]).flatten(0, 1)) for z in (first, second)]
        found.add(np.arange(start, min(start + 16, N)), codes)
    found.write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    assert (index.n_images, index.n_vectors) == (N, 2 * N * T)
    np.testing.assert_allclose(index.frequency, ((first > 0).mean((0, 1)) + (second > 0).mean((0, 1))) / 2)
    np.testing.assert_array_equal(index.patch_active, np.bincount((np.stack([first, second]) > 0).sum(-1).ravel()))
    larger = np.maximum(first, second)
    np.testing.assert_array_equal(index.image_active, np.bincount((larger > 0).any(1).sum(1)))
    for feature in range(D):
        top = index.top(feature)
        assert [(t.index, t.token, t.value) for t in top] == reference_top(larger, np.arange(N), feature)
        for t in top:
            np.testing.assert_array_equal(t.map, larger[t.index, :, feature].astype(np.float16))


def test_one_image_never_takes_two_places_however_many_of_its_patches_fire() -> None:
    z = np.zeros((20, T, D), np.float32)
    z[:, :, 0] = 1 + np.arange(20)[:, None] + np.linspace(0, 0.5, T)
    found = accumulate(z, 8)
    found.top.merge()
    assert found.top.image[0].tolist() == [19, 18, 17, 16, 15, 14]


def test_equal_images_rank_by_number() -> None:
    z = np.ones((20, T, D), np.float32)
    found = accumulate(z, 3, block=4)
    found.top.merge()
    assert (found.top.image == np.arange(K)).all()
    assert (found.top.token == 0).all()


def test_dead_features_have_no_images_and_no_numbers(tmp_path: Path) -> None:
    accumulate(activations(2), 16).write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    assert index.top(0) == []
    assert index.frequency[0] == index.mean[0] == index.max[0] == index.percentiles[0].max() == 0
    assert [t.index for t in index.top(4)] == [7, 30]
    assert [(t.index, t.token) for t in index.top(5)] == [(11, 3)]


def test_images_out_of_order_or_codes_of_another_shape_are_refused() -> None:
    found = FeatureAccumulator(D, T, K)
    codes = Codes.from_dense(torch.ones(2 * T, D))
    found.add(np.array([3, 5]), codes)
    with pytest.raises(ValueError, match="ascending"):
        found.add(np.array([5, 6]), codes)
    with pytest.raises(ValueError, match="do not match 3 images"):
        found.add(np.array([7, 8, 9]), codes)


def test_values_that_are_not_finite_are_named_by_image() -> None:
    for wrong in (torch.inf, torch.nan):
        z = torch.ones(2 * T, D)
        z[T, 0] = wrong
        with pytest.raises(StoreError, match="image 9 has"):
            FeatureAccumulator(D, T, K).add(np.array([8, 9]), Codes.from_dense(z))


def test_percentiles_agree_with_numpy_to_a_bin_over_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(np.log(1e-5), np.log(1e5), 50_000)).astype(np.float32)
    histogram = LogHistogram(2)
    for part in np.array_split(values, 7):
        histogram.add(np.zeros(len(part), int), part)
    levels = [0.1, 1, 25, 50, 90, 99, 99.9]
    found = histogram.percentiles(levels)
    np.testing.assert_allclose(found[0], np.percentile(values, levels, method="inverted_cdf"), rtol=1 / 64)
    assert (found[1] == 0).all()
    assert np.diff(edges()).max() > 0
    assert (np.diff(edges()) / edges()[:-1]).max() <= 1 / 32
    counts, _ = np.histogram(values.astype(np.float64), edges(4))
    np.testing.assert_array_equal(histogram.coarse()[0], counts)


def test_values_beyond_the_histogram_are_counted_in_its_outermost_bins() -> None:
    histogram = LogHistogram(1)
    histogram.add(np.zeros(3, int), np.array([1e-30, 1.0, 1e30], np.float32))
    assert histogram.counts[0, 0] == histogram.counts[0, -1] == 1


def test_labels_come_by_count_and_by_lift(tmp_path: Path) -> None:
    z = np.zeros((300, T, D), np.float32)
    labels = np.arange(300) % 3
    labels[:30] = -1
    z[labels == 1, 0, 0] = 1  # feature 0 fires on label 1 alone
    z[:, 0, 1] = 1  # feature 1 on everything
    accumulate(z, 32, labels=labels).write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    first = index.labels(0)
    assert [(s.label, s.n_images, s.share) for s in first] == [(1, 90, 1.0)]
    assert first[0].lift == pytest.approx(3, rel=0.05)
    assert [s.n_images for s in index.labels(1, by="count")] == [90, 90, 90]
    assert all(s.lift == pytest.approx(1) for s in index.labels(1))
    assert index.labels(2) == []


def test_features_of_a_label_are_the_inverse_of_labels_of_a_feature(tmp_path: Path) -> None:
    z, labels = activations(0), np.random.default_rng(2).integers(-1, 4, N)
    accumulate(z, 16, labels=labels).write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    for label in range(4):
        want = {f: share for f in range(D) for share in index.labels(f, 9) if share.label == label}
        found = index.with_label(label)
        assert dict(found) == want
        assert len(found) > 1
        assert [share.lift for _, share in found] == sorted((share.lift for share in want.values()), reverse=True)
        for f, share in found:
            assert share.of_label == pytest.approx((z[labels == label, :, f] > 0).any(1).mean())
        assert index.with_label(label, 2) == found[:2]
    with pytest.raises(RunError, match="no label 4"):
        index.with_label(4)


def test_an_index_without_labels_says_so(tmp_path: Path) -> None:
    accumulate(activations(0), 16).write(tmp_path / "a.zarr", HEAD)
    assert FeatureIndex.open(tmp_path / "a.zarr").labels(3) == []


def test_a_killed_write_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = accumulate(activations(0), 16)
    monkeypatch.setattr(found.top, "maps", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        found.write(tmp_path / "a.zarr", HEAD)
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_the_old_index(tmp_path: Path) -> None:
    accumulate(activations(0), 16).write(tmp_path / "a.zarr", HEAD)
    accumulate(activations(0, n=50), 16).write(tmp_path / "a.zarr", HEAD)
    assert FeatureIndex.open(tmp_path / "a.zarr").n_images == 50
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_replacement_killed_between_its_renames_is_put_back(tmp_path: Path) -> None:
    accumulate(activations(0), 16).write(tmp_path / "a.zarr", HEAD)
    script = f"""
import torch
from pathlib import Path
from saev_core.features.accumulate import FeatureAccumulator
from saev_core.sae.codes import Codes
found = FeatureAccumulator({D}, {T}, {K})
found.add([0], Codes.from_dense(torch.ones({T}, {D})))
found.write(Path({str(tmp_path / "a.zarr")!r}), {{"grid": "another"}})
"""
    killed_before_rename(2, script)
    assert not (tmp_path / "a.zarr").exists()
    assert FeatureIndex.open(tmp_path / "a.zarr").n_images == N
    accumulate(activations(0, n=50), 16).write(tmp_path / "a.zarr", HEAD)
    assert FeatureIndex.open(tmp_path / "a.zarr").n_images == 50
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_not_an_index_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a feature index; create one with"):
        FeatureIndex.open(tmp_path / "nothing")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(RunError, match="not a readable feature index"):
        FeatureIndex.open(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"saev_features": 99}}))
    with pytest.raises(RunError, match="format 99, this version reads 2"):
        FeatureIndex.open(tmp_path)


def test_a_feature_or_percentile_that_is_not_there_is_named(tmp_path: Path) -> None:
    accumulate(activations(0), 16).write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    with pytest.raises(RunError, match="features 0 to 39"):
        index.top(40)
    with pytest.raises(RunError, match="not 33"):
        index.percentile(33)


def test_select_keeps_to_the_ranges_and_puts_the_included_first(tmp_path: Path) -> None:
    accumulate(activations(0), 16).write(tmp_path / "a.zarr", HEAD)
    index = FeatureIndex.open(tmp_path / "a.zarr")
    every = index.select()
    assert every == [f for f in range(D) if index.frequency[f] > 0]
    some = index.select((-2, -1), (-0.5, 1), include=[0, 3], n=10, seed=1)
    assert some[:2] == [0, 3]
    assert len(some) == 10
    assert some == index.select((-2, -1), (-0.5, 1), include=[0, 3], n=10, seed=1)
    assert some != index.select((-2, -1), (-0.5, 1), include=[0, 3], n=10, seed=2)
    for feature in some[2:]:
        assert 1e-2 <= index.frequency[feature] <= 1e-1
        assert 10**-0.5 <= index.mean[feature] <= 10
    with pytest.raises(RunError, match="feature 40"):
        index.select(include=[40])


def test_maps_too_large_for_memory_are_paged_to_a_file_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_images, "IN_MEMORY", 0)
    z = activations(0)
    paged = FeatureAccumulator(D, T, K, folder=tmp_path)
    paged.add(np.arange(N), Codes.from_dense(torch.from_numpy(z).flatten(0, 1)))
    assert isinstance(paged.top._maps, np.memmap)
    plain = accumulate(z, 16)
    np.testing.assert_array_equal(paged.top.maps(0, D), plain.top.maps(0, D))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images() -> None:
    d_sae, n_patches, k = 4096, 64, 16
    found = FeatureAccumulator(d_sae, n_patches, k)
    generator = torch.Generator().manual_seed(0)

    def feed(start: int, stop: int) -> int:
        for i in range(start, stop, 32):
            feature = torch.randint(0, d_sae, (32 * n_patches, 16), generator=generator)
            value = torch.rand(32 * n_patches, 16, generator=generator) + 0.01
            found.add(np.arange(i, i + 32), Codes.from_topk(feature, value, d_sae))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    early = feed(0, 2048)
    late = feed(2048, 8192)
    assert late - early < 40_000  # KiB; keeping the peaks of 6,144 images would take 100 MB


def stored(folder: Path, layers: tuple[int, ...] = (1,), name: str = "memory") -> tuple[ActivationStore, torch.Tensor]:
    """21 images of 6 patches and a CLS token at some layers, image 4 missing; the tokens `[layer, image, token, d]`."""
    tokens = torch.randn(len(layers), 21, 7, 8, generator=torch.Generator().manual_seed(1))
    sites = {Site(layer): x for layer, x in zip(layers, tokens, strict=True)}
    missing = np.arange(21) == 4
    labels = np.arange(21) % 3
    store = store_of(folder, sites, n_prefix=1, label=labels, missing=missing, dtype="float32", model={"name": name, "n_blocks": 12})
    return store, tokens


def checkpoint_of(store: ActivationStore, **read: object) -> Checkpoint:
    config = validate(ReadConfig, {"layer": 1, **read})
    sae = make_sae(PluginRef(name="topk", options={"d_sae": 16, "k": 3}), 8, seed=2)
    meta = store.meta.model_dump(mode="json")
    described = {"fingerprint": store.meta.fingerprint, "model": meta["model"], "dataset": meta["dataset"]}
    return Checkpoint(sae, Norm.identity(8), ref_of(sae), "resid.1", config, described)


@pytest.mark.parametrize(
    ("layers", "read", "n_patches"),
    [
        ((1,), {}, 6),
        ((1, 3), {"layer": "all"}, 6),
        ((1, 3), {"layer": "mean"}, 6),
        ((1,), {"tokens": "mean"}, 1),
        ((1,), {"tokens": "cls"}, 1),
    ],
)
def test_a_store_is_indexed_by_every_reading_policy(tmp_path: Path, layers: tuple[int, ...], read: dict, n_patches: int) -> None:
    store, tokens = stored(tmp_path / "store", layers)
    checkpoint = checkpoint_of(store, **read)
    index = index_features(checkpoint, store, tmp_path / "features" / "a.zarr", IndexConfig(top_k=5, batch_images=4, percentile=97))
    x = tokens[:, :, 1:] if n_patches == 6 else tokens[:, :, 1:].mean(2, keepdim=True) if read["tokens"] == "mean" else tokens[:, :, :1]
    x = x.mean(0, keepdim=True) if read.get("layer") == "mean" else x
    z = checkpoint.codes(x.reshape(-1, 8)).dense().reshape(-1, 21, n_patches, 16).numpy()
    there = np.arange(21) != 4
    assert index.n_images == 20
    assert index.grid.n_patches == n_patches
    np.testing.assert_allclose(index.frequency, (z[:, there] > 0).mean((0, 1, 2)))
    peak = z.max((0, 2))  # [image, feature]
    for feature in range(16):
        order = [i for i in np.argsort(-peak[:, feature], kind="stable") if i != 4 and peak[i, feature] > 0][:5]
        assert [t.index for t in index.top(feature)] == order
        for top in index.top(feature):
            np.testing.assert_allclose(top.map, z[:, top.index, :, feature].max(0), rtol=1e-3)
    assert 97 in index.percentile_levels
    assert index.has_labels


def test_an_index_is_refused_to_another_checkpoint_and_a_checkpoint_to_another_store(tmp_path: Path) -> None:
    store, _ = stored(tmp_path / "store")
    mine = checkpoint_of(store)
    index_features(mine, store, tmp_path / "a.zarr", IndexConfig())
    FeatureIndex.open(tmp_path / "a.zarr", mine)
    with torch.no_grad():
        other = checkpoint_of(store)
        other.sae.W_enc.add_(0.1)
    with pytest.raises(RunError, match="index of another checkpoint; rebuild it"):
        FeatureIndex.open(tmp_path / "a.zarr", other)
    foreign, _ = stored(tmp_path / "foreign", name="else")
    with pytest.raises(CheckpointError, match="trained on model memory"):
        index_features(mine, foreign, tmp_path / "b.zarr", IndexConfig())
    assert not (tmp_path / "b.zarr").exists()


def test_an_index_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    store, _ = stored(tmp_path / "store")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        index_features(checkpoint_of(store), store, tmp_path / "file" / "a.zarr", IndexConfig())
