"""Classification: every verb on a real run, bad input, figures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.config.base import Config
from saev_core.errors import ProbeError, RunError, SaevError, SteerError, StoreError, UsageError
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_core.tasks.probe import Probe
from saev_core.types import Site
from saev_tasks.classification.data import LabelData
from saev_tasks.classification.options import ControlConfig, ManipulateConfig, ProposeConfig, TrainConfig
from saev_tasks.classification.task import Classification
from saev_tasks.shared import figures
from saev_tasks.shared.pooling import image_vectors, parse_tokens


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """400 synthetic scenes at the last two blocks, an SAE of the third, and a probe there."""
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
    """The same run with its own tasks and results; shared inputs stay in place."""
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
    assert found["tokens"] == "mean"  # reached by edits of a patch SAE
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
    # No effective edit: bit-identical output.
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
    fails(mine, "train", TrainConfig(site="resid.0"), UsageError, "the store has resid.2, resid.3")
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
        (replace(probe, card={}), "does not record its training split"),
    ):
        changed.save(folder)
        fails(mine, "propose", asked, ProbeError, says)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    fails(mine, "control", ControlConfig(), ProbeError, "has no classification probe; train one")


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
