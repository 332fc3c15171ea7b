"""The table of features against plain float64 definitions, and its search, filter and sort."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from saev_core.config.run import RunConfig
from saev_core.errors import RunError
from saev_core.features.accumulate import FeatureAccumulator
from saev_core.features.index import FORMAT, FeatureIndex
from saev_core.features.naming.names import Name, Names
from saev_core.runs.run import Run
from saev_core.sae.codes import Codes
from saev_viz.html.feature_list import Asked
from saev_viz.run_view.feature_facts import known_truth, read_names, read_stability
from saev_viz.run_view.feature_table import NUMBER, FeatureTable, Query

N, T, D, K = 60, 4, 40, 6
CLASSES = ["tabby cat", "dog", "garden bird"]
NAMES = {3: ("a Wing of a bird", 0.91), 5: ("water", 0.7)}
TRUTH = {7: [("colour: red", 0.9)]}
NOTES = {9: "looks like a Zebra", 3: "feathers?"}


def values() -> np.ndarray:
    """`[N, T, D]`; feature 0 never fires, 1 fires on dogs alone, 2 on a single picture."""
    rng = np.random.default_rng(0)
    z = rng.gamma(2.0, 1.0, (N, T, D)) * (rng.random((N, T, D)) < 0.1)
    z[:, :, :3] = 0
    z[1::3, 0, 1] = 2.0 + np.arange(len(z[1::3]))
    z[4, 2, 2] = 1.5
    return np.asarray(z.astype(np.float32))


def labels() -> np.ndarray:
    return np.where(np.arange(N) == 8, -1, np.arange(N) % 3).astype(np.int32)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    found = FeatureAccumulator(D, T, K, n_samples=8, n_labels=3, d_embedding=5)
    z = torch.from_numpy(values())
    embedding = np.random.default_rng(1).standard_normal((N, 5)).astype(np.float32)
    found.add(np.arange(N), Codes.from_dense(z.reshape(-1, D)), labels(), embedding)
    path = tmp_path_factory.mktemp("index") / "topk.zarr"
    grid = {"rows": 2, "cols": 2, "patch_px": 8}
    found.write(path, {"saev_features": FORMAT, "checkpoint": "", "grid": grid, "tokens": "patches", "percentile": 99.0}, (50.0, 99.0))
    return FeatureIndex.open(path)


@pytest.fixture(scope="module")
def table(index: FeatureIndex) -> FeatureTable:
    stability = np.linspace(0, 1, D).astype(np.float32)
    stability[0] = np.nan
    return FeatureTable.of(index, CLASSES, labels=labels(), names=NAMES, truth=TRUTH, stability=stability)


def found(table: FeatureTable, text: str, **how: object) -> set[int]:
    return {int(feature) for feature in table.find(Query(text, **how), NOTES)}  # type: ignore[arg-type]


def test_purity_is_the_share_of_the_commonest_label_among_the_top_pictures(table: FeatureTable) -> None:
    peak = values().max(1).astype(np.float64)
    for feature in range(D):
        top = [i for i in np.argsort(-peak[:, feature], kind="stable")[:K] if peak[i, feature] > 0]
        known = Counter(int(labels()[i]) for i in top if labels()[i] >= 0)
        want = max(known.values()) / K if known else np.nan
        np.testing.assert_allclose(table.columns["purity"].values[feature], want, atol=1e-6)
    assert table.columns["purity"].values[1] == 1
    assert table.title(1) == "dog"


def test_lift_is_the_share_of_a_label_among_firing_pictures_over_its_share_of_all_smoothed_by_five(table: FeatureTable) -> None:
    fires, of = values().max(1) > 0, labels()
    base = np.array([(of == label).sum() for label in range(3)]) / (of >= 0).sum()
    for feature in range(D):
        count = np.array([(fires[:, feature] & (of == label)).sum() for label in range(3)], float)
        lift = (count + 5 * base) / (count.sum() + 5) / base
        want = lift[count > 0].max() if count.any() else np.nan
        np.testing.assert_allclose(table.columns["lift"].values[feature], want, rtol=1e-6)


def test_the_best_label_is_the_first_of_those_told_on_the_features_page(index: FeatureIndex) -> None:
    best, lift = index.best_labels
    for feature in range(D):
        told = index.labels(feature, 1)
        assert int(best[feature]) == (told[0].label if told else -1)
        if told:
            assert FeatureTable.of(index).columns["lift"].at(feature) == told[0].lift
            assert lift[feature] == pytest.approx(told[0].lift, rel=1e-5)


@pytest.mark.parametrize("column", ["max", "mean", "frequency", "monosemanticity", "purity", "lift", "stability", "name_score"])
@pytest.mark.parametrize("ascending", [False, True])
def test_features_without_a_value_are_sorted_last_and_left_out_by_a_range(table: FeatureTable, column: str, ascending: bool) -> None:
    known = table.columns[column].values
    order = known[table.find(Query(sort=column, ascending=ascending, alive=False))].astype(float)
    n = int(np.isfinite(known).sum())
    assert len(order) == D
    assert np.isfinite(order[:n]).all()
    assert np.isnan(order[n:]).all()
    steps = np.diff(order[:n])
    assert (steps >= 0).all() if ascending else (steps <= 0).all()
    inside = table.find(Query(ranges={column: (-np.inf, np.inf)}, alive=False))
    assert len(inside) == n


def test_equal_values_keep_the_order_of_their_numbers(table: FeatureTable) -> None:
    order = table.find(Query(sort="name_score", alive=False)).tolist()
    assert order == [3, 5, *(i for i in range(D) if i not in NAMES)]
    assert table.find(Query(sort=NUMBER, ascending=True, alive=False)).tolist() == list(range(D))
    assert table.find(Query(sort=NUMBER, alive=False)).tolist() == list(range(D))[::-1]


def test_a_search_finds_names_labels_truth_and_notes_whatever_the_case(table: FeatureTable) -> None:
    assert found(table, "wing") == found(table, "WING") == found(table, "name:wing") == {3}
    assert found(table, '"wing of a"') == {3}
    assert found(table, "zebra") == found(table, "note:zebra") == {9}
    assert found(table, "label:zebra") == found(table, "name:feathers") == set()
    assert found(table, "colour:") == {7}
    assert 1 in found(table, "dog") == found(table, "label:dog")
    assert 1 not in found(table, "label:cat")
    assert 3 in found(table, "bird")
    assert found(table, "wing zebra") == set()


def test_a_label_is_found_where_a_fifth_of_the_top_pictures_carry_it(table: FeatureTable, index: FeatureIndex) -> None:
    for number, word in enumerate(("tabby", "dog", "garden")):
        top = np.where(index.top_index >= 0, labels()[index.top_index], -1)
        some = (top >= 0).sum(1)
        want = {f for f in range(1, D) if some[f] and (top[f] == number).sum() >= max(0.2 * some[f], 1)}
        assert found(table, f"label:{word}") == want


def test_a_search_for_a_number_finds_that_feature_and_comparisons_narrow(table: FeatureTable) -> None:
    assert found(table, "#12") == found(table, "12") == {12}
    assert found(table, "0") == set()
    assert found(table, "0", alive=False) == {0}
    often = table.columns["frequency"].values
    assert found(table, "frequency<10%") == found(table, "freq<0.1") == {f for f in range(D) if 0 < often[f] < 0.1}
    assert found(table, "max>=2 mean<3") == {
        f for f in range(1, D) if table.columns["max"].values[f] >= 2 and table.columns["mean"].values[f] < 3
    }
    assert found(table, "name_score>0.5") == {3, 5}


def test_an_unknown_number_is_named_with_those_there_are(table: FeatureTable) -> None:
    with pytest.raises(ValueError, match=r"unknown column 'bogus'; choose one of max, mean, frequency"):
        table.find(Query("bogus<3"))
    with pytest.raises(ValueError, match="unknown column 'ma x'"):
        table.find(Query(sort="ma x"))


@pytest.mark.parametrize("text", ["frequency<", "max>=", "max>-", '"', "name:", "label:", "#"])
def test_what_is_only_half_typed_hides_nothing_yet(table: FeatureTable, text: str) -> None:
    assert len(found(table, text)) == D - 1


@pytest.mark.parametrize("text", ["frequency<1e", "<3", "max=3", "a" * 5000, "[a", "\\"])
def test_what_looks_like_nothing_known_is_a_word_that_no_feature_has(table: FeatureTable, text: str) -> None:
    assert found(table, text) == set()


def test_of_a_box_on_the_map_and_a_range_both_must_hold(table: FeatureTable) -> None:
    asked = Asked(box={"mean": [1.0, 3.0], "frequency": [0, 1]}, ranges={"mean": [2.0, None], "max": [None, 8.0]})
    assert asked.query.ranges == {"mean": (2.0, 3.0), "frequency": (0.0, 1.0), "max": (-np.inf, 8.0)}
    mean, most = table.columns["mean"].values, table.columns["max"].values
    want = {f for f in range(1, D) if 2 <= mean[f] <= 3 and most[f] <= 8}
    assert {int(f) for f in table.find(asked.query)} == want
    assert 0 < len(want) < D - 1


def test_every_column_says_what_it_is(table: FeatureTable) -> None:
    for column in table.columns.values():
        assert column.values.shape == (D,)
        assert column.help.endswith(".")
        assert 30 < len(column.help) < 300


def test_without_labels_there_is_nothing_said_of_them(index: FeatureIndex) -> None:
    table = FeatureTable.of(index, labels=np.full(N, -1, np.int32))
    assert "purity" not in table.columns
    assert table.title(1) == ""
    assert len(table.find(Query("label:dog"))) == 0


def test_names_are_read_where_they_are_if_they_are_of_this_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "topk.names.json"
    assert read_names(path) == {}
    Names("labels", "a", 0.8, 3, {3: Name("wing", 0.9, 12, "tail")}, D, D, 0, 10, 10).save(path)
    assert read_names(path) == {3: ("wing", 0.9)}
    assert read_names(path, "a") == {3: ("wing", 0.9)}
    assert read_names(path, "b") == {}
    path.write_text('{"names": [1]}')
    with pytest.raises(RunError, match=r"cannot be read .*redo it with saev index RUN --names"):
        read_names(path)


def test_known_truth_and_stability_are_those_of_this_sae(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    assert known_truth(run, "a") == {}
    assert read_stability(run, "a") is None
    rows = [
        {"factor": "colour", "value": "red", "feature": 4, "f1": 0.7},
        {"factor": "shape", "value": "star", "feature": 4, "f1": 0.9},
        {"factor": "shape", "value": "ring", "feature": 5, "f1": 0.3},
    ]
    run.write_result("recovery", {"a": {"rows": rows}})
    assert known_truth(run, "a") == {4: [("shape: star", 0.9), ("colour: red", 0.7)]}
    assert known_truth(run, "b") == {}
    folder = run.path / "results" / "stability"
    folder.mkdir()
    np.save(folder / "a.npy", np.array([0.5, np.nan], np.float32))
    np.testing.assert_array_equal(read_stability(run, "a"), np.array([0.5, np.nan], np.float32))
    (folder / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(RunError, match="cannot be read"):
        read_stability(run, "a")
