"""Images with planted features: effects of edits, proposals, and the control experiment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig
from saev_core.errors import ProbeError, SteerError, StoreError
from saev_core.interventions.apply import apply_edits
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.tasks.probe import Probe
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Site
from saev_tasks.classification.bench import ImageBench
from saev_tasks.classification.control import choose_by_images, control_images
from saev_tasks.classification.data import labels_of
from saev_tasks.classification.propose import propose, scores
from saev_tasks.shared.control_experiment import along
from saev_tasks.shared.intervals import wilson
from saev_tasks.shared.pooling import image_vectors, parse_tokens
from saev_tasks.shared.readout import Readout

SITE, N_CLASSES, N_IMAGES, N_PATCHES, D = Site(0), 4, 40, 6, 7


NAMES = [f"c{i}" for i in range(N_CLASSES)]


def tokens_of(labels: np.ndarray) -> torch.Tensor:
    """A CLS token and 6 patches an image: its class's axis on one or two patches and on CLS, axes 4 to 6 anywhere."""
    rng = np.random.RandomState(0)
    x = np.abs(rng.standard_normal((len(labels), 1 + N_PATCHES, D))) * ([0.0] * N_CLASSES + [0.5, 0.2, 0.1])
    for i, label in enumerate(labels):
        x[i, [0, 1 + i % N_PATCHES, 1 + (3 * i + 1) % N_PATCHES], label] = rng.uniform(2, 4)
    return torch.from_numpy(x).float()


LABELS = np.arange(N_IMAGES) % N_CLASSES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("planted") / "store"
    return store_of(folder, {SITE: tokens_of(LABELS)}, n_prefix=1, rows=2, cols=3, patch_px=2, dtype="float32", label=LABELS)


def identity(reads: Any = "patches") -> Checkpoint:
    """An SAE with one feature per axis."""
    sae = ReLU(ReLUConfig(d_in=D, d_sae=D), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in sae.parameters():
            value.copy_(torch.eye(D) if value.ndim == 2 else torch.zeros(D))
    return Checkpoint(
        sae, Norm.identity(D), {"name": "relu", "dist": "saev-core", "version": "0"}, str(SITE), ReadConfig(layer=0, tokens=reads)
    )


def axes(tokens: str = "mean") -> Probe:
    return Probe(torch.eye(N_CLASSES, D), torch.zeros(N_CLASSES), NAMES, str(SITE), tokens)


def bench_of(store: ActivationStore, tokens: str = "mean", images: np.ndarray | None = None, reads: str = "patches") -> ImageBench:
    images = np.arange(N_IMAGES) if images is None else images
    return ImageBench(Readout(axes(tokens), identity(reads), store), images, LABELS[images])


@pytest.mark.parametrize("tokens", ["cls", "mean", "token:4"])
def test_image_vectors_are_those_tokens_in_memory_and_on_disk(
    store: ActivationStore, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, images = tokens_of(LABELS), np.array([3, 4, 5, 17, 39])
    want = {"cls": x[:, 0], "mean": x[:, 1:].mean(1), "token:4": x[:, 5]}[tokens][images]
    pool = parse_tokens(tokens)
    assert str(pool) == tokens
    torch.testing.assert_close(image_vectors(store, SITE, pool, images), want)
    torch.testing.assert_close(pool(x[images], 1), want)
    monkeypatch.setattr("saev_tasks.shared.pooling.IN_MEMORY", 10)
    torch.testing.assert_close(image_vectors(store, SITE, pool, images, tmp_path), want)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("tokens", "reads"),
    [("mean", "patches"), ("cls", "patches"), ("token:2", "patches"), ("cls", "cls"), ("mean", "mean"), ("token:2", "mean")],
)
def test_suppressing_on_the_bench_is_what_edits_of_the_tokens_do(store: ActivationStore, tokens: str, reads: str) -> None:
    bench, x = bench_of(store, tokens, reads=reads), tokens_of(LABELS)
    edits = [bench.readout.edit(1.0, feature, -0.5, "scale") for feature in (0, 2, 5)]
    want = bench.readout.logits(apply_edits(x, edits, bench.readout.checkpoint, n_prefix=1))
    place, logits = bench.after(bench.scaled([0, 2, 5], -0.5))
    got = bench.before.clone()
    got[place] = logits
    assert not torch.allclose(want, bench.before, atol=1e-3)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    before, after = bench.readout.under(6, edits)
    torch.testing.assert_close(before, bench.before[6])
    torch.testing.assert_close(after, want[6])


def test_attribution_is_exactly_what_ablating_one_feature_takes_from_the_margin(store: ActivationStore) -> None:
    bench = bench_of(store)
    table = scores(bench, N_CLASSES, "attribution")
    for feature in range(D):
        place, logits = bench.after(bench.scaled([feature], 0.0))
        after = bench.before.clone()
        after[place] = logits
        taken = []
        for c in range(N_CLASSES):
            mine = bench.labels == c
            before = bench.before[mine]
            rival = torch.where(torch.arange(N_CLASSES) == c, -torch.inf, before).argmax(1)
            margins = [z[mine][:, c] - z[mine].gather(1, rival[:, None])[:, 0] for z in (bench.before, after)]
            taken.append(float((margins[0] - margins[1]).mean()))
        for c in range(N_CLASSES):
            assert table[c, feature] == pytest.approx(taken[c] - max(0.0, *(taken[:c] + taken[c + 1 :])), abs=1e-5)


@pytest.mark.parametrize("by", ["attribution", "difference"])
def test_every_class_is_given_its_planted_feature_first(store: ActivationStore, by: str) -> None:
    found = propose(bench_of(store), N_CLASSES, 3, by)
    assert [found[c][0].feature for c in range(N_CLASSES)] == list(range(N_CLASSES))
    assert [found[c][0].share for c in range(N_CLASSES)] == pytest.approx([1.0] * N_CLASSES)
    assert [found[c][0].share_others for c in range(N_CLASSES)] == [0.0] * N_CLASSES


def test_the_control_experiment_flips_a_class_and_spares_the_others(store: ActivationStore) -> None:
    train, val = bench_of(store, images=np.arange(24)), bench_of(store, images=np.arange(24, 40))
    # An image with everything ablated is classified as class 0, so class 0 cannot be flipped by ablation alone.
    proposed = {c: [one.feature for one in some] for c, some in propose(train, N_CLASSES, 3).items()}
    rows = control_images(train, val, proposed, NAMES, sizes=[1, 2], strengths=[0.0, -1.0], draws=3)
    assert [row.choice.features for row in rows] == [[0], [1], [2], [3]]
    assert [row.choice.strength for row in rows] == [-1.0, 0.0, 0.0, 0.0]
    for row in rows:
        assert row.n_right == 4
        assert row.suppressed.flipped == 1.0
        assert row.suppressed.others_lost == 0.0
        assert row.suppressed.flipped_interval == wilson(4, 4)
        assert row.random_features.flipped < 1
        assert row.passes
    again = control_images(train, val, proposed, NAMES, sizes=[1, 2], strengths=[0.0, -1.0], draws=3)
    assert again == rows  # reproducible by seed


def test_a_choice_that_reaches_no_goal_is_the_best_there_is(store: ActivationStore) -> None:
    bench = bench_of(store)
    one = choose_by_images(bench, 1, [1, 2, 3], sizes=[1, 3], strengths=[0.0], target=0.9, harm=0.05)
    assert (one.features, one.flipped, one.others_lost) == ([1], 1.0, 0.0)
    worse = choose_by_images(bench, 1, [2, 1], sizes=[1, 2], strengths=[0.0], target=0.9, harm=0.05)
    assert worse.features == [2, 1]
    assert worse.flipped == 1.0
    assert worse.others_lost == pytest.approx(10 / 30)


def test_a_random_direction_moves_as_far_on_the_same_tokens(store: ActivationStore) -> None:
    change = bench_of(store).scaled([0, 4], 0.0)
    other = along(change, torch.arange(1.0, D + 1))
    assert np.array_equal(change.row, other.row)
    torch.testing.assert_close(change.delta.norm(dim=1), other.delta.norm(dim=1))


def test_an_edit_that_cannot_reach_the_probe_is_refused(store: ActivationStore) -> None:
    for tokens, reads, says in (("cls", "mean", "reads the mean of an image"), ("mean", "cls", "reads the cls of an image")):
        with pytest.raises(SteerError, match=says):
            bench_of(store, tokens, reads=reads)
    later = replace(identity(), site="resid.1")
    with pytest.raises(StoreError, match=r"lacks resid\.1"):
        Readout(replace(axes(), site="resid.2"), later, store)
    with pytest.raises(StoreError, match="no image"):
        bench_of(store, images=np.arange(0))


@pytest.mark.parametrize(
    ("label", "names", "says"),
    [
        (None, NAMES, "no image of .* has a label"),
        (np.full(8, -1), NAMES, "no image of .* has a label"),
        (np.array([0, 1, 2, 3, 4, 0, 1, 2]), NAMES, "image 4 has label 4, outside the 4 classes"),
    ],
)
def test_labels_that_are_missing_or_outside_the_classes_are_refused(tmp_path: Path, label: Any, names: list[str], says: str) -> None:
    made = store_of(tmp_path / "store", {SITE: torch.zeros(8, 2, 3)}, label=label)
    with pytest.raises(ProbeError, match=says):
        labels_of(made, SITE, names)


def test_activations_that_are_not_finite_and_tokens_that_are_not_there_are_refused(tmp_path: Path) -> None:
    x = tokens_of(LABELS)
    made = store_of(tmp_path / "store", {SITE: x}, n_prefix=1, dtype="float32", label=LABELS)
    array = zarr.open_group(made.url, mode="r+")["resid.0/patches"]  # recording refuses them
    assert isinstance(array, zarr.Array)
    array[9, 2, 1] = np.nan
    with pytest.raises(StoreError, match="image 9 is not finite"):
        image_vectors(made, SITE, parse_tokens("mean"), np.arange(20))
    with pytest.raises(StoreError, match="image 9 is not finite"):
        bench_of(made)
    headless = store_of(tmp_path / "headless", {SITE: x[:, 1:]}, dtype="float32")
    with pytest.raises(StoreError, match="has no CLS token; use --tokens mean"):
        parse_tokens("cls").check(headless)
