"""`TrackerContract`: tests that every tracker plugin must pass, on real training runs: complete, failed and resumed.

class TestMine(TrackerContract):
    tracker = Mine

    def logged(self, run):                 # optional: the metrics it wrote, read back from its files
        return {"topk": {10: {"nmse": 0.5}}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from saev_core.activations.sources.stored import StoreSource
from saev_core.config.base import PluginConfig
from saev_core.config.run import RunConfig
from saev_core.config.stages import ReadConfig, TrainConfig
from saev_core.evaluation.heldout import Heldout
from saev_core.runs.hooks import Hooks, Observers, hookimpl
from saev_core.runs.run import Run
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing.stores_in_memory import store_of
from saev_core.training.train import TrainSpec, train
from saev_core.types import Site

Logged = dict[str, dict[int, dict[str, float]]]
"""SAE -> step -> metric -> value."""

CFG = TrainConfig(batch_size=64, n_tokens=64 * 40, lr=1e-3, log_every=4, checkpoint_every=10, evaluate_every=20)
NAMES = ("one", "two")


class Stop(Exception):
    """Aborts training midway."""


class Heard:
    """Records the events, for comparison."""

    def __init__(self) -> None:
        self.trained: Logged = {}
        self.heldout: Logged = {}

    @hookimpl
    def stepped(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        self.trained.setdefault(name, {})[step] = dict(metrics)

    @hookimpl
    def evaluated(self, name: str, step: int, card: Mapping[str, Any]) -> None:
        self.heldout.setdefault(name, {})[step] = {key: card[key] for key in ("nmse", "l0", "dead")}


class TrackerContract:
    """Tests of a tracker. `logged` and `logged_heldout` let them compare its output with the events it received."""

    tracker: ClassVar[Callable[..., object]]
    """The tracker's class, or a function that takes its Config."""
    config: ClassVar[PluginConfig | None] = None
    """Its options; by default `Config()`."""

    def logged(self, run: Run) -> Logged | None:
        """Training metrics that the tracker wrote for `run`; None: not tested. Metrics it omits are not compared."""
        return None

    def logged_heldout(self, run: Run) -> Logged | None:
        """The same for metrics on held-out images."""
        return None

    def make(self) -> object:
        found = next(vars(klass)["tracker"] for klass in type(self).__mro__ if "tracker" in vars(klass))
        # A plain function in a class body would become a method.
        factory: Any = found.__func__ if isinstance(found, staticmethod) else found
        return factory(self.config or factory.Config())

    def test_its_hooks_are_spelt_as_ours(self) -> None:
        observers = Observers(discover=False)
        observers.add(self.make())  # a misspelt hook or argument fails here
        heard = [name for name in vars(Hooks) if not name.startswith("_") and getattr(observers._manager.hook, name).get_hookimpls()]
        assert heard, "it implements no hook: mark its methods with saev_core.hookimpl"

    def test_it_follows_a_run_to_its_end(self, tmp_path: Path) -> None:
        run, heard = self._run(tmp_path), Heard()
        self.follow(run, heard)
        self._agree(run, heard)

    def test_it_follows_a_run_that_fails_and_goes_on_in_the_same_one(self, tmp_path: Path) -> None:
        run, heard = self._run(tmp_path), Heard()
        with pytest.raises(Stop):
            self.follow(run, heard, until=24)
        self._agree(run, heard)  # it ended normally, so its output is complete
        # A new process resumes from the checkpoint of step 20, so that step 24 is logged again.
        again = Heard()
        self.follow(run, again)
        assert min(again.trained["one"]) == 24
        self._agree(run, _joined(heard, again))

    def test_it_survives_a_run_that_trains_nothing(self, tmp_path: Path) -> None:
        run, tracker = self._run(tmp_path), self.make()
        observers = Observers(tracker, discover=False)
        observers.emit("run_started", run=run, config=run.config.model_dump(mode="json"))
        observers.emit("recorded", run=run, store=str(tmp_path / "store"), n_images=3, n_missing=1)
        observers.emit("indexed", run=run, name="one", path=run.features_path("one"))
        observers.emit("run_ended", run=run, error=None)
        self._alive(observers, tracker)

    def follow(self, run: Run, heard: Heard, until: int = 0) -> None:
        """Train, or resume, two SAEs in `run`, observed by a new tracker and `heard`; fail at step `until`, if given."""
        tracker = self.make()
        observers = Observers(tracker, heard, discover=False)
        observers.emit("run_started", run=run, config=run.config.model_dump(mode="json"))

        def emit(hook: str, **arguments: Any) -> None:
            observers.emit(hook, run=run, **arguments)
            if hook == "stepped" and arguments["step"] == until and arguments["name"] == NAMES[-1]:
                raise Stop

        error: BaseException | None = None
        try:
            train(_source(run.path.parent / "store"), _trainees(), CFG, out=run.sae_dir, emit=emit, heldout_of=Heldout.of)
        except Stop as stop:
            error = stop
            raise
        finally:
            observers.emit("run_ended", run=run, error=error)
            self._alive(observers, tracker)

    def _run(self, folder: Path) -> Run:
        torch.manual_seed(0)
        store_of(folder / "store", {Site(10): torch.randn(40, 8, 16)})
        return Run.create(folder / "run", RunConfig(train=CFG))

    def _agree(self, run: Run, heard: Heard) -> None:
        for wrote, told in ((self.logged(run), heard.trained), (self.logged_heldout(run), heard.heldout)):
            if wrote is None:
                continue
            assert {name: sorted(steps) for name, steps in wrote.items()} == {name: sorted(steps) for name, steps in told.items()}
            for name, steps in wrote.items():
                for step, metrics in steps.items():
                    assert metrics, f"{name} has no number at step {step}"
                    for key in metrics.keys() & told[name][step].keys() - {"vectors_per_s"}:
                        assert metrics[key] == pytest.approx(told[name][step][key], rel=1e-6, abs=1e-12), f"{name}, step {step}: {key}"

    def _alive(self, observers: Observers, tracker: object) -> None:
        # An observer that raises is unregistered; it is still registered, so none of its hooks raised.
        assert observers._manager.is_registered(tracker), "a hook raised; the log has its traceback"


def _joined(*parts: Heard) -> Heard:
    """The events of several processes, later ones taking precedence."""
    whole = Heard()
    for part in parts:
        for mine, theirs in ((whole.trained, part.trained), (whole.heldout, part.heldout)):
            for name, steps in theirs.items():
                mine.setdefault(name, {}).update(steps)
    return whole


def _source(url: Path) -> StoreSource:
    from saev_core.activations.store.store import ActivationStore

    return StoreSource(ActivationStore.open(url), ReadConfig())


def _trainees() -> list[TrainSpec]:
    return [TrainSpec(name, TopK(TopKConfig(d_in=16, d_sae=24, k=3)), seed=seed) for seed, name in enumerate(NAMES)]
