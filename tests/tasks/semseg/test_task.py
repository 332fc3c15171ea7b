"""Segmentation: scores against a plain count in float64, known features found and suppressed, and every verb on a real run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.config.base import Config
from saev_core.config.stages import ReadConfig
from saev_core.errors import DatasetError, ProbeError, RunError, SaevError, SteerError, UsageError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.edit import Edit
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.tasks.context import TaskContext
from saev_core.tasks.probe import Probe
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Grid, Site
from saev_tasks.semseg.bench import PatchBench
from saev_tasks.semseg.control import Sight, choose_by_patches, control_pixels
from saev_tasks.semseg.options import ControlConfig, ManipulateConfig, ProposeConfig, TrainConfig, ValidateConfig
from saev_tasks.semseg.propose import propose, scores
from saev_tasks.semseg.scores import Counts, majority, predict, upsample
from saev_tasks.semseg.task import SemSeg
from saev_tasks.semseg.train import Bilinear
from saev_tasks.shared.control_experiment import along, matched
from saev_tasks.shared.intervals import interval
from saev_tasks.shared.patch_vectors import Classes, stored
from saev_tasks.shared.readout import Readout

SITE = Site(0)
N_CLASSES = 4
SMALL = ["train.n_tokens=250000", "train.n_init=4096", "train.batch_size=1024", "sae.options.d_sae=384", "sae.options.k=12"]


# Scores


def plain_iou(predicted: np.ndarray, truth: np.ndarray, n_classes: int, ignored: set[int]) -> dict[int, float]:
    """By sets of pixels, in float64; what is ignored is in none of them."""
    counts = ~np.isin(truth, list(ignored)) & (truth < n_classes)
    out: dict[int, float] = {}
    for c in set(range(n_classes)) - ignored:
        p, t = set(np.flatnonzero((predicted == c) & counts)), set(np.flatnonzero((truth == c) & counts))
        if p | t:
            out[c] = len(p & t) / len(p | t)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sets(st.integers(0, 4), max_size=3), st.integers(1, 4))
def test_iou_is_that_of_a_plain_count_with_ignored_classes_left_out(seed: int, ignored: set[int], n: int) -> None:
    rng, classes = np.random.RandomState(seed), Classes(list("abcde"), frozenset(ignored))
    grid = Grid(2, 3, 2)
    logits = torch.from_numpy(rng.standard_normal((n, 6, 5)))
    said = predict(logits, grid, classes).numpy()
    raw = rng.choice([0, 1, 2, 3, 4, 255], (n, 4, 6)).astype(np.uint16)
    truth = np.where(np.isin(raw, list(ignored)) | (raw == 255), 65535, raw)
    counts = Counts.of(said, truth, 5)
    want = plain_iou(said.reshape(-1), raw.reshape(-1), 5, ignored)
    have = {c: v for c, v in enumerate(counts.iou) if np.isfinite(v)}
    assert have == pytest.approx(want, abs=1e-12)
    assert not np.isin(said, list(ignored)).any()
    if want:
        assert counts.miou == pytest.approx(float(np.mean(list(want.values()))), abs=1e-12)
        inside = truth < 5
        assert counts.accuracy == pytest.approx(float((said[inside] == truth[inside]).mean()), abs=1e-12)


def test_an_ignored_class_is_no_false_positive() -> None:
    # The largest logit says 0 everywhere; 0 is ignored, and the second largest is right.
    logits = torch.tensor([9.0, 5.0, 1.0]).expand(1, 4, 3)
    said = predict(logits, Grid(2, 2, 2), Classes(list("abc"), frozenset({0}))).numpy()
    truth = np.full((1, 4, 4), 1, np.uint16)
    truth[0, 0] = 65535
    counts = Counts.of(said, truth, 3)
    assert (said == 1).all()
    assert counts.miou == counts.accuracy == counts.iou[1] == 1
    assert np.isnan(counts.iou[[0, 2]]).all()


def test_a_class_that_is_nowhere_has_no_iou_and_one_that_is_only_predicted_has_none_of_it() -> None:
    counts = Counts.of(np.array([[1, 1, 0]]), np.array([[1, 1, 1]]), 3)
    assert counts.iou[:2].tolist() == [0, pytest.approx(2 / 3)]
    assert np.isnan(counts.iou[2])
    assert counts.miou == pytest.approx(1 / 3)
    assert np.isnan(counts.class_accuracy[0])


def test_an_interval_holds_the_value_and_shrinks_with_more_images() -> None:
    rng = np.random.RandomState(0)

    def width(n: int) -> float:
        low, high = interval(np.stack([rng.binomial(50, 0.3, n), np.full(n, 50)], 1), lambda sums: sums[..., 0] / sums[..., 1])
        assert low < 0.3 < high
        return float(high - low)

    # 1.96 standard errors to either side, by the binomial law.
    assert width(400) == pytest.approx(2 * 1.96 * (0.21 / 50 / 400) ** 0.5, rel=0.15)
    assert width(50) > 2 * width(400)


# Pixels


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_the_probe_of_an_interpolated_vector_is_the_upsampled_logit(rows: int, cols: int, px: int, seed: int) -> None:
    grid, generator = Grid(rows, cols, px), torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, rows * cols, 5), (3, 5), (3,)))
    row, col = np.meshgrid(np.arange(grid.height_px), np.arange(grid.width_px), indexing="ij")
    places = [np.broadcast_to(axis.reshape(1, -1), (2, axis.size)) for axis in (row, col)]
    seen = Bilinear(grid)(x, *places) @ weight.T + bias  # [2, pixels, 3]
    want = upsample(x @ weight.T + bias, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen, want, atol=1e-5, rtol=1e-5)


def test_the_majority_oracle_is_right_where_patches_are_whole() -> None:
    shares = np.eye(3, dtype=np.float32)[np.array([[0, 1], [2, 0]])]
    assert (majority(shares).argmax(-1) == [[0, 1], [2, 0]]).all()


# A world whose features are known: feature c says class c, whatever its number; a fifth one says nothing.


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, Checkpoint, Probe, np.ndarray]:
    """24 images of 6 patches, 5 wide: axis c is class c. The SAE is the identity, each of its features one axis."""
    rng = np.random.RandomState(0)
    labels = rng.randint(0, N_CLASSES, (24, 6))
    x = np.abs(rng.standard_normal((24, 6, 5))) * [0, 0, 0, 0, 1]
    np.put_along_axis(x, labels[..., None], rng.uniform(2, 4, (24, 6, 1)), 2)
    store = store_of(
        tmp_path_factory.mktemp("world") / "store", {SITE: torch.from_numpy(x).float()}, rows=2, cols=3, patch_px=2, dtype="float32",
        mask=labels.astype(np.uint16),
    )  # fmt: skip
    sae = ReLU(ReLUConfig(d_in=5, d_sae=5), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in sae.named_parameters():
            value.copy_(torch.eye(5) if value.ndim == 2 else torch.zeros(5))
            assert name
    made = Checkpoint(sae, Norm.identity(5), {"name": "relu", "dist": "saev-core", "version": "0"}, str(SITE), ReadConfig(layer=0), {})
    weight = torch.cat([torch.eye(N_CLASSES), torch.zeros(N_CLASSES, 1)], 1)
    probe = Probe(weight, torch.zeros(N_CLASSES), [f"c{i}" for i in range(N_CLASSES)], str(SITE))
    return store, made, probe, labels


def test_every_class_gets_its_own_feature_and_not_that_of_the_smallest_label(world: Any) -> None:
    store, made, probe, labels = world
    bench, classes = PatchBench(Readout(probe, made, store), np.arange(16)), Classes(probe.classes)
    for by in ("attribution", "difference"):
        found = propose(bench, labels[:16].reshape(-1), classes, 3, by)
        assert [found[c][0].feature for c in range(N_CLASSES)] == list(range(N_CLASSES))
        assert all(found[c][0].auroc == found[c][0].f1 == found[c][0].precision == found[c][0].recall == 1 for c in range(N_CLASSES))


def test_attribution_is_the_margin_that_ablation_takes(world: Any) -> None:
    store, made, probe, labels = world
    bench, truth = PatchBench(Readout(probe, made, store), np.arange(16)), labels[:16].reshape(-1)
    table = scores(bench, truth, Classes(probe.classes))
    logits = bench.before.view(-1, N_CLASSES).double().numpy()
    for c in range(N_CLASSES):
        mine = logits[truth == c]
        # All other logits are 0, so that the margin is the logit itself, and the feature gives all of it.
        assert table[c, c] == pytest.approx(mine[:, c].mean(), rel=1e-5)


def test_an_ignored_class_and_one_without_patches_have_no_proposals(world: Any) -> None:
    store, made, probe, labels = world
    bench = PatchBench(Readout(probe, made, store), np.arange(16))
    truth = np.where(labels[:16] == 2, -1, labels[:16]).reshape(-1)
    assert sorted(propose(bench, truth, Classes(probe.classes), 2)) == [0, 1, 3]
    assert sorted(propose(bench, truth, Classes(probe.classes, frozenset({1, 2})), 2)) == [0, 3]


def test_a_change_is_that_of_the_core(world: Any) -> None:
    store, made, probe, _ = world
    bench = PatchBench(Readout(probe, made, store), np.arange(24))
    x = torch.cat([x for _, x in stored(store, SITE, np.arange(24))])
    for features, strength in (([1], 0.0), ([0, 3], -2.0), ([4], 1.0)):
        edits = [Edit.of(made, 1.0, f, strength, "scale") for f in features]
        want = probe(apply_edits(x, edits, made))
        place, logits = bench.after(bench.scaled(features, strength))
        have = bench.before.clone()
        have[torch.from_numpy(place)] = logits
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)
        row, some = bench.patches_after(bench.scaled(features, strength))
        torch.testing.assert_close(some, want.view(-1, N_CLASSES)[torch.from_numpy(row)], atol=1e-5, rtol=1e-5)


def test_a_random_direction_has_the_same_length_on_the_same_patches(world: Any) -> None:
    store, made, probe, _ = world
    change = PatchBench(Readout(probe, made, store), np.arange(24)).scaled([0, 4], -1.0)
    other = along(change, torch.tensor([0.0, 3, 4, 0, 0]))
    assert (other.row == change.row).all()
    torch.testing.assert_close(other.delta.norm(dim=1), change.delta.norm(dim=1))


def test_random_features_match_in_frequency() -> None:
    frequency = np.geomspace(1e-4, 1, 400)
    chosen = matched(frequency, [50, 300], [51, 301], np.random.RandomState(0))
    assert len(set(chosen)) == 2
    assert not set(chosen) & {50, 51, 300, 301}
    assert all(abs(one - f) < 25 for one, f in zip(chosen, [50, 300], strict=True))


def test_suppressing_a_class_flips_it_all_and_nothing_else(world: Any) -> None:
    store, made, probe, labels = world
    classes = Classes(probe.classes)
    tried, bench = PatchBench(Readout(probe, made, store), np.arange(16)), PatchBench(Readout(probe, made, store), np.arange(16, 24))
    found = {c: [c, 4] for c in range(N_CLASSES)}
    sight = Sight(bench, labels[16:], classes, "patches")
    assert sight.counts.miou == 1
    rows = control_pixels(tried, labels[:16].reshape(-1), sight, found, sizes=(1, 2), strengths=(0.0, -1.0), draws=2)
    for row in rows:
        out = row.suppressed
        # With strength 0 all logits are equal and the first class wins; the first itself must go below.
        assert (row.choice.features, row.choice.strength) == ([row.number], -1.0 if row.number == 0 else 0.0)
        assert (out.flipped, out.others_lost, out.iou, row.iou) == (1, 0, 0, 1)
        assert out.flipped_interval == (1, 1)
        assert row.random_features.flipped < 1
        assert row.passes


def test_where_no_set_is_good_enough_the_best_trade_is_taken(world: Any) -> None:
    store, made, probe, labels = world
    bench, classes = PatchBench(Readout(probe, made, store), np.arange(16)), Classes(probe.classes)
    truth = labels[:16].reshape(-1)
    chosen = choose_by_patches(bench, truth, 1, [4, 1], classes=classes, sizes=(1, 2), strengths=(0.5, 0.0), target=0.9, harm=0.0)
    assert (chosen.features, chosen.strength, chosen.flipped) == ([4, 1], 0.0, 1.0)
    hopeless = choose_by_patches(bench, truth, 1, [4], classes=classes, sizes=(1, 2), strengths=(0.0,), target=0.9, harm=0.0)
    assert hopeless.flipped == 0


def test_an_sae_after_the_probe_or_of_other_tokens_is_refused(world: Any) -> None:
    store, made, probe, _ = world
    later = Checkpoint(made.sae, made.norm, made.ref, "resid.3", made.read)
    with pytest.raises(SteerError, match=r"the probe reads resid\.0, before the SAE's resid\.3"):
        PatchBench(Readout(probe, later, store), np.arange(2))
    pooled = Checkpoint(made.sae, made.norm, made.ref, made.site, ReadConfig(layer=0, tokens="mean"))
    with pytest.raises(SteerError, match="an SAE of patches"):
        PatchBench(Readout(probe, pooled, store), np.arange(2))
    elsewhere = Probe(probe.weight, probe.bias, probe.classes, "resid.1")
    with pytest.raises(SteerError, match="the rest of the model must run"):
        PatchBench(Readout(elsewhere, made, store), np.arange(2))


def test_an_sae_of_all_sites_edits_the_one_that_the_probe_reads(world: Any) -> None:
    store, made, probe, _ = world
    joint = Checkpoint(made.sae, made.norm, made.ref, "resid.all", ReadConfig(layer="all"))
    benches = [PatchBench(Readout(probe, each, store), np.arange(24)) for each in (made, joint)]
    assert benches[1].readout.site == SITE
    (place, want), (same, have) = (bench.after(bench.scaled([1], 0.0)) for bench in benches)
    assert np.array_equal(place, same)
    assert torch.equal(have, want)
    edit = benches[1].readout.edit(1.0, 1, 0.0, "scale")
    assert torch.allclose(benches[1].readout.under(int(place[0]), [edit])[1], want[0], atol=1e-5)


# The verbs, on a real run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """260 drawn scenes at the last two blocks, an SAE of the third, and a segmentation probe there."""
    folder = tmp_path_factory.mktemp("semseg") / "run"
    words = ["--out", str(folder), "--model", "tiny", "--dataset", "shapes:260", "--record-layers", "-2", "--record-layers", "-1"]
    assert main(["record", *words, "--set", *SMALL]) == 0
    for stage in ("train", "index"):
        assert main([stage, str(folder)]) == 0
    assert main(["task", "semseg", "train", str(folder), "--epochs", "12", "--lr", "0.03,0.1", "--weight-decay", "0.001"]) == 0
    return Run.open(folder)


def ask(run: Run, name: str, cfg: Config) -> dict[str, Any]:
    return SemSeg().call(TaskContext(run, "semseg", device="cpu"), name, cfg)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def copy_of(run: Run, folder: Path) -> Run:
    """The same run with results of its own; what others may only read stays where it is."""
    folder.mkdir()
    for each in run.path.iterdir():
        if each.name in ("store", "sae", "features"):
            (folder / each.name).symlink_to(each)
        elif each.is_dir():
            shutil.copytree(each, folder / each.name)
        else:
            shutil.copy(each, folder)
    return Run.open(folder)


def test_training_keeps_the_best_probe_and_tells_of_all(run: Run) -> None:
    probe = Probe.load(run.path / "tasks" / "semseg" / "probe")
    told = run.result("semseg")["train"]
    rows = table(run.path / "tasks" / "semseg" / "results.csv")
    assert [float(row["lr"]) for row in rows] == [0.03, 0.1]
    assert max(float(row["miou"]) for row in rows) == told["best"]["miou"]
    assert (probe.site, probe.tokens, probe.n_classes) == ("resid.2", "patches", 11)
    assert probe.card["n_train"] + probe.card["n_tune"] + probe.card["n_val"] == 260
    assert told["val"]["accuracy"] > 0.9
    with Image.open(run.path / "tasks" / "semseg" / "hparam-sweeps.png") as picture:
        assert picture.width > 600


def test_validation_reports_intervals_a_ceiling_and_panels(run: Run) -> None:
    told = ask(run, "validate", ValidateConfig(examples=2))
    train = run.result("semseg")["train"]["val"]
    assert told["miou"] == pytest.approx(train["miou"])
    assert told["intervals"]["miou"][0] < told["miou"] < told["intervals"]["miou"][1]
    assert set(told["ceiling"]) == {"majority, blocks", "majority, upsampled", "shares, upsampled"}
    folder = run.path / "tasks" / "semseg"
    assert {"class-iou.png", "panels.png", "classes.csv"} <= {each.name for each in folder.iterdir()}
    rows = table(folder / "classes.csv")
    assert np.nanmean([float(row["iou"] or "nan") for row in rows]) == pytest.approx(told["miou"])
    assert json.loads(run.results_path("semseg").read_text())["validate"]["n_images"] == 52


def test_an_ignored_class_of_a_run_is_really_ignored(run: Run, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "run")
    ask(other, "train", TrainConfig(ignore=("background",), epochs=3, lr=(0.03,), weight_decay=(1e-3,), loss="patches"))
    told = ask(other, "validate", ValidateConfig(examples=0))
    (ground, *rest) = told["classes"]
    assert (ground["ignored"], ground["iou"], ground["pixels"], ground["predicted"]) == (True, None, 0, 0)
    assert told["miou"] == pytest.approx(np.mean([row["iou"] for row in rest]))
    assert sum(row["pixels"] for row in rest) == sum(row["predicted"] for row in rest)


def test_manipulating_nothing_changes_nothing_and_suppressing_a_class_takes_its_pixels(run: Run) -> None:
    found = ask(run, "propose", ProposeConfig(n=3))["classes"]
    assert all(found[name] for name in found)
    dataset = TaskContext(run, "semseg", device="cpu").dataset()
    image = next(i for i in range(260) if dataset[i].label == 7)  # the large object is a crescent
    name = "crescent"
    feature = found[name][0]["feature"]
    still = ask(run, "manipulate", ManipulateConfig(image=image, edit={feature: 1}))
    assert still["changed"] == 0
    told = ask(run, "manipulate", ManipulateConfig(image=image, edit={feature: -4}))
    row = next(row for row in told["classes"] if row["class"] == name)
    assert row["before"] > 300
    assert row["after"] < 0.2 * row["before"]
    assert sum(row["after"] - row["before"] for row in told["classes"]) == 0
    with Image.open(told["figure"]) as picture:
        assert picture.width > 1000
    part = ask(run, "manipulate", ManipulateConfig(image=image, edit={feature: 2}, mode="add", where=(0, 1)))
    assert 0 <= part["changed"] < 0.1


@pytest.mark.slow
def test_the_control_experiment_on_known_truth(run: Run) -> None:
    told = ask(run, "control", ControlConfig(n_train=120, draws=2, sizes=(1, 2, 4)))
    things = [row for row in told["rows"] if row["name"] != "background"]
    assert len(things) == 10
    assert sum(row["suppressed"]["flipped"] >= 0.8 and row["suppressed"]["others_lost"] <= 0.05 for row in things) >= 8
    assert np.mean([row["over_features"][0] > 0 for row in things]) >= 0.8
    rows = table(run.path / "tasks" / "semseg" / "control.csv")
    assert [row["class"] for row in rows] == [row["name"] for row in told["rows"]]
    assert (run.path / "tasks" / "semseg" / "control.png").exists()


@pytest.mark.slow
def test_a_probe_after_the_sae_is_controlled_through_the_rest_of_the_model(run: Run, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "run")
    ask(other, "train", TrainConfig(site="-1", epochs=8, lr=(0.03,), weight_decay=(1e-3,)))
    told = ask(other, "control", ControlConfig(classes=("circle", "bar"), n_train=30, n_val=30, draws=1, sizes=(1,), level="patches"))
    assert (told["site"], told["sae_site"]) == ("resid.3", "resid.2")
    assert all(row["suppressed"]["flipped"] > row["random_features"]["flipped"] for row in told["rows"])
    # What the whole model says with the edit in place is what the bench said.
    cx = TaskContext(other, "semseg", device="cpu")
    probe, made, store = Probe.load(cx.folder("probe")), cx.checkpoint(), cx.store()
    bench = PatchBench(Readout(probe, made, store, cx.model), np.arange(4))
    feature = told["rows"][0]["choice"]["features"][0]
    place, logits = bench.after(bench.scaled([feature], 0.0))
    image = int(place[0]) if len(place) else 0
    still = ask(other, "manipulate", ManipulateConfig(image=image, edit={feature: 0}))
    said = predict(logits[:1] if len(place) else bench.before[:1], store.grid, Classes(probe.classes)).numpy()
    for row in still["classes"]:
        assert row["after"] == (said == probe.classes.index(row["class"])).sum()


@pytest.mark.slow
def test_the_validation_split_may_be_a_run_of_its_own(run: Run, tmp_path: Path) -> None:
    words = ["--model", "tiny", "--dataset", "shapes:20", "--record-layers", "-2", "--set", "dataset.seed=5"]
    assert main(["record", "--out", str(tmp_path / "val"), *words]) == 0
    other = copy_of(run, tmp_path / "run")
    told = ask(other, "train", TrainConfig(val=str(tmp_path / "val"), epochs=4, lr=(0.03,), weight_decay=(1e-3,), loss="patches"))
    assert (told["card"]["n_val"], told["card"]["n_train"] + told["card"]["n_tune"]) == (20, 260)
    assert ask(other, "validate", ValidateConfig(examples=1))["n_images"] == 20
    control = ask(other, "control", ControlConfig(classes=("bar",), n_train=40, draws=1, sizes=(1,), level="patches"))
    assert control["n_val"] == 20


def test_ade20k_has_a_head_of_151_and_its_masks_follow_the_crop(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    rng = np.random.RandomState(0)
    for i in range(24):
        for folder in ("images/training", "annotations/training"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        # Wider or higher than the model's square, so that it sees the middle; the ends, unlike it, are class 150 and no class at all.
        mask = np.full((96, 192), 150, np.uint8)
        mask[:, 48:144] = 1 + 4 * (rng.permutation(4)[None].repeat(96, 0).repeat(24, 1))
        mask[rng.randint(0, 96, 60), rng.randint(48, 144, 60)] = 0
        mask = mask if i % 2 else mask.T
        colours = rng.randint(0, 40, (151, 3)) + np.array(
            [[0, 0, 0], *([[k * 40 % 215, k * 90 % 215, k * 140 % 215] for k in range(1, 151)])]
        )
        Image.fromarray(colours[mask].astype(np.uint8)).save(root / "images/training" / f"ADE_{i:03}.jpg", quality=95)
        Image.fromarray(mask).save(root / "annotations/training" / f"ADE_{i:03}.png")
    assert main(["record", "--out", str(tmp_path / "run"), "--model", "tiny", "--dataset", f"ade20k:{root}"]) == 0
    run = Run.open(tmp_path / "run")
    for loss in ("pixels", "patches"):
        options = {"loss": loss, "ignore": ("other",), "epochs": 40, "batch_size": 128, "lr": (0.03,), "weight_decay": (1e-3,)}
        said: list[str] = []
        cx = TaskContext(run, "semseg", device="cpu", say=said.append)
        told = SemSeg().call(cx, "train", TrainConfig.model_validate(options))
        probe = Probe.load(run.path / "tasks" / "semseg" / "probe")
        assert (probe.n_classes, probe.weight.shape) == (151, (151, 128))
        assert any("no training image shows class 2" in line for line in said)
        assert told["val"]["accuracy"] > 0.8
    found = ask(run, "validate", ValidateConfig(examples=2))
    assert {row["number"] for row in found["classes"] if row["pixels"]} == {1, 5, 9, 13}
    assert found["ignored"] == [0]


# Bad input


def test_what_does_not_fit_is_told_in_a_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: type[SaevError], line: str, name: str, cfg: Config, where: Run = run) -> None:
        with pytest.raises(error, match=line) as caught:
            ask(where, name, cfg)
        assert "\n" not in str(caught.value)

    fails(UsageError, r"--site resid\.0: recorded are resid\.2, resid\.3", "train", TrainConfig(site="0"))
    fails(UsageError, "--ignore sea: no such class", "train", TrainConfig(ignore=("sea",)))
    fails(UsageError, "--classes sea: no such class", "control", ControlConfig(classes=("sea",)))
    fails(DatasetError, "of 11 1 is left", "train", TrainConfig(ignore=tuple(map(str, range(10)))))
    fails(UsageError, "--image 260: the store holds images 0 to 259", "manipulate", ManipulateConfig(image=260, edit={1: 0}))
    fails(UsageError, "--edit names no feature", "manipulate", ManipulateConfig())
    fails(SteerError, "feature 384: this SAE has features 0 to 383", "manipulate", ManipulateConfig(edit={384: 0}))
    fails(SteerError, "patch 144: there are 144", "manipulate", ManipulateConfig(edit={1: 0}, where=(144,)))
    fails(RunError, "no SAE 'none'", "propose", ProposeConfig(sae="none"))
    fails(RunError, "does not exist", "train", TrainConfig(val=str(tmp_path / "nowhere")))
    assert main(["task", "semseg", "manipulate", str(run.path), "--edit", "384=0"]) == 1
    assert "feature 384" in capsys.readouterr().err
    for verb, flag, line in (
        ("train", "--lr=0", "learns nothing"),
        ("control", "--sizes=0", "one feature"),
        ("control", "--strengths=nan", "finite"),
        ("manipulate", "--edit=1=nan", "finite"),
        ("manipulate", "--edit=x=1", "edit"),
    ):
        assert main(["task", "semseg", verb, str(run.path), flag]) == 2
        assert line in capsys.readouterr().err


def test_a_class_without_positive_examples_is_left_out_and_told(run: Run) -> None:
    said: list[str] = []
    cx = TaskContext(run, "semseg", device="cpu", say=said.append)
    found = SemSeg().call(cx, "propose", ProposeConfig(n_images=1))
    missing = [name for name in Probe.load(cx.folder("probe")).classes if name not in found["classes"]]
    assert missing
    assert any(line.startswith(f"no training patch shows {missing[0]}") for line in said)
    options = ControlConfig(classes=(missing[0],), n_train=1, n_val=4, draws=1, level="patches")
    with pytest.raises(DatasetError, match="no class has both proposed features and right pixels"):
        SemSeg().call(cx, "control", options)


def test_a_probe_that_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "run")
    folder = other.path / "tasks" / "semseg" / "probe"
    good = Probe.load(folder)

    def refused(line: str, **changed: Any) -> None:
        parts = {name: getattr(good, name) for name in ("weight", "bias", "classes", "site", "tokens", "store", "card")}
        Probe(**(parts | changed)).save(folder)
        with pytest.raises(ProbeError, match=line):
            ask(other, "validate", ValidateConfig())

    refused(r"the probe reads resid\.0, the store holds resid\.2, resid\.3", site="resid.0")
    refused("takes activations 64 wide, the store's are 128", weight=good.weight[:, :64])
    refused("the probe tells 11 classes", classes=["x", *good.classes[1:]])
    refused("is not a segmentation probe", tokens="cls")
    refused("trained on model", store={"model": {"name": "another"}})
    shutil.rmtree(folder)
    with pytest.raises(ProbeError, match="has no segmentation probe; train one with saev task semseg train"):
        ask(other, "control", ControlConfig())


def test_a_data_set_without_masks_is_told_so(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "pictures" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 96), (60 * i, 0, 90)).save(tmp_path / "pictures" / "a" / f"{i}.png")
    assert main(["record", "--out", str(tmp_path / "run"), "--model", "tiny", "--dataset", f"image-folder:{tmp_path / 'pictures'}"]) == 0
    with pytest.raises(DatasetError, match="the data set has no masks; segmentation needs one whose mask_classes are set"):
        ask(Run.open(tmp_path / "run"), "train", TrainConfig())
