"""Semprobe on a real run: images in folders, detection against scikit-learn, sheets, and errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scipy.sparse import csc_array
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from saev_core.cli import main
from saev_core.data.shapes import Shapes, ShapesConfig
from saev_core.errors import DatasetError, RunError
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_core.types import Box
from saev_tasks.semprobe import NegativesConfig, ScoreConfig, SemProbe, SheetsConfig
from saev_tasks.semprobe.negatives import sample
from saev_tasks.semprobe.scoring import detect, halves
from saev_tasks.semprobe.sheets import heat


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small real run on synthetic scenes, indexed. The tests modify its task folder."""
    folder = tmp_path_factory.mktemp("semprobe") / "run"
    options = ["train.n_tokens=100000", "train.n_init=1024", "train.batch_size=1024", "sae.options.d_sae=192", "names.source=none"]
    assert main(["record", "--out", str(folder), "--dataset", "shapes:80", "--set", *options]) == 0
    assert main(["train", str(folder)]) == 0
    assert main(["index", str(folder)]) == 0
    return Run.open(folder)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes outside the run: eight with something red, eight with only green, eight with neither; not all square."""
    folder, scenes, have = tmp_path_factory.mktemp("curated"), Shapes(ShapesConfig(n=400, seed=7)), {"red": 0, "green": 0, "negatives": 0}
    for i in range(400):
        colours = {thing.colour for thing in scenes.truth(i).things}
        kind = "red" if "red" in colours else "green" if "green" in colours else "negatives"
        if have[kind] < 8:
            (folder / kind).mkdir(exist_ok=True)
            scenes[i].image.crop((0, 0, 192, 192 if i % 2 else 160)).save(folder / kind / f"{i}.png")
            have[kind] += 1
    assert set(have.values()) == {8}
    return folder


def context(run: Run) -> TaskContext:
    return TaskContext(run, "semprobe")


def test_detection_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((60, 7)) < 0.4, rng.random((60, 7)).round(1), 0)
    x[:, 0] = 0
    true, counts = rng.random(60) < 0.3, rng.random(60) < 0.8
    largest = np.maximum(x.max(0), 0.1)
    found = detect(csc_array(x), true, counts, (0.0, 0.25, 0.5), largest)
    for f in range(7):
        for i, threshold in enumerate((0.0, 0.25, 0.5)):
            yes = x[counts, f] >= threshold * largest[f] if threshold else x[counts, f] > 0
            precision, recall, f1, _ = precision_recall_fscore_support(true[counts], yes, average="binary", zero_division=0)
            assert found.precision[i, f] == pytest.approx(precision)
            assert found.recall[i, f] == pytest.approx(recall)
            assert found.f1[i, f] == pytest.approx(f1)
        assert found.auroc[f] == pytest.approx(roc_auc_score(true[counts], x[counts, f]))
    assert (found.n_positive, found.n_negative) == (int((true & counts).sum()), int((~true & counts).sum()))


def test_halves_hold_every_concept_on_both_sides() -> None:
    true, negative = np.repeat(np.eye(3, dtype=bool), [2, 5, 0], 0), np.zeros(7, bool)
    true, negative = np.concatenate([true, np.zeros((4, 3), bool)]), np.concatenate([negative, np.ones(4, bool)])
    choosing, judging = halves(true, negative, 0.5, 0)
    assert (choosing ^ judging).all()
    for group in (true[:, 0], true[:, 1], negative):
        assert (group & choosing).any()
        assert (group & judging).any()
    assert all(side.all() for side in halves(true, negative, 0.0, 0))
    true[1] = False  # one image of the first concept remains
    negative[1] = True
    assert all(side.all() for side in halves(true, negative, 0.5, 0))


def test_negatives_are_drawn_by_seed_from_the_classes_asked_for(tmp_path: Path) -> None:
    scenes = Shapes(ShapesConfig(n=60))
    names = sample(scenes, tmp_path / "a", 6, classes=("ring", "star"), seed=1)
    assert sample(scenes, tmp_path / "b", 6, classes=("ring", "star"), seed=1) == names
    assert sample(scenes, tmp_path / "c", 8, classes=("ring", "star"), seed=1)[:6] == names
    files = sorted(int(path.stem) for path in (tmp_path / "a").iterdir())
    assert len(files) == 6
    assert {Shapes.classes[scenes[i].label or 0] for i in files} <= {"ring", "star"}
    less = sample(scenes, tmp_path / "d", 6, classes=("ring", "star"), skip=(str(files[0]),), seed=1)
    assert scenes.name(files[0]) not in less
    with pytest.raises(DatasetError, match="already exists"):
        sample(scenes, tmp_path / "a", 6)
    with pytest.raises(DatasetError, match="only 60 of 61 negatives"):
        sample(scenes, tmp_path / "e", 61)
    with pytest.raises(DatasetError, match="no class named 'rong'"):
        sample(scenes, tmp_path / "e", 6, classes=("rong",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_scores_and_sheets_of_curated_pictures(run: Run, curated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "semprobe", "score", str(run.path), "--positives", str(curated), "--top-k", "3", "--include", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["held_out"]
    assert told["against"] == "negatives"
    assert told["concepts"] == {"green": {"n_positive": 4, "n_negative": 4}, "red": {"n_positive": 4, "n_negative": 4}}
    listed = [row["feature"] for row in told["rows"] if row["concept"] == "red"]
    assert 7 in listed
    assert len(listed) in (3, 4)
    rows = list(csv.DictReader(Path(told["csv"]).read_text().splitlines()))
    assert len(rows) == len(told["rows"])
    numbers = load_file(told["all"])
    assert numbers["f1"].shape == (2, 5, 192)
    row = told["rows"][0]
    assert numbers["auroc"][0, row["feature"]] == pytest.approx(row["auroc"])

    assert main(["task", "semprobe", "sheets", str(run.path), "--top-k", "2", "--n-positive", "3", "--json"]) == 0
    sheets = [Path(path) for path in json.loads(capsys.readouterr().out)["sheets"]]
    assert [path.name for path in sheets] == ["00-green.png", "01-red.png"]
    with Image.open(sheets[1]) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert ((pixels == (0, 158, 115)).all(1) | (pixels == (213, 94, 0)).all(1)).sum() > 500  # frames
    assert not list((run.path / "tasks" / "semprobe").glob(".*"))


@pytest.mark.slow
def test_curated_pictures_give_the_activations_that_recorded_ones_gave(run: Run, tmp_path: Path) -> None:
    """The same images from the store and from files give the same scores."""
    cx = context(run)
    own = SemProbe().call(cx, "score", ScoreConfig(classes=("ring", "star"), val_share=0, n_negatives=500, per_class=500))
    labels, scenes = cx.store().labels, cx.dataset()
    for i in range(len(scenes)):
        name = Shapes.classes[labels[i]]
        folder = tmp_path / (name if name in ("ring", "star") else "negatives")
        folder.mkdir(exist_ok=True)
        scenes[i].image.save(folder / f"{i:03}.png")
    again = SemProbe().call(context(run), "score", ScoreConfig(positives=str(tmp_path), val_share=0))
    assert not own["held_out"]
    for row, other in zip(own["rows"], again["rows"], strict=True):
        assert row["feature"] == other["feature"]
        assert row["auroc"] == pytest.approx(other["auroc"], abs=0.01)


def test_patches_are_told_apart_where_asked(run: Run, curated: Path) -> None:
    told = SemProbe().call(context(run), "score", ScoreConfig(positives=str(curated), units="patches", top_k=1))
    n_patches = context(run).store().grid.n_patches
    assert told["concepts"]["red"] == {"n_positive": 4 * n_patches, "n_negative": 4 * n_patches}


def test_negatives_of_the_run_are_found(run: Run, curated: Path, tmp_path: Path) -> None:
    shutil.copytree(curated / "red", tmp_path / "red")
    with pytest.raises(DatasetError, match="there are no negatives; sample some first: saev task semprobe negatives"):
        SemProbe().call(context(run), "score", ScoreConfig(positives=str(tmp_path)))
    made = SemProbe().call(context(run), "negatives", NegativesConfig(n_images=6))
    try:
        told = SemProbe().call(context(run), "score", ScoreConfig(positives=str(tmp_path)))
        assert told["concepts"]["red"] == {"n_positive": 4, "n_negative": 3}
    finally:
        shutil.rmtree(made["folder"])


def test_what_is_wrong_is_said_in_one_line(run: Run, curated: Path, tmp_path: Path) -> None:
    def score(**options: object) -> None:
        SemProbe().call(context(run), "score", ScoreConfig.model_validate(options))

    with pytest.raises(DatasetError, match="is not a folder"):
        score(positives=str(tmp_path / "none"))
    with pytest.raises(DatasetError, match="holds no positive examples"):
        score(positives=str(tmp_path))
    (tmp_path / "blue").mkdir()
    with pytest.raises(DatasetError, match="no positive examples of 'blue'"):
        score(positives=str(tmp_path))
    with pytest.raises(DatasetError, match="no class named 'rong'"):
        score(classes=("rong",))
    with pytest.raises(RunError, match="--include 192: the SAE has features 0 to 191"):
        score(positives=str(curated), include=(192,))
    with pytest.raises(DatasetError, match="holds no images; sample negatives"):
        score(positives=str(curated), negatives=str(tmp_path / "blue"))


def test_sheets_need_scores(run: Run) -> None:
    run.results_path("semprobe").unlink(missing_ok=True)
    with pytest.raises(RunError, match="has no scores; compute them with saev task semprobe score"):
        SemProbe().call(context(run), "sheets", SheetsConfig())


def test_a_heat_map_lies_where_the_model_looked() -> None:
    values = np.zeros((2, 2), np.float32)
    values[0, 1] = 1
    drawn = np.asarray(heat(Image.new("RGB", (60, 40), (128, 128, 128)), values, Box(10, 0, 50, 40), 1.0)).astype(int)
    assert (drawn[:20, 30:50] != drawn[30, 20]).any(-1).all()  # the hot patch
    assert (drawn[25:, 10:50] == drawn[30, 20]).all()  # cold ones
    assert (drawn[:, :10].max() < drawn[30, 20]).all()  # unseen: dimmed
