"""Evaluation while training: on images that training never sees, and without a trace in what is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.store import ActivationStore
from saev_core.config.run import RunConfig
from saev_core.config.stages import EvaluateConfig, ReadConfig, TrainConfig
from saev_core.errors import TrainError
from saev_core.evaluation.heldout import Heldout
from saev_core.evaluation.measure import evaluate
from saev_core.runs.hooks import Observers
from saev_core.runs.metrics_log import JsonLines
from saev_core.runs.run import Run
from saev_core.sae.base import make_sae
from saev_core.support.progress import Meter
from saev_core.testing.sae_contract import ArraySource, planted
from saev_core.testing.stores_in_memory import store_of
from saev_core.training.train import TrainSpec, train
from saev_core.types import Site

READ = ReadConfig(layer=1, heldout=0.25, n_threads=1)
CFG = TrainConfig(batch_size=40, n_tokens=40 * 30, n_init=200, checkpoint_every=10, log_every=10)
SOME = {"evaluate_every": 7, "evaluate_vectors": 50}
VARIANTS = ("topk:3", "relu", "batchtopk:3", "jumprelu:4", "gated", "matryoshka", "mp:3", "kmeans", "archetypal:3")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    """60 images of 6 patches."""
    x = planted(60 * 6, 12)[0].view(60, 6, 12)
    return store_of(tmp_path / "store", {Site(1): x}, dtype="float32")


def group(*names: str) -> list[TrainSpec]:
    return [TrainSpec(name.replace(":", ""), make_sae(name, 12, seed=i, n_vectors=9000), seed=i) for i, name in enumerate(names)]


class Told:
    """Keeps what is emitted."""

    def __init__(self) -> None:
        self.cards: dict[tuple[str, int], dict[str, Any]] = {}

    def __call__(self, hook: str, **arguments: Any) -> None:
        if hook == "evaluated":
            self.cards[arguments["name"], arguments["step"]] = arguments["card"]


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_leaves_no_mark_on_any_variant(store: ActivationStore, name: str) -> None:
    plain = train(StoreSource(store, READ), group(name), CFG)[0].sae.state_dict()
    told = Told()
    watched = train(StoreSource(store, READ), group(name), CFG.model_copy(update=SOME), emit=told, heldout_of=Heldout.of)[
        0
    ].sae.state_dict()
    assert len(told.cards) == 5
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_the_sample_is_of_held_out_images_alone(store: ActivationStore) -> None:
    source = StoreSource(store, READ)
    held = np.flatnonzero(heldout_mask(60, 0.25, 0))
    theirs = {tuple(row.tolist()) for batch in source.in_order(held, 8) for row in batch.x.reshape(-1, 12)}
    sample = source.heldout_sample(50, seed=3)
    assert sample.shape == (50, 12)
    rows = {tuple(row.tolist()) for row in sample}
    assert len(rows) == 50
    assert rows <= theirs
    assert torch.equal(sample, source.heldout_sample(50, seed=3))
    assert not torch.equal(sample, source.heldout_sample(50, seed=4))
    assert len(source.heldout_sample(10_000, seed=0)) == len(held) * 6


def test_on_all_held_out_vectors_it_is_the_evaluation_card(store: ActivationStore) -> None:
    told = Told()
    cfg = CFG.model_copy(update={"evaluate_every": 15, "evaluate_vectors": 10_000})
    for checkpoint in train(StoreSource(store, READ), group("topk:3", "batchtopk:3", "gated"), cfg, emit=told, heldout_of=Heldout.of):
        name = {"topk": "topk3", "batchtopk": "batchtopk3", "gated": "gated"}[checkpoint.ref["name"]]
        card = evaluate(checkpoint, StoreSource(store, READ), EvaluateConfig())
        last = told.cards[name, 30]
        assert last["images"] == "heldout"
        for key in ("nmse", "l0", "dead", "n_vectors"):
            assert last[key] == pytest.approx(card[key], rel=1e-6), key
    assert {step for _, step in told.cards} == {15, 30}


class Killed(Exception):
    """What ends a run in the middle."""


def test_a_killed_run_goes_on_to_the_same_bits_and_cards(store: ActivationStore, tmp_path: Path) -> None:
    cfg = CFG.model_copy(update=SOME)
    whole, resumed = Told(), Told()
    want = train(StoreSource(store, READ), group("topk:3", "jumprelu:4"), cfg, emit=whole, heldout_of=Heldout.of)

    class Stop(Meter):
        steps = 0

        def update(self, n: int = 1, **facts: float) -> None:
            Stop.steps += 1
            if Stop.steps == 18:
                raise Killed

    with pytest.raises(Killed):
        train(
            StoreSource(store, READ),
            group("topk:3", "jumprelu:4"),
            cfg,
            out=tmp_path / "sae",
            track=lambda *_: Stop(),
            heldout_of=Heldout.of,
        )
    # How often it is evaluated may change between a run and its resumption.
    cfg = cfg.model_copy(update={"evaluate_every": 14})
    have = train(StoreSource(store, READ), group("topk:3", "jumprelu:4"), cfg, out=tmp_path / "sae", emit=resumed, heldout_of=Heldout.of)
    for a, b in zip(want, have, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.sae.state_dict().values(), b.sae.state_dict().values(), strict=True))
    assert resumed.cards["topk3", 14] == whole.cards["topk3", 14]
    assert resumed.cards["topk3", 30] == whole.cards["topk3", 30]


def test_the_tracker_writes_it_and_the_progress_shows_it(store: ActivationStore, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    observers, shown = Observers(JsonLines(), discover=False), []

    class Shown(Meter):
        def update(self, n: int = 1, **facts: float) -> None:
            shown.append(facts)

    def emit(hook: str, **arguments: Any) -> None:
        observers.emit(hook, run=run, **arguments)

    train(
        StoreSource(store, READ),
        group("topk:3", "relu"),
        CFG.model_copy(update=SOME),
        emit=emit,
        track=lambda *_: Shown(),
        heldout_of=Heldout.of,
    )
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    found = [line for line in lines if line["event"] == "evaluated"]
    assert [(line["sae"], line["step"]) for line in found] == [(name, step) for step in (7, 14, 21, 28, 30) for name in ("topk3", "relu")]
    assert set(found[0]) == {"time", "event", "sae", "step", "nmse", "l0", "dead"}
    mean = [facts["heldout_nmse"] for facts in shown if "heldout_nmse" in facts]
    assert mean[-1] == pytest.approx((found[-1]["nmse"] + found[-2]["nmse"]) / 2)


def test_without_held_out_images_it_refuses_before_the_first_step(store: ActivationStore) -> None:
    cfg = CFG.model_copy(update=SOME)
    with pytest.raises(TrainError, match=r"set read\.heldout above 0"):
        train(StoreSource(store, READ.model_copy(update={"heldout": 0.0})), group("topk:3"), cfg, heldout_of=Heldout.of)
    with pytest.raises(TrainError, match="needs held-out images"):
        train(ArraySource(planted(400, 12)[0]), group("topk:3"), cfg, heldout_of=Heldout.of)
