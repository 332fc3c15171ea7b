"""Single-feature probes against scikit-learn, one pair at a time; sparse probes; the task on a real run."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from saev_core.cli import main
from saev_core.errors import ConfigError, RunError, StoreError
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_tasks.probe1d import FitConfig, Probe1D
from saev_tasks.probe1d.gather import Gathered
from saev_tasks.probe1d.newton import RIDGE, Fitted, atoms_of, bias_only, fit
from saev_tasks.probe1d.pairs import best, probe_pairs
from saev_tasks.probe1d.sparse_probes import fit_dense, fit_sparse, judge
from saev_tasks.shared.ranking import Members, order, rank

N, F, C = 500, 12, 5


def sparse(seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Codes with ties, some negative, one dead feature and one that detects a class; classes of all sizes."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((n, F)) < np.linspace(0.02, 0.9, F), np.round(rng.lognormal(0, 1, (n, F)), 1), 0).astype(np.float32)
    x[:, 5] *= np.where(rng.random(n) < 0.3, -1, 1)
    y = rng.random((n, C)) < np.linspace(0.02, 0.5, C)
    x[:, 3] += 2 * y[:, 2]
    x[:, 0] = 0
    return x, y


def members(y: np.ndarray) -> Members:
    unit, klass = y.nonzero()
    return Members(np.searchsorted(unit, np.arange(len(y) + 1)), klass, y.shape[1])


def entries(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unit, feature = x.nonzero()
    value = x[unit, feature]
    by = order(feature, unit, value)
    return feature[by], unit[by], value[by]


def fitted(x: np.ndarray, y: np.ndarray, most: int) -> Fitted:
    feature, unit, value = entries(x)
    atoms = atoms_of(feature, value, x.shape[1], len(x), most)
    rounded = np.zeros(x.shape)
    rounded[unit, feature] = atoms.value[feature, atoms.of_entry]
    return fit(atoms, rounded.T @ y, y.sum(0))


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """Weight, bias and loss of every pair by scikit-learn, with the same small ridge, `[3, F, C]`; NaN for the dead feature."""
    x, y = sparse()
    out = np.full((3, F, C), np.nan)
    for f in range(1, F):
        scale = np.sqrt((x[:, f].astype(float) ** 2).sum() / (x[:, f] != 0).sum())
        column = x[:, [f]].astype(float)
        for c in range(C):
            model = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=2000).fit(column / scale, y[:, c])
            w, b = model.coef_[0, 0] / scale, model.intercept_[0]
            z = w * column[:, 0] + b
            out[:, f, c] = w, b, (np.logaddexp(0, z) - z * y[:, c]).sum()
    return out


def test_probes_are_those_of_scikit_learn(reference: np.ndarray) -> None:
    found = fitted(*sparse(), most=N)
    assert found.n_unfinished == 0
    np.testing.assert_allclose(found.loss, reference[2], rtol=1e-6)
    np.testing.assert_allclose(found.weight, reference[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.bias, reference[1], rtol=1e-3, atol=1e-3)


def test_the_ridge_hardly_moves_what_no_threshold_separates(reference: np.ndarray) -> None:
    x, y = sparse()
    size = y.sum(0).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the option for no penalty differs between versions
        free = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(x[:, [7]].astype(float), y[:, 2])
    z = free.decision_function(x[:, [7]])
    r = 1 - np.array([(np.logaddexp(0, z) - z * y[:, 2]).sum(), reference[2, 7, 2]]) / bias_only(size, N, size, N)[2]
    assert abs(r[0] - r[1]) < 1e-6


@pytest.mark.parametrize(("most", "error"), [(128, 1e-3), (32, 3e-3)])
def test_rounding_to_atoms_moves_r_by_little(reference: np.ndarray, most: int, error: float) -> None:
    x, y = sparse()
    size = y.sum(0).astype(float)
    found = fitted(x, y, most)
    assert np.nanmax(np.abs(found.loss - reference[2]) / bias_only(size, N, size, N)) < error


def test_atoms_keep_counts_and_means() -> None:
    x, _ = sparse()
    feature, _, value = entries(x)
    atoms = atoms_of(feature, value, F, N, 16)
    assert atoms.value.shape == (F, 17)
    assert (atoms.count.sum(1) == N).all()
    np.testing.assert_allclose((atoms.value * atoms.count).sum(1), x.sum(0, dtype=np.float64), rtol=1e-6)


def test_a_separable_pair_has_a_finite_probe_that_is_nearly_perfect() -> None:
    y = np.zeros((400, 2), bool)
    y[:50, 0], y[50:, 1] = True, True
    x = np.zeros((400, 2), np.float32)
    x[:50, 0] = np.linspace(1, 2, 50)  # fires only on the first class
    x[50:, 1] = 1.0
    found = fitted(x, y, 128)
    assert found.n_unfinished == 0
    assert np.isfinite(found.weight).all()
    base = bias_only(y.sum(0).astype(float), 400, y.sum(0).astype(float), 400)
    assert (1 - found.loss / base > 0.999).all()


def test_absent_and_complete_classes_and_dead_features_have_no_probe() -> None:
    x, y = sparse()
    y[:, 0], y[:, 1] = False, True
    found = fitted(x, y, 64)
    assert np.isnan(found.weight[:, :2]).all()
    assert np.isnan(found.weight[0]).all()
    assert np.isfinite(found.weight[1:, 2:]).all()


def test_rankings_are_those_of_scikit_learn() -> None:
    x, y = sparse()
    found = rank(*entries(x), members(y), F, 10)
    for f in range(F):
        for c in range(C):
            assert found.ap[f, c] == pytest.approx(average_precision_score(y[:, c], x[:, f]), abs=1e-9)
            assert found.auroc[f, c] == pytest.approx(roc_auc_score(y[:, c], x[:, f]), abs=1e-9)
    strongest = np.argsort(-x[:, 3], kind="stable")[:10]
    np.testing.assert_allclose(found.purity[3], y[strongest].mean(0))
    assert (found.purity[0] == 0).all()


def gathered(x: np.ndarray, y: np.ndarray, folder: Path, memory: int = 1 << 30) -> Gathered:
    codes = Gathered(x.shape[1], y.shape[1], folder, memory)
    for start in range(0, len(x), 70):
        part = slice(start, start + 70)
        unit, feature = x[part].nonzero()
        codes.add(y[part], unit, feature, x[part][unit, feature])
    return codes


def test_what_does_not_fit_into_memory_gives_the_same_bits(tmp_path: Path) -> None:
    (x, y), (held_x, held_y) = sparse(), sparse(1, 300)
    with gathered(x, y, tmp_path / "a") as train, gathered(held_x, held_y, tmp_path / "b") as val:
        plain = probe_pairs(train, val, k=10)
        assert not train.spilled
    with gathered(x, y, tmp_path / "c", 3000) as train, gathered(held_x, held_y, tmp_path / "d", 3000) as val:
        spilled = probe_pairs(train, val, k=10)
        assert train.spilled
    for name, values in plain.arrays().items():
        np.testing.assert_array_equal(values, spilled.arrays()[name])
    assert not list(tmp_path.iterdir())


def test_r_is_measured_on_validation_units_with_the_probe_and_the_share_of_training(tmp_path: Path) -> None:
    (x, y), (held_x, held_y) = sparse(), sparse(1, 300)
    with gathered(x, y, tmp_path / "a") as train, gathered(held_x, held_y, tmp_path / "b") as val:
        pairs = probe_pairs(train, val, k=10, most=500)
    # Without the dead feature, which has no probe.
    z = held_x.astype(float)[:, 1:, None] * pairs.weight[1:] + pairs.bias[1:]  # [n, F - 1, C]
    loss = (np.logaddexp(0, z) - z * held_y[:, None]).sum(0)
    base = -np.where(held_y, np.log(y.mean(0)), np.log(1 - y.mean(0))).sum(0)
    np.testing.assert_allclose(pairs.r[1:], 1 - loss / base, atol=1e-5)
    assert np.isnan(pairs.r[0]).all()
    assert best(pairs.r_train)[2, 0] == 3
    assert best(np.full((3, 1), np.nan)).tolist() == [[-1]]


def test_difference_is_that_of_the_means_over_the_standard_deviation(tmp_path: Path) -> None:
    x, y = sparse()
    with gathered(x, y, tmp_path / "a") as train, gathered(x, y, tmp_path / "b") as val:
        found = probe_pairs(train, val, k=10).difference
    expected = (x[y[:, 2]].mean(0) - x[~y[:, 2]].mean(0))[1:] / x.std(0)[1:]
    np.testing.assert_allclose(found[1:, 2], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(found[0]).all()


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    codes = Gathered(4, 1, tmp_path / "a")
    with pytest.raises(StoreError, match="not finite"):
        codes.add(np.ones((1, 1), bool), np.array([0]), np.array([1]), np.array([np.nan], np.float32))


def test_sparse_and_dense_probes_are_those_of_scikit_learn() -> None:
    x, y = sparse()
    columns = {f: (np.flatnonzero(x[:, f]), x[x[:, f] != 0, f]) for f in (3, 6, 9)}
    probe = fit_sparse([3, 6, 9], columns, y[:, 2], ridge=0.5)
    scale = np.array([np.sqrt((columns[f][1].astype(float) ** 2).mean()) for f in (3, 6, 9)])
    model = LogisticRegression(C=2, tol=1e-10, max_iter=2000).fit(x[:, [3, 6, 9]] / scale, y[:, 2])
    np.testing.assert_allclose(probe.scores(columns, N), model.decision_function(x[:, [3, 6, 9]] / scale), atol=1e-4)

    dense = fit_dense(torch.from_numpy(x[:, 1:]).double(), torch.from_numpy(y))
    z = (x[:, 1:] - x[:, 1:].mean(0)) / x[:, 1:].std(0, ddof=1)
    model = LogisticRegression(C=1, tol=1e-10, max_iter=2000).fit(z, y[:, 4])
    np.testing.assert_allclose(dense.scores(torch.from_numpy(x[:, 1:]).double())[:, 4], model.decision_function(z), atol=1e-3)


def test_a_sparse_probe_of_features_that_never_fire_says_the_share() -> None:
    true = np.arange(100) < 25
    probe = fit_sparse([7], {7: (np.zeros(0, int), np.zeros(0, np.float32))}, true)
    assert 1 / (1 + np.exp(-probe.bias)) == pytest.approx(0.25)
    assert fit_sparse([], {}, true).bias == pytest.approx(probe.bias)


def test_judging_takes_its_threshold_from_training_units() -> None:
    train, true = np.array([0.0, 1, 2, 3]), np.array([False, False, True, True])
    told = judge(train, true, np.array([1.5, 2.5, 2.1]), np.array([True, True, False]))
    assert told.f1 == pytest.approx(2 / 4)  # positive from 2 on: one true, one false, one missed
    assert told.accuracy == pytest.approx(2 / 3)
    assert told.auroc == pytest.approx(0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small real run on synthetic scenes."""
    folder = tmp_path_factory.mktemp("probe1d") / "run"
    options = ["train.n_tokens=60000", "train.n_init=1024", "train.batch_size=1024", "sae.options.d_sae=192", "sae.options.k=8"]
    assert main(["record", "--out", str(folder), "--dataset", "shapes:60", "--set", *options]) == 0
    assert main(["train", str(folder)]) == 0
    return Run.open(folder)


def test_the_task_writes_table_csv_and_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "probe1d", "fit", str(run.path), "--sparse", "1,3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["units"] == "patches"
    assert 0.2 < told["map"] <= 1
    assert told["probes"]["dense"]["auroc"] > told["probes"]["k1"]["auroc"] - 0.05
    assert set(told["coverage"]) == {"0.3", "0.5", "0.7"}
    rows = list(csv.DictReader(Path(told["csv"]).read_text().splitlines()))
    assert [row["class"] for row in rows] == [row["class"] for row in told["classes"]]
    assert len(rows[0]["k3_features"].split()) == 3
    assert run.result("probe1d")["map"] == told["map"]
    pairs = load_file(told["pairs"])
    assert pairs["ap"].shape == (192, 11)
    assert pairs["ap"].dtype == np.float32
    first = told["classes"][0]
    assert pairs["ap"][first["ap_feature"], 0] == pytest.approx(first["ap"])
    assert not list((run.path / "tasks" / "probe1d").glob(".*"))


def test_single_feature_probes_are_what_one_computes_by_hand(run: Run) -> None:
    cx = TaskContext(run, "probe1d")
    told = Probe1D().call(cx, "fit", FitConfig(sparse=(), units="images", concepts="labels"))
    from saev_core.activations.sources.stored_vectors import StoredVectors
    from saev_core.tasks.fit_probes import train_test_indices

    checkpoint, store = cx.checkpoint(), cx.store()
    _, val = train_test_indices(store.labels, 0.2, 0)
    (x,) = [batch.x for batch in StoredVectors(store, checkpoint.read).in_order(val, 1000)]
    peak = checkpoint.codes(x.flatten(0, 1)).dense().reshape(len(val), -1, 192).amax(1).numpy()
    for row in told["classes"]:
        if row["n_val"]:
            true = store.labels[val] == cx.dataset().classes.index(row["class"])
            assert true.sum() == row["n_val"]
            assert row["ap"] == pytest.approx(average_precision_score(true, peak[:, row["ap_feature"]]), abs=1e-5)


def test_truth_and_ignored_classes(run: Run) -> None:
    told = Probe1D().call(TaskContext(run, "probe1d"), "fit", FitConfig(sparse=(), concepts="truth"))
    assert "colour: red" in [row["class"] for row in told["classes"]]
    less = Probe1D().call(TaskContext(run, "probe1d"), "fit", FitConfig(sparse=(), ignore=("background",)))
    assert "background" not in [row["class"] for row in less["classes"]]
    assert less["n_units"]["val"] == sum(row["n_val"] for row in less["classes"])


def test_an_unknown_class_is_named(run: Run) -> None:
    with pytest.raises(ConfigError, match="--ignore bckground: no such class; there are background, circle"):
        Probe1D().call(TaskContext(run, "probe1d"), "fit", FitConfig(ignore=("bckground",)))


def test_one_class_is_refused_in_one_line(run: Run) -> None:
    from saev_core.data.shapes import Shapes

    with pytest.raises(RunError, match="show only one"):
        Probe1D().call(TaskContext(run, "probe1d"), "fit", FitConfig(ignore=tuple(Shapes.mask_classes[1:])))
