"""`saev evaluate` on a run with many SAEs: front, best, seeds, consensus; and nothing of it for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Saev
from PIL import Image

from saev_core.cli.comparison_tables import stability_rows
from saev_core.config.base import validate
from saev_core.config.run import RunConfig
from saev_core.evaluation.seeds import is_consensus
from saev_core.pipeline.pipeline import Pipeline
from saev_core.runs.run import Run
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint
from saev_core.training.train import TrainSpec, train

SETTINGS = {"record": {"n_images": 64}, "train": {"n_tokens": 256 * 40, "batch_size": 256, "n_init": 2048}, "index": {"top_k": 4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four SAEs that were trained together: three seeds of TopK, one jumprelu."""
    torch.manual_seed(0)
    run = Run.create(tmp_path_factory.mktemp("many") / "run", validate(RunConfig, SETTINGS))
    work = Pipeline(run)
    work.run_stages(["record"])
    source = work.workspace.source(run.config.read)
    trainees = [
        TrainSpec(f"topk-k4-s{s}", make_sae("topk:4", source.d_model, seed=s, n_vectors=source.n_vectors), seed=s) for s in (1, 2, 3)
    ]
    trainees.append(TrainSpec("jumprelu-s1", make_sae("jumprelu:8", source.d_model, seed=1, n_vectors=source.n_vectors), seed=1))
    train(source, trainees, run.config.train, out=run.sae_dir)
    return run


def evaluated(run: Run, **settings: float) -> str:
    """What the stage says under other settings."""
    said: list[str] = []
    Pipeline(Run.create(run.path, validate(RunConfig, {**SETTINGS, "evaluate": settings})), say=said.append).run_stages(["evaluate"])
    return "\n".join(said)


@pytest.mark.slow
def test_many_saes_are_compared_and_the_next_call_finds_it_done(run: Run, saev: Saev) -> None:
    first = saev("evaluate", run.path, "--set", "evaluate.consensus=0.3")
    assert first.returncode == 0, first.stderr
    names = ["topk-k4-consensus", "topk-k4-s1", "topk-k4-s2", "topk-k4-s3", "jumprelu-s1"]
    assert sorted(run.sae_names) == sorted(names)
    assert [name for name in names if is_consensus(run, name)] == ["topk-k4-consensus"]

    ranked, stable = run.result("pareto"), run.result("stability")
    for point in ranked["points"]:
        card = Checkpoint.load(run.sae_dir(point["name"])).card
        assert card["images"] == "heldout"
        assert (point["nmse"], point["l0"], point["dead"]) == (card["nmse"], card["l0"], card["dead"])
    assert [point["l0"] for point in ranked["points"]] == sorted(point["l0"] for point in ranked["points"])
    assert run.best == ranked["best"]
    assert Run.open(run.path).best == ranked["best"]
    with Image.open(run.results_path("pareto").with_suffix(".png")) as picture:
        assert picture.size == (1800, 1120)

    entry = stable["topk-k4"]
    assert entry["seeds"] == [1, 2, 3]
    assert len(entry["pairs"]) == 3
    assert entry["consensus"]["nmse"] > entry["consensus"]["parents_nmse"], "fewer features at the same k"
    per = np.load(run.path / "results" / "stability" / "topk-k4-s1.npy")
    frequency = np.load(run.path / "results" / "frequency" / "topk-k4-s1.npy")
    assert (np.isnan(per) == (frequency == 0)).all()
    assert (frequency > 0).sum() == entry["n_live"][0]
    for text in ("jumprelu-s1", "* best", "seed agreement", "consensus"):
        assert text in first.stdout

    again = saev("evaluate", run.path, "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["pareto"] == ranked
    assert told["stability"] == stable
    said = evaluated(run, consensus=0.3)
    assert said.count("up to date, skipping") == 6
    assert "seed agreement of topk-k4 up to date" in said

    # Another bound chooses another best one, and nothing is measured again.
    low = min(point["l0"] for point in ranked["points"])
    assert evaluated(run, consensus=0.3, best_l0=low).count("up to date, skipping") == 6
    assert run.result("pareto")["best_l0"] == low
    assert "no SAE is among those with L0 <= 0.5" in evaluated(run, consensus=0.3, best_l0=0.5)
    assert run.best is None

    # A threshold that no feature reaches: the consensus of before goes, and the reason stands there.
    said = evaluated(run, consensus=0.9999)
    assert "no consensus for topk-k4: topk-k4-s1, topk-k4-s2, topk-k4-s3 have no feature in common above a cosine of 0.9999" in said
    assert "topk-k4-consensus" not in run.sae_names
    table = stability_rows(run.result("stability"))[0]
    assert table[0][0] == "topk-k4"
    assert "consensus" not in {point["name"] for point in run.result("pareto")["points"]}


@pytest.mark.slow
def test_nothing_of_it_appears_for_one_sae(run: Run, tmp_path: Path, saev: Saev) -> None:
    alone = Run.create(tmp_path / "run", run.config.model_copy(update={"store": str(run.path / "store")}))
    Checkpoint.load(run.sae_dir("jumprelu-s1")).save(alone.sae_dir("jumprelu-s1"))
    done = saev("evaluate", alone.path)
    assert done.returncode == 0, done.stderr
    assert "best" not in done.stdout
    assert alone.best == "jumprelu-s1"
    assert not {"pareto.json", "pareto.png", "stability.json", "frequency", "stability"} & {
        p.name for p in (alone.path / "results").iterdir()
    }


def test_best_is_unknown_before_several_were_evaluated(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    assert run.best is None
    for name in ("a", "b"):
        run.sae_dir(name).mkdir(parents=True)
        (run.sae_dir(name) / "checkpoint.json").write_text("{}")
    assert run.best is None
    run.write_result("pareto", {"best": "b"})
    assert run.best == "b"
    run.write_result("pareto", {"best": "gone"})
    assert run.best is None
