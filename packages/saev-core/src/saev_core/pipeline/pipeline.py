"""The stages of a run: record, train, evaluate, index, report. Each is skipped when what it makes is already there and valid.

    images -> VisionModel -> ActivationStore -> train -> Checkpoint -> FeatureIndex -> report

A stage reads the artifact before it, writes its own once, and never touches an upstream one. What was made from
what is kept in the run's `stages.json`: a stage's key is a digest of its settings and of the fingerprints it read.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from saev_core.activations.recording.identity import dataset_ref, model_ref
from saev_core.activations.recording.plan import n_recorded
from saev_core.activations.recording.record import record
from saev_core.activations.sources.base import ActivationSource
from saev_core.activations.sources.expected import expected
from saev_core.activations.sources.image_vectors import ImageVectors
from saev_core.activations.sources.live import LiveSource
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig
from saev_core.data.dataset import ImageDataset, knows_truth, load_dataset
from saev_core.errors import NoViewerError, RunError, TrainError
from saev_core.evaluation.heldout import Heldout
from saev_core.evaluation.measure import measure
from saev_core.evaluation.pareto import EvaluatedSAE, pareto
from saev_core.evaluation.seeds import Measured, compare_seeds, frequency_path, is_consensus, keep_frequency, seeds_of, write_stability
from saev_core.features.build import index_features
from saev_core.features.index import FeatureIndex
from saev_core.models.base import VisionModel, load_model
from saev_core.pipeline.evaluate_stage import card_text
from saev_core.pipeline.names_stage import NamesStage
from saev_core.plugins.registry import resolve
from saev_core.runs.hooks import Observers
from saev_core.runs.run import STAGES, Run
from saev_core.runs.sweep import Point, expand
from saev_core.runs.viewer import find_viewer
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.initialise import CALIBRATE_ON
from saev_core.support.devices import pick_device
from saev_core.support.progress import Track, silent
from saev_core.training.passes import Pass, limit_of, make_passes, plan_of
from saev_core.types import Site
from saev_core.workspace import open_store

if TYPE_CHECKING:
    from saev_core.data.dataset import KnownTruth

log = logging.getLogger(__name__)


class Pipeline(NamesStage):
    """One run's work. `run_stages` does what is asked; the stages can also be called one by one."""

    def __init__(
        self,
        run: Run,
        *,
        track: Track = silent,
        say: Callable[[str], None] = log.info,
        observers: Iterable[object] = (),
        only: Sequence[str] = (),
    ) -> None:
        """
        Args:
            track: told how far each stage is.
            say: given one line for a person whenever a stage is done or skipped.
            observers: hook implementations beside the run's trackers and the installed `saev.hooks`.
            only: SAEs to index; none named: all up to four, of more the best.
        """
        super().__init__(run, say)
        self.track, self.only = track, only
        trackers = []
        for name in run.config.trackers:
            cls, cfg = resolve("tracker", name)
            trackers.append(cls(cfg))
        self._observers = Observers(*trackers, *observers)
        self._live: dict[str, LiveSource] = {}

    def run_stages(self, stages: Iterable[str] = STAGES) -> dict[str, Any]:
        """Do the stages in their order; what one has made stays when a later one fails.

        Returns:
            `summary`.
        """
        wanted, missed = self._possible(list(stages))
        self._emit("run_started", config=self.run.config.model_dump(mode="json"))
        try:
            if "record" in wanted and "train" in wanted and not self._is_recorded():
                # An SAE that cannot be built is refused now, not after hours of recording.
                for point in expand(self.run.config).points:
                    n_sites = point.config.read.n_sites
                    make_sae(point.config.sae, n_sites * self.model.d_model, n_sites=n_sites)
            for stage in STAGES:
                if stage in wanted:
                    getattr(self, stage)()
            if missed:
                again = f"make one with saev record {self.run.path}, then saev index {self.run.path}"
                self.say(f"{' and '.join(missed)} need a recording; {again}.")
        except BaseException as error:
            self._emit("run_ended", error=error)
            raise
        self._emit("run_ended", error=None)
        return self.summary

    # What the stages share, each built when it is first needed.

    @cached_property
    def model(self) -> VisionModel:
        return load_model(self.run.config.model, self.run.config.device)

    @cached_property
    def dataset(self) -> ImageDataset:
        return load_dataset(self.run.config.dataset)

    @cached_property
    def store(self) -> ActivationStore:
        """The run's store, checked against the configuration."""
        return open_store(self.run)

    def images(self, read: ReadConfig) -> ImageVectors:
        """What an SAE is measured on: the store, or the model itself where the run trains live and nothing is recorded."""
        return self.live(read) if self.run.config.train.live and not self._is_recorded() else StoredVectors(self.store, read)

    def source(self, read: ReadConfig) -> ActivationSource:
        """Training vectors, from the store or straight from the model."""
        return self.live(read) if self.run.config.train.live else StoreSource(self.store, read)

    def live(self, read: ReadConfig) -> LiveSource:
        """The model's activations of the data set; each reading is made once."""
        key = json.dumps(read.model_dump(mode="json"))
        if key not in self._live:
            config = self.run.config
            refs = {"model_ref": model_ref(config.model), "dataset_ref": dataset_ref(config.dataset)}
            self._live[key] = LiveSource(self.model, self.dataset, config.record, read, **refs)
        return self._live[key]

    def _possible(self, wanted: list[str]) -> tuple[list[str], list[str]]:
        """Of the stages, those to do and those that a run which trains live has nothing to do with: they need a recording."""
        if not self.run.config.train.live or "train" not in wanted:
            return wanted, []
        needs = {"index", "report"} if not self._is_recorded() else set()
        return [stage for stage in wanted if stage not in {"record", *needs}], [stage for stage in wanted if stage in needs]

    @property
    def sae_names(self) -> list[str]:
        """Trained SAEs of the run.

        Raises:
            RunError: there is none.
        """
        if not (names := self.run.sae_names):
            raise RunError(f"{self.run.path} has no trained SAE; train one with saev train {self.run.path}.")
        return names

    def checkpoint(self, name: str) -> Checkpoint:
        """A trained SAE of the run, on the run's device, checked against the store, or the model where nothing is recorded."""
        checkpoint = Checkpoint.load(self.run.sae_dir(name), pick_device(self.run.config.device))
        checkpoint.check(self.images(checkpoint.read))
        return checkpoint

    # The stages.

    def record(self) -> None:
        """Images to activation store."""
        config = self.run.config
        if self._is_recorded():
            self.say(f"record: already there ({self._store_text()}), skipped.")
        else:
            began = time.monotonic()
            done = record(
                self.model,
                self.dataset,
                self.run.store_url,
                config.record,
                model_ref=model_ref(config.model),
                dataset_ref=dataset_ref(config.dataset),
                track=self.track,
            )
            self.__dict__.pop("store", None)
            self._stamp("record", "", began)
            self._emit("recorded", store=self.run.store_url, n_images=done.n_images, n_missing=len(done.missing))
            for index, name, why in done.missing[:20]:
                self.say(f"record: image {index} is missing: {name} ({why})")
            self.summary["missing"] = [{"index": index, "name": name, "why": why} for index, name, why in done.missing]
            self.say(f"record: {self._store_text()}")
        self._note("record")
        self.summary["n_images"] = self.store.n_images
        self.summary["n_missing"] = self._n_missing()

    def _is_recorded(self) -> bool:
        url = self.run.store_url
        if "://" not in url and not Path(url).exists():
            return False
        config, n_blocks = self.run.config.record, self.store.meta.model["n_blocks"]
        done = {site for site in self.store.sites if self.store.complete(site)}
        # A layer that the model does not have is for the recording to refuse.
        return all(-n_blocks <= layer < n_blocks and Site(layer % n_blocks, config.stream) in done for layer in config.layers)

    def _store_text(self) -> str:
        sites = ", ".join(map(str, self.store.sites))
        n_missing = self._n_missing()
        return f"{self.store.n_images:,} images at {sites}" + (f", {n_missing:,} missing" if n_missing else "")

    def _n_missing(self) -> int:
        """Images recorded as missing, at the site that lacks most."""
        return max((int((self.store.done(site) == 2).sum()) for site in self.store.sites), default=0)

    def train(self) -> None:
        """Activations to checkpoints: one SAE or a sweep, what is there already left alone."""
        points, todo, stopped = self._points()
        names = [point.name for point in points]
        if len(points) > len(todo) + len(stopped):
            n_there = len(points) - len(todo) - len(stopped)
            self.say(f"train: {names[0] if len(points) == 1 else f'{n_there} of {len(points)} SAEs'} already there, skipped.")
        device = pick_device(self.run.config.device)
        limit = limit_of(self.run.config.train.memory_gb, device)
        passes = make_passes(todo, self.source, self.run.sae_dir, device, limit=limit)
        if len(passes) > 1:
            self.say(f"train: {len(todo)} SAEs in {len(passes)} passes over the data.")
        for one in passes:
            if one.part[1] > 1 and one.part[0] == 1:
                self.say(f"train: {one.part[1]} of them read the same data: {limit / 1e9:.3g} GB do not hold all those SAEs at once.")
            if one.cost and one.cost.memory > limit:
                self.say(
                    f"train: {one.names[0]} takes about {one.cost.memory / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB it may, and is "
                    "tried nevertheless; lower sae.d_sae or train.batch_size if it fails."
                )
            stopped |= self._train(one)
        for name in names:
            self._note(f"train:{name}")
        for live in self._live.values():
            self._tell_missing(live)
        if stopped:
            self.summary["stopped"] = stopped
            for why in stopped.values():
                self.say(f"train: {why}")
        if len(stopped) == len(points):
            raise TrainError("no SAE is left to train: " + " ".join(stopped.values()))

    def _points(self) -> tuple[list[Point], list[Point], dict[str, str]]:
        """The SAEs that the configuration asks for, those of them that are to be trained, and why some diverged before."""
        sweep = expand(self.run.config)
        if sweep.dropped:
            some = ", ".join(sweep.dropped[:5]) + (", ..." if len(sweep.dropped) > 5 else "")
            self.say(f"train: {len(sweep.dropped)} points of the sweep were there twice and are dropped: {some}")
        keys = [self._train_key(point) for point in sweep.points]
        # A sweep that grew may call a point otherwise than when it was trained.
        had = {stamp["key"]: stage.removeprefix("train:") for stage, stamp in self._stamps.items() if stage.startswith("train:")}
        points = [replace(point, name=had.get(key, point.name)) for point, key in zip(sweep.points, keys, strict=True)]
        todo, stopped = [], {}
        for point, key in zip(points, keys, strict=True):
            stage = f"train:{point.name}"
            if "stopped" in self._stamps.get(stage, {}) and self._valid(stage, key):
                stopped[point.name] = str(self._stamps[stage]["stopped"])
            elif not self._valid(stage, key, partial(self.checkpoint, point.name)):
                todo.append(point)
        return points, todo, stopped

    def _train_key(self, point: Point) -> str:
        read = point.config.read
        meta = self.live(read).meta if self.run.config.train.live else self.store.meta
        return self._key(point.says(), meta.fingerprint)

    def plan(self) -> dict[str, Any]:
        """What `train` would do and what it takes, from a few steps of each kind of SAE; see `plan_of`. Writes nothing."""
        config = self.run.config
        device, source = pick_device(config.device), self.source
        limit = limit_of(config.train.memory_gb, device)
        if config.train.live or self._is_recorded():
            points, todo, _ = self._points()
        else:
            points = todo = list(expand(config).points)
            n_images = n_recorded(config.record, self.dataset)
            source = partial(expected, model=self.model, n_images=n_images)
        return plan_of(make_passes(todo, source, self.run.sae_dir, device, limit=limit, n_timed=3), len(points), limit)

    def _train(self, one: Pass) -> dict[str, str]:
        """One pass; each SAE is stamped when it is saved. Returns those that diverged, and why."""
        began, points = time.monotonic(), {point.name: point for point in one.points}

        def stamp(name: str, **more: Any) -> None:
            point = points[name]
            self._stamp(f"train:{name}", self._train_key(point), began, share=len(points), says=point.says(), **more)

        def emit(hook: str, **told: Any) -> None:
            self._emit(hook, **told)
            if hook == "checkpointed" and told["path"] == self.run.sae_dir(told["name"]):
                stamp(told["name"])

        stopped = one.train(
            self.run.sae_dir, emit=emit, track=self.track, device=pick_device(self.run.config.device), heldout_of=Heldout.of
        )
        if self.run.config.sweep:
            for name, why in stopped.items():
                stamp(name, stopped=why)
        if done := [name for name in one.names if name not in stopped]:
            where = self.run.sae_dir(done[0]) if len(done) == 1 else self.run.path / "sae"
            self.say(f"train: {done[0] if len(done) == 1 else f'{len(done)} SAEs on {one.source.site}'} in {where}")
        return stopped

    def _tell_missing(self, live: LiveSource) -> None:
        """What a recording would have said of the images, as far as they were read."""
        missing = {image["index"]: image for image in self.summary.get("missing", [])}
        new = [image for image in live.missing if image[0] not in missing]
        for index, name, why in new[:20]:
            self.say(f"train: image {index} is left out: {name} ({why})")
        missing |= {index: {"index": index, "name": name, "why": why} for index, name, why in new}
        self.summary |= {"missing": [missing[index] for index in sorted(missing)], "n_images": live.n_images, "n_missing": len(missing)}

    def evaluate(self) -> None:
        """Checkpoint to evaluation card, and to recovered truth where the data set knows it; of several SAEs, which is best."""
        self.summary["sae"] = {}
        names = self.sae_names
        found = {name: self._evaluate(name) for name in names if not is_consensus(self.run, name)}
        entries = {point: self._compare_seeds(point, seeds, found) for point, seeds in seeds_of(found).items()}
        found |= {name: self._evaluate(name) for name in self.sae_names if name not in found}
        points = [measured.point for measured in found.values()]
        if stable := write_stability(self.run, entries, points):
            self.summary["stability"] = stable
        if len(points) > 1:
            self._rank(points)
        if recovery := self.run.result("recovery"):
            self.summary["recovery"] = recovery
        for live in self._live.values():
            self._tell_missing(live)

    def _evaluate(self, name: str) -> Measured:
        """Measure one SAE."""
        stage = f"evaluate:{name}"
        checkpoint = self.checkpoint(name)
        key = self._key(self.run.config.evaluate, checkpoint.fingerprint, self.images(checkpoint.read).meta.fingerprint)
        if checkpoint.card and self._valid(stage, key):
            self.say(f"evaluate: {name} already there, skipped.")
        else:
            began = time.monotonic()
            done = measure(checkpoint, self.images(checkpoint.read), self.run.config.evaluate, track=self.track)
            checkpoint = checkpoint.with_card(done.card)
            checkpoint.save(self.run.sae_dir(name))
            keep_frequency(self.run, name, done.frequency)
            self._recover(name, checkpoint)
            self._stamp(stage, key, began)
            self.say(f"evaluate: {name} {card_text(checkpoint.card)}")
        self._note(stage)
        self.summary["sae"][name] = checkpoint.card
        return Measured.of(name, checkpoint)

    def _compare_seeds(self, point: str, seeds: list[str], found: Mapping[str, Measured]) -> dict[str, Any]:
        """How well the seeds of one point agree, and their consensus as an SAE of the run."""
        stage, above = f"stability:{point}", self.run.config.evaluate.consensus
        key = self._key(above, seeds, [found[name].fingerprint for name in seeds])
        entry: dict[str, Any] = self.run.result("stability").get(point, {})
        made = entry.get("consensus", {}).get("name")
        if entry and self._valid(stage, key, partial(self.checkpoint, made) if made else lambda: None):
            self.say(f"evaluate: the seeds of {point} are compared already, skipped.")
        else:
            began = time.monotonic()
            checkpoints = {name: self.checkpoint(name) for name in seeds}
            frequency = {name: self._frequency(name, c) for name, c in checkpoints.items()}
            x = self.source(checkpoints[seeds[0]].read).sample(CALIBRATE_ON, 0) if above is not None else None
            entry = compare_seeds(self.run, point, checkpoints, frequency, above, x)
            self.run.write_result("stability", {**self.run.result("stability"), point: entry})
            self._stamp(stage, key, began)
            self.say(f"evaluate: the {len(seeds)} seeds of {point} agree to a mean cosine of {entry['mean_cosine']:.3f}")
            if why := entry.get("consensus", {}).get("why"):
                self.say(f"evaluate: no consensus of {point}: {why}")
        self._note(stage)
        return entry

    def _frequency(self, name: str, checkpoint: Checkpoint) -> np.ndarray:
        path = frequency_path(self.run, name)
        if not path.exists():
            keep_frequency(
                self.run, name, measure(checkpoint, self.images(checkpoint.read), self.run.config.evaluate, track=self.track).frequency
            )
        return cast("np.ndarray", np.load(path, allow_pickle=False))

    def _rank(self, points: Sequence[EvaluatedSAE]) -> None:
        """Front and best of several SAEs, as a table and a picture."""
        ranked = pareto(points, self.run.config.evaluate.best_l0).to_json()
        picture = self.run.results_path("pareto").with_suffix(".png")
        changed = ranked != self.run.result("pareto")
        self.run.write_result("pareto", ranked)
        if changed or not picture.exists():
            with suppress(NoViewerError):  # the table is enough
                find_viewer("pareto").pareto(self.run)
        self.summary["pareto"] = ranked
        best, bound = ranked["best"], ranked["best_l0"]
        what = f"{best} has the lowest NMSE" if best else "no SAE is"
        self.say(f"evaluate: {what} among those with an L0 of at most {bound:.4g}")

    def _recover(self, name: str, checkpoint: Checkpoint) -> None:
        """Where the data set knows the truth, and the SAE reads patches and left images out: how well it is recovered."""
        read = checkpoint.read
        if read.tokens != "patches" or not read.heldout or not knows_truth(self.run.config.dataset):
            return
        from saev_core.evaluation.known_truth import recover

        table = recover(checkpoint, self.images(read), cast("KnownTruth", self.dataset), track=self.track)
        self.run.write_result("recovery", {**self.run.result("recovery"), name: table.to_json()})

    def index(self) -> None:
        """Checkpoint to feature index: of every SAE, or where there are many of the best one, or of those asked for."""
        names = self.run.to_index(self.only)
        if not self.only and len(names) < len(self.sae_names):
            told = f"of {len(self.sae_names)} SAEs only {names[0]}, the best"
            self.say(f"index: {told}; others with saev index {self.run.path} --only NAME.")
        for name in names:
            stage, path, checkpoint = f"index:{name}", self.run.features_path(name), self.checkpoint(name)
            key = self._key(self.run.config.index, checkpoint.fingerprint, self.store.meta.fingerprint)
            if self._valid(stage, key, partial(FeatureIndex.open, path)):
                self.say(f"index: {name} already there, skipped.")
            else:
                began = time.monotonic()
                index_features(checkpoint, self.store, path, self.run.config.index, track=self.track)
                self._stamp(stage, key, began)
                self._emit("indexed", name=name, path=path)
                self.say(f"index: {name} is in {path}")
            self._note(stage)
            self._propose(name, checkpoint, self.store, lambda: self.model, lambda: self.dataset, self.track)

    def report(self) -> None:
        """Everything to one illustrated file, if a viewer plugin is installed that makes it."""
        try:
            viewer = find_viewer("report")
        except NoViewerError as error:
            self.say(f"report: skipped, {error}")
            return
        path = self.run.report_path
        before = [self._stamps.get(f"{stage}:{name}", {}).get("key") for stage in ("evaluate", "index") for name in self.run.sae_names]
        compared = [self.run.result(task) for task in ("pareto", "stability") if len(self.run.sae_names) > 1]
        key = self._key(self.run.config.report, before, self.run.result("recovery"), *compared)
        if path.exists() and self._valid("report", key):
            self.say("report: already there, skipped.")
        else:
            began = time.monotonic()
            path = viewer.report(self.run)
            self._stamp("report", key, began)
        self._note("report")
        self.summary["report"] = str(path)

    def _emit(self, hook: str, **arguments: Any) -> None:
        self._observers.emit(hook, run=self.run, **arguments)
