"""Segmentation: every verb on a real run, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saev_core.cli import main
from saev_core.config.base import Config
from saev_core.errors import DatasetError, ProbeError, RunError, SaevError, SteerError, UsageError
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_core.tasks.probe import Probe
from saev_tasks.semseg.bench import PatchBench
from saev_tasks.semseg.options import ControlConfig, ManipulateConfig, ProposeConfig, TrainConfig, ValidateConfig
from saev_tasks.semseg.scores import predict
from saev_tasks.semseg.task import SemSeg
from saev_tasks.shared.patch_vectors import Classes
from saev_tasks.shared.readout import Readout

SMALL = ["train.n_tokens=250000", "train.n_init=4096", "train.batch_size=1024", "sae.options.d_sae=384", "sae.options.k=12"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """260 synthetic scenes at the last two blocks, an SAE of the third, and a segmentation probe there."""
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
    """The same run with its own results; shared inputs stay in place."""
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
    # The whole model's output with the edit equals the bench's.
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
        # Wider or taller than the model's square crop, which sees the middle; the ends are class 150 and no class.
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

    fails(UsageError, r"--site resid\.0: the store has resid\.2, resid\.3", "train", TrainConfig(site="0"))
    fails(UsageError, "--ignore sea: no such class", "train", TrainConfig(ignore=("sea",)))
    fails(UsageError, "--classes sea: no such class", "control", ControlConfig(classes=("sea",)))
    fails(DatasetError, "of 11 1 remains", "train", TrainConfig(ignore=tuple(map(str, range(10)))))
    fails(UsageError, "--image 260: the store holds images 0 to 259", "manipulate", ManipulateConfig(image=260, edit={1: 0}))
    fails(UsageError, "--edit names no feature", "manipulate", ManipulateConfig())
    fails(SteerError, "feature 384: this SAE has features 0 to 383", "manipulate", ManipulateConfig(edit={384: 0}))
    fails(SteerError, "patch 144: there are 144", "manipulate", ManipulateConfig(edit={1: 0}, where=(144,)))
    fails(RunError, "no SAE 'none'", "propose", ProposeConfig(sae="none"))
    fails(RunError, "does not exist", "train", TrainConfig(val=str(tmp_path / "nowhere")))
    assert main(["task", "semseg", "manipulate", str(run.path), "--edit", "384=0"]) == 1
    assert "feature 384" in capsys.readouterr().err
    for verb, flag, line in (
        ("train", "--lr=0", "must be above 0"),
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
    with pytest.raises(DatasetError, match="no class has both proposed features and correctly classified validation pixels"):
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
    refused("the probe was trained on 11 classes", classes=["x", *good.classes[1:]])
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
    with pytest.raises(DatasetError, match="the data set has no masks; segmentation needs one with mask_classes, such as shapes or ade20k"):
        ask(Run.open(tmp_path / "run"), "train", TrainConfig())
