"""Classification: sweeps against scikit-learn, planted features found and suppressed, every verb on a real run, bad input."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.config.base import Config
from saev_core.config.stages import ReadConfig
from saev_core.errors import ProbeError, RunError, SaevError, SteerError, StoreError, UsageError
from saev_core.interventions.apply import apply_edits
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.tasks.context import TaskContext
from saev_core.tasks.fit_probes import Scaling
from saev_core.tasks.probe import Probe
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Site
from saev_tasks.classification.bench import ImageBench
from saev_tasks.classification.control import choose_by_images, control_images
from saev_tasks.classification.data import LabelData, labels_of
from saev_tasks.classification.options import ControlConfig, ManipulateConfig, ProposeConfig, TrainConfig
from saev_tasks.classification.propose import propose, scores
from saev_tasks.classification.task import Classification
from saev_tasks.classification.train import accuracy_and_loss, by_logistic
from saev_tasks.shared import figures
from saev_tasks.shared.control_experiment import along, matched
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
    """An SAE each of whose features is one axis."""
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


# Training


def test_logistic_regression_is_that_of_scikit_learn_on_raw_vectors() -> None:
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 0.1, 1.0, 1.0]) + 3
    for n_classes in (2, 3):
        y = ((x[:, 0] > 3).long() + (x[:, 1] > 9).long()).clamp(max=n_classes - 1)
        scaling = Scaling.of([x])
        (one,) = by_logistic(x, y, n_classes + 1, [0.5], scaling=scaling)
        scaled = ((x - scaling.mean) * scaling.scale).float().numpy()
        model = LogisticRegression(C=0.5, max_iter=1000).fit(scaled, y.numpy())
        p = (x @ one.weight.T + one.bias).softmax(-1)
        np.testing.assert_allclose(p[:, :n_classes].numpy(), model.predict_proba(scaled), atol=2e-5)
        assert float(p[:, n_classes].max()) == 0  # no image shows it
        ((accuracy, loss),) = accuracy_and_loss([one], x, y)
        assert accuracy == pytest.approx(model.score(scaled, y.numpy()))
        assert loss == pytest.approx(float(-p.gather(1, y[:, None]).log().mean()), rel=1e-4)


def test_what_does_not_converge_is_told() -> None:
    x, y = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    assert [one.converged for one in by_logistic(x, y, 2, [1e-2], scaling=Scaling.of([x]))] == [True]


@pytest.mark.parametrize(("hits", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)])
def test_wilson_is_as_published(hits: int, n: int, low: float, high: float) -> None:
    """The third: Newcombe 1998, Two-sided confidence intervals for the single proportion, table I."""
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


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


# Features and edits


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
    # An image of which nothing is left is told as class 0, so that one cannot be flipped by ablation alone.
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
    assert again == rows  # by its seed


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


def test_random_features_are_of_about_the_same_frequency() -> None:
    frequency = np.concatenate([np.full(30, 0.5), np.full(30, 0.01), np.zeros(10)])
    found = matched(frequency, [0, 40], [1, 41], np.random.RandomState(0))
    assert frequency[found].tolist() == [0.5, 0.01]
    assert not set(found) & {0, 1, 40, 41}


# A real run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """400 drawn scenes at the last two blocks, an SAE of the third, and a probe there."""
    folder = tmp_path_factory.mktemp("classification") / "run"
    words = ["--out", str(folder), "--model", "tiny", "--dataset", "shapes:400", "--record-layers", "-2", "--record-layers", "-1"]
    sizes = ["train.n_tokens=250000", "train.n_init=4096", "train.batch_size=1024", "sae.options.d_sae=384", "sae.options.k=12"]
    assert main(["record", *words, "--set", *sizes]) == 0
    for stage in ("train", "index"):
        assert main([stage, str(folder)]) == 0
    assert main(["task", "classification", "train", str(folder), "--epochs", "15", "--lr", "0.003,0.03", "--weight-decay", "0.01,0.1"]) == 0
    return Run.open(folder)


def ask(run: Run, name: str, cfg: Config) -> dict[str, Any]:
    return Classification().call(TaskContext(run, "classification", device="cpu"), name, cfg)


def copy_of(run: Run, folder: Path) -> Run:
    """The same run with tasks and results of its own; what others may only read stays where it is."""
    folder.mkdir()
    for path in run.path.iterdir():
        if path.name not in ("tasks", "results"):
            (folder / path.name).symlink_to(path)
    probe = Probe.load(run.path / "tasks" / "classification" / "probe")
    probe.save(folder / "tasks" / "classification" / "probe")
    return Run.open(folder)


@pytest.mark.slow
def test_the_probe_tells_the_scenes_apart_and_keeps_what_it_was_told(run: Run) -> None:
    folder = run.path / "tasks" / "classification"
    found = run.result("classification")["train"]
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["solver"] for row in rows] == ["adamw"] * 4 + ["logistic"] * 5
    (best,) = [row for row in rows if row["best"] == "True"]
    assert float(best["val_accuracy"]) == found["card"]["accuracy"] > 0.9
    assert found["tokens"] == "mean"  # what edits of an SAE of patches reach
    assert found["site"] == "resid.2"
    probe = Probe.load(folder / "probe")
    data = LabelData.of(TaskContext(run, "classification"), Site.parse(probe.site), probe.card)
    assert not set(data.train.images) & set(data.val.images)
    x = image_vectors(data.val.store, Site.parse(probe.site), parse_tokens(probe.tokens), data.val.images)
    assert float((probe(x).argmax(1) == data.val.targets).double().mean()) == pytest.approx(found["card"]["accuracy"])
    assert sum(one["n"] for one in found["classes"]) == len(data.val.images)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    with Image.open(folder / "hparam-sweeps.png") as figure:
        assert figure.width > 500


@pytest.mark.slow
@pytest.mark.parametrize("site", ["-2", "-1"])
def test_the_control_experiment_on_drawn_scenes(run: Run, tmp_path: Path, site: str) -> None:
    """At the SAE's own site, and through the rest of the model to a later one."""
    mine = copy_of(run, tmp_path / "run")
    ask(mine, "train", TrainConfig(site=site, tokens="mean", solver="logistic", c=(0.1,)))
    few = ("triangle", "3", "ring") if site == "-1" else ()
    found = ask(mine, "control", ControlConfig(n_train=200, draws=2, sizes=(1, 3, 8), classes=few))
    assert found["by"] == ("attribution" if site == "-2" else "difference")
    flips = {row["name"]: (row["suppressed"]["flipped"], row["random_features"]["flipped"]) for row in found["rows"]}
    assert np.mean([flipped - beside for flipped, beside in flips.values()]) > 0.5, flips
    assert np.mean([row["suppressed"]["others_lost"] for row in found["rows"]]) < 0.1
    folder = mine.path / "tasks" / "classification"
    rows = list(csv.DictReader((folder / "control.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == list(flips)
    assert [row["passes"] == "True" for row in rows] == [row["passes"] for row in found["rows"]]
    assert json.loads((folder / "proposal.json").read_text())["by"] == found["by"]
    assert mine.result("classification")["control"] == found
    with Image.open(folder / "control.png") as figure:
        assert figure.height > 400


@pytest.mark.slow
def test_manipulate_says_before_and_after_and_draws_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = copy_of(run, tmp_path / "run")
    proposed = ask(mine, "propose", ProposeConfig(n=8))["classes"]
    image = next(i for i in range(400) if ActivationStore.open(run.store_url).labels[i] == 2)
    edit = ",".join(f"{one['feature']}=0" for one in proposed["triangle"])
    command = ["task", "classification", "manipulate", str(mine.path), "--image", str(image), "--edit", edit]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [row["class"] for row in found["classes"]]
    assert found["label"] == "triangle" == found["said"]["before"]
    at = names.index("triangle")
    assert found["classes"][at]["after"] < 0.5 < found["classes"][at]["before"]
    assert sum(found["before"]) == pytest.approx(1)
    with Image.open(found["figure"]) as figure:
        assert figure.width > 500
    # Nothing changes: not a bit of the answer does.
    for cfg in (ManipulateConfig(image=image, edit={3: 1.0}), ManipulateConfig(image=image, edit={3: 0.0}, mode="add", where=(0, 5))):
        same = ask(mine, "manipulate", cfg)
        assert same["before"] == same["after"]


@pytest.mark.slow
def test_an_edit_reaches_a_later_probe_through_the_rest_of_the_model(run: Run, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    ask(mine, "train", TrainConfig(site="3", tokens="cls", solver="logistic", c=(0.1,)))
    edit = dict.fromkeys(range(60), 0.0)
    found = ask(mine, "manipulate", ManipulateConfig(image=5, edit=edit))
    assert found["before"] != found["after"]
    only = ask(mine, "manipulate", ManipulateConfig(image=5, edit=edit, where=(0,)))
    assert only["after"] != found["after"]
    everywhere = ask(mine, "manipulate", ManipulateConfig(image=5, edit=edit, prefix=True))
    assert everywhere["after"] != found["after"]


@pytest.mark.slow
def test_another_run_can_be_validated_on(run: Run, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    words = ["--out", str(tmp_path / "test"), "--model", "tiny", "--dataset", "shapes:40", "--record-layers", "-2"]
    assert main(["record", *words, "--set", "dataset.seed=7"]) == 0
    found = ask(mine, "train", TrainConfig(val=str(tmp_path / "test"), solver="logistic", c=(0.1,)))
    assert found["card"]["n_val"] == 40
    assert found["card"]["n_train"] + found["card"]["n_tune"] == 400
    assert ask(mine, "control", ControlConfig(classes=("bar",), n_train=100, draws=1, sizes=(1, 3)))["n_val"] == 40


# Bad input


def fails(run: Run, name: str, cfg: Config, error: type[SaevError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        ask(run, name, cfg)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_bad_input_to_the_verbs_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    fails(mine, "manipulate", ManipulateConfig(image=400, edit={3: 0.0}), UsageError, "images 0 to 399")
    fails(mine, "manipulate", ManipulateConfig(image=1), UsageError, "names no feature")
    fails(mine, "manipulate", ManipulateConfig(image=1, edit={384: 0.0}), SteerError, "features 0 to 383")
    fails(mine, "manipulate", ManipulateConfig(image=1, edit={3: 0.0}, where=(144,)), SteerError, "patch 144")
    fails(mine, "train", TrainConfig(site="resid.0"), UsageError, "recorded are resid.2, resid.3")
    fails(mine, "train", TrainConfig(tokens="token:144"), StoreError, "patches 0 to 143")
    fails(mine, "control", ControlConfig(classes=("dog",)), UsageError, "no such class")
    fails(mine, "control", ControlConfig(sae="other"), RunError, "other")
    with pytest.raises(ValueError, match="is not cls, mean or token:N"):
        TrainConfig(tokens="patches")
    folder = mine.path / "tasks" / "classification" / "probe"
    probe = Probe.load(folder)
    asked = ProposeConfig(n=1)
    for changed, says in (
        (replace(probe, site="resid.9"), "reads resid.9, the store holds"),
        (replace(probe, classes=[*probe.classes[1:], "dog"]), "train a probe on these classes"),
        (replace(probe, weight=torch.zeros(10, 64)), "64 wide"),
        (replace(probe, store={**probe.store, "model": {"name": "clip"}}), "model clip"),
        (replace(probe, tokens="patches"), "reads patches"),
        (replace(probe, card={}), "does not say what it was trained on"),
    ):
        changed.save(folder)
        fails(mine, "propose", asked, ProbeError, says)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    fails(mine, "control", ControlConfig(), ProbeError, "has no classification probe; train one")


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


@pytest.mark.slow
def test_pictures_of_one_class_or_none_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / "one" / "dots" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(path)
    assert main(["record", "--out", str(tmp_path / "run"), "--model", "tiny", "--dataset", f"image-folder:{tmp_path / 'one'}"]) == 0
    fails(Run.open(tmp_path / "run"), "train", TrainConfig(), ProbeError, r"all images of .* are of one \(dots\)")


# Figures


def test_figures_of_any_size_are_written_whole(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"solver": "adamw", "lr": lr, "weight_decay": decay, "c": None, "val_accuracy": lr * 10} for lr in (1e-3, 1e-2) for decay in (0.0,)
    ]
    logistic = [{"solver": "logistic", "lr": None, "weight_decay": None, "c": c, "val_accuracy": 0.5} for c in (0.1, 1.0)]
    for some, best in ((rows, rows[0]), (logistic, logistic[1]), (rows + logistic, rows[1]), (rows[:1], rows[0])):
        figures.sweep(some, best, "val_accuracy", "validation accuracy", tmp_path / "sweep.png")
    one = np.array([0.9, 0.1])
    picture = Image.new("RGB", (96, 96), "white")
    figures.before_after(
        picture,
        ["a class of a name that is far too long", "b"],
        one,
        one[::-1],
        "t",
        tmp_path / "a.png",
        truth="b",
        marked=[(8, 8, 16, 16)],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "sweep.png"]
