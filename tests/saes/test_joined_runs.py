"""Transcoder and crosscoder through the real command line, on a store recorded at two blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.config.stages import EvaluateConfig
from saev_core.errors import StoreError
from saev_core.evaluation.measure import measure
from saev_core.features.index import FeatureIndex
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint
from saev_saes.crosscoder import Crosscoder
from saev_saes.transcoder import Transcoder

STEPS = ["--n-tokens", "40000", "--batch-size", "256", "--set", "sae.d_sae=128", "train.checkpoint_every=1000"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 pictures at blocks 1 and 3 of `tiny`."""
    path = tmp_path_factory.mktemp("joined") / "run"
    assert main(["record", str(path), "--n-images", "60", "--record-layers", "1", "3"]) == 0
    return Run.open(path).store_url


@pytest.fixture(scope="module")
def transcoded(store: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A transcoder from block 1 to 3, trained, evaluated and indexed."""
    path = str(tmp_path_factory.mktemp("transcoded") / "run")
    assert main(["train", path, "--store", store, "--sae", "transcoder:16", "--layer", "1,3", *STEPS]) == 0
    assert main(["evaluate", path]) == 0
    assert main(["index", path]) == 0
    return Run.open(path)


def test_a_transcoder_is_trained_evaluated_and_indexed(transcoded: Run, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Checkpoint.load(transcoded.sae_dir("transcoder"))
    assert isinstance(checkpoint.sae, Transcoder)
    assert checkpoint.site == "resid.1+3"
    assert checkpoint.sae.W_dec.shape == (128, 128)
    assert 0 < checkpoint.card["nmse"] < 0.5
    assert "nmse_by_site" not in checkpoint.card
    assert FeatureIndex.open(transcoded.features_path("transcoder"), checkpoint).d_sae == 128
    assert 0 < transcoded.result("recovery")["transcoder"]["mean"] <= 1
    assert main(["train", str(transcoded.path)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_a_crosscoder_is_trained_evaluated_and_says_what_is_shared(store: str, tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    assert main(["train", path, "--store", store, "--sae", "crosscoder:16", "--layer", "1,3", *STEPS]) == 0
    assert main(["evaluate", path]) == 0
    assert main(["index", path]) == 0
    run = Run.open(path)
    checkpoint = Checkpoint.load(run.sae_dir("crosscoder"))
    assert isinstance(checkpoint.sae, Crosscoder)
    card = checkpoint.card
    assert max(card["nmse_by_site"]) < 0.6
    assert len(card["exclusive"]) == 2
    assert 0 <= card["shared"] <= 1
    assert checkpoint.sae.by_site().W_dec.shape == (2, 128, 128)
    assert FeatureIndex.open(run.features_path("crosscoder"), checkpoint).d_sae == 128


@pytest.mark.parametrize("sae", ["transcoder", "crosscoder"])
def test_a_single_block_is_refused_in_one_line(store: str, sae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "run"), "--store", store, "--sae", sae, "--layer", "1", *STEPS]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "as --layer 6,10" in said


def test_it_is_refused_before_anything_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--out", str(tmp_path / "new"), "--n-images", "20", "--sae", "transcoder"]) == 2
    assert "as --layer 6,10" in capsys.readouterr().err
    assert not (tmp_path / "new/store").exists()


def test_a_store_that_lacks_one_of_the_blocks_is_refused_in_one_line(transcoded: Run, tmp_path: Path) -> None:
    assert main(["record", str(tmp_path / "run"), "--n-images", "60", "--record-layers", "3"]) == 0
    checkpoint = Checkpoint.load(transcoded.sae_dir("transcoder"))
    store = ActivationStore.open(Run.open(tmp_path / "run").store_url)
    checkpoint.check(store)  # the same pictures and model: what else it holds is no part of that
    with pytest.raises(StoreError, match=r"holds resid.3, not resid.1; .*saev record --record-layers 1"):
        measure(checkpoint, StoredVectors(store, checkpoint.read), EvaluateConfig())
