"""The stages of a run: record, train, evaluate, index, report. Each is skipped when what it makes is already there and valid.

    images -> VisionModel -> ActivationStore -> train -> Checkpoint -> FeatureIndex -> report

A stage reads the artifact before it, writes its own once, and never touches an upstream one. What was made from
what is kept in the run's `stages.json`: a stage's key is a digest of its settings and of the fingerprints it read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from saev_core.checkpoint import Checkpoint
from saev_core.compare import Measured, compare_seeds, frequency_path, is_consensus, keep_frequency, seeds_of, write_stability
from saev_core.config import Config, DatasetConfig, PluginRef
from saev_core.dataset import ImageDataset, digest, load_dataset
from saev_core.errors import RunError, SaevError
from saev_core.evaluate import measure
from saev_core.features import FeatureIndex
from saev_core.hooks import Observers
from saev_core.indexing import index_features
from saev_core.model import VisionModel, load_model, pick_device
from saev_core.pareto import Point, pareto
from saev_core.plugins import find, installed, resolve
from saev_core.progress import Track, silent
from saev_core.record import record
from saev_core.run import STAGES, Run, write_json
from saev_core.sae import make_sae
from saev_core.source import StoreSource
from saev_core.store import ActivationStore
from saev_core.train import Trainee, train
from saev_core.types import Site

if TYPE_CHECKING:
    from saev_core.recovery import KnownTruth

log = logging.getLogger(__name__)

_HOW = {
    "read": {"n_threads"},
    "train": {"checkpoint_every", "log_every", "evaluate_every", "evaluate_vectors"},
    "evaluate": {"best_l0", "consensus"},
}
"""Settings that leave no mark on what a stage makes."""


class Pipeline:
    """One run's work. `run_stages` does what is asked; the stages can also be called one by one."""

    def __init__(self, run: Run, *, track: Track = silent, say: Callable[[str], None] = log.info, observers: Iterable[object] = ()) -> None:
        """
        Args:
            track: told how far each stage is.
            say: given one line for a person whenever a stage is done or skipped.
            observers: hook implementations beside the run's trackers and the installed `saev.hooks`.
        """
        self.run, self.track, self.say = run, track, say
        trackers = []
        for name in run.config.trackers:
            cls, cfg = resolve("tracker", name)
            trackers.append(cls(cfg))
        self._observers = Observers(*trackers, *observers)
        self._stages_path = run.path / "stages.json"
        self._stamps: dict[str, Any] = json.loads(self._stages_path.read_text()) if self._stages_path.exists() else {}
        self.summary: dict[str, Any] = {"run": str(run.path), "seconds": {}}
        """What the stages found, for a table at the end and for `--json`."""

    def run_stages(self, stages: Iterable[str] = STAGES) -> dict[str, Any]:
        """Do the stages in their order; what one has made stays when a later one fails.

        Returns:
            `summary`.
        """
        wanted = list(stages)
        self._emit("run_started", config=self.run.config.model_dump(mode="json"))
        try:
            if "record" in wanted and "train" in wanted and not self._is_recorded():
                # An SAE that cannot be built is refused now, not after hours of recording.
                n_sites = self.run.config.read.n_sites
                make_sae(self.run.config.sae, n_sites * self.model.d_model, n_sites=n_sites)
            for stage in STAGES:
                if stage in wanted:
                    getattr(self, stage)()
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
        """A trained SAE of the run, on the run's device, checked against the store."""
        checkpoint = Checkpoint.load(self.run.sae_dir(name), pick_device(self.run.config.device))
        checkpoint.check(self.store)
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
        """Activation store to checkpoint."""
        config = self.run.config
        name = config.sae.name.rpartition(":")[2]
        stage = f"train:{name}"
        key = self._key(resolved(config.sae, "sae"), config.read, config.train, self.store.meta.fingerprint)
        if self._valid(stage, key, partial(self.checkpoint, name)):
            self.say(f"train: {name} already there, skipped.")
        else:
            began = time.monotonic()
            source = StoreSource(self.store, config.read)
            sae = make_sae(config.sae, source.d_model, config.train.seed, n_vectors=source.n_vectors, n_sites=source.n_sites)
            device = pick_device(config.device)
            train(source, [Trainee(name, sae)], config.train, out=self.run.sae_dir, emit=self._emit, track=self.track, device=device)
            self._stamp(stage, key, began)
            self.say(f"train: {name} is in {self.run.sae_dir(name)}")
        self._note(stage)

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

    def _evaluate(self, name: str) -> Measured:
        """Measure one SAE."""
        stage = f"evaluate:{name}"
        checkpoint = self.checkpoint(name)
        key = self._key(self.run.config.evaluate, checkpoint.fingerprint, self.store.meta.fingerprint)
        if checkpoint.card and self._valid(stage, key):
            self.say(f"evaluate: {name} already there, skipped.")
        else:
            began = time.monotonic()
            done = measure(checkpoint, self.store, self.run.config.evaluate, track=self.track)
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
            entry = compare_seeds(self.run, point, checkpoints, {name: self._frequency(name, c) for name, c in checkpoints.items()}, above)
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
            keep_frequency(self.run, name, measure(checkpoint, self.store, self.run.config.evaluate, track=self.track).frequency)
        return cast("np.ndarray", np.load(path, allow_pickle=False))

    def _rank(self, points: Sequence[Point]) -> None:
        """Front and best of several SAEs, as a table and a picture."""
        ranked = pareto(points, self.run.config.evaluate.best_l0).to_json()
        picture = self.run.results_path("pareto").with_suffix(".png")
        changed = ranked != self.run.result("pareto")
        self.run.write_result("pareto", ranked)
        if (changed or not picture.exists()) and "pareto" in {plugin.name for plugin in installed("viewer")}:
            find("viewer", "pareto").load()(self.run)
        self.summary["pareto"] = ranked
        best, bound = ranked["best"], ranked["best_l0"]
        what = f"{best} has the lowest NMSE" if best else "no SAE is"
        self.say(f"evaluate: {what} among those with an L0 of at most {bound:.4g}")

    def _recover(self, name: str, checkpoint: Checkpoint) -> None:
        """Where the data set knows the truth, and the SAE reads patches and left images out: how well it is recovered."""
        read = checkpoint.read
        if (
            not hasattr(find("dataset", self.run.config.dataset.name).load(), "patch_factors")
            or read.tokens != "patches"
            or not read.heldout
        ):
            return
        from saev_core.recovery import recover

        table = recover(checkpoint, self.store, cast("KnownTruth", self.dataset), track=self.track)
        self.run.write_result("recovery", {**self.run.result("recovery"), name: table.to_json()})

    def index(self) -> None:
        """Checkpoint to feature index."""
        for name in self.sae_names:
            stage, path = f"index:{name}", self.run.features_path(name)
            checkpoint = self.checkpoint(name)
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

    def report(self) -> None:
        """Everything to one illustrated file, if a viewer plugin is installed that makes it."""
        if "report" not in {plugin.name for plugin in installed("viewer")}:
            self.say("report: pip install saev-viz to have one.")
            return
        path = self.run.report_path
        before = [self._stamps.get(f"{stage}:{name}", {}).get("key") for stage in ("evaluate", "index") for name in self.run.sae_names]
        compared = [self.run.result(task) for task in ("pareto", "stability") if len(self.run.sae_names) > 1]
        key = self._key(self.run.config.report, before, self.run.result("recovery"), *compared)
        if path.exists() and self._valid("report", key):
            self.say("report: already there, skipped.")
        else:
            began = time.monotonic()
            path = find("viewer", "report").load()(self.run)
            self._stamp("report", key, began)
        self._note("report")
        self.summary["report"] = str(path)

    # What was made from what.

    def _key(self, *parts: Any) -> str:
        plain = [part.model_dump(mode="json") if isinstance(part, Config) else part for part in parts]
        for part, settings in zip(parts, plain, strict=True):
            for free in _HOW.get(type(part).__name__.removesuffix("Config").lower(), ()):
                settings.pop(free, None)
        return digest(plain)

    def _valid(self, stage: str, key: str, opens: Callable[[], object] = lambda: None) -> bool:
        """Whether `stage` was finished with this key and its artifact can still be opened."""
        if self._stamps.get(stage, {}).get("key") != key:
            return False
        try:
            opens()
        except SaevError as error:
            self.say(f"{stage.partition(':')[0]}: done again, for {error}")
            return False
        return True

    def _stamp(self, stage: str, key: str, began: float) -> None:
        self._stamps[stage] = {"key": key, "seconds": round(time.monotonic() - began, 3)}
        write_json(self._stages_path, self._stamps)

    def _note(self, stage: str) -> None:
        if stage in self._stamps:
            self.summary["seconds"][stage] = self._stamps[stage]["seconds"]

    def _emit(self, hook: str, **arguments: Any) -> None:
        self._observers.emit(hook, run=self.run, **arguments)


def open_store(run: Run) -> ActivationStore:
    """The store of a run.

    Raises:
        RunError: nothing is recorded yet.
        StoreError: it is damaged, or holds another model or data set than the run's.
    """
    url = run.store_url
    if "://" not in url and not Path(url).exists():
        raise RunError(f"{run.path} has no activations yet; record them with saev record {run.path}.")
    store = ActivationStore.open(url)
    for what, want in (("model", model_ref(run.config.model)), ("dataset", dataset_ref(run.config.dataset))):
        have = getattr(store.meta, what)
        if changed := [key for key in want if have.get(key) != want[key]]:
            key = changed[0]
            raise RunError(
                f"{url} was recorded with another {what}: its {key} is {json.dumps(have.get(key))}, not {json.dumps(want[key])}; "
                "record into another folder (--out or --store)."
            )
    return store


def resolved(ref: PluginRef, kind: str) -> dict[str, Any]:
    """A plugin as it is identified: `name`, `dist`, and all its options, defaults included."""
    plugin = find(kind, ref.name)
    _, cfg = resolve(kind, ref)
    return {"name": plugin.name, "dist": plugin.dist, "options": cfg.model_dump(mode="json")}


def model_ref(ref: PluginRef) -> dict[str, Any]:
    """A model as a store names it: an option that is a local file or folder is named by what is in it, not by where it lies."""
    named = resolved(ref, "model")
    options = named["options"]
    for key, value in options.items():
        if isinstance(value, str) and value and Path(value).expanduser().exists():
            options[key] = f"sha256:{content_digest(Path(value).expanduser())}"
    return named


def dataset_ref(ref: PluginRef) -> dict[str, Any]:
    """A data set as a store names it, without the options that only say where it lies."""
    named = resolved(ref, "dataset")
    _, cfg = resolve("dataset", ref)
    assert isinstance(cfg, DatasetConfig)
    return {**named, "options": {key: value for key, value in named["options"].items() if key not in cfg.locations}}


def content_digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files, 16 hex digits."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(f"{file.relative_to(path)}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def card_text(card: dict[str, Any]) -> str:
    """An evaluation card in one line."""
    return "  ".join(f"{key} {card[key]:.4g}" for key in ("nmse", "l0", "dead", "dense") if isinstance(card.get(key), int | float))
