"""`Workspace`: an open run. Its store, data set, model, checkpoints and indexes are each opened on first use, once, and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from saev_core.activations.recording.identity import dataset_ref, model_ref
from saev_core.activations.store.store import ActivationStore
from saev_core.data.dataset import ImageDataset, load_dataset
from saev_core.errors import ChangedDatasetError, DatasetError, RunError, SaevError
from saev_core.types import Site

if TYPE_CHECKING:  # they import torch, which is not needed to list what a run holds
    import torch

    from saev_core.activations.sources.base import ActivationSource
    from saev_core.activations.sources.image_vectors import ImageVectors
    from saev_core.activations.sources.live import LiveSource
    from saev_core.config.stages import ReadConfig
    from saev_core.features.index import FeatureIndex
    from saev_core.models.base import VisionModel
    from saev_core.runs.run import Run
    from saev_core.sae.checkpoint import Checkpoint

T = TypeVar("T")


class Workspace:
    """The artifacts of a run. Thread-safe: the first thread to request an artifact opens it; others wait only for that artifact."""

    def __init__(self, run: Run, device: str = "", dataset: str = "", *, sae_device: str = "", hint: str = "") -> None:
        """
        Args:
            device: as `--device`; empty: the run's.
            dataset: current location of the images, as `--dataset`; empty: unchanged since recording.
            sae_device: device of SAEs; empty: `device`.
            hint: the command that sets the location of the images, quoted in errors.
        """
        self.run, self.hint = run, hint
        self._device, self._where, self._sae_device = device or run.config.device, dataset, sae_device
        self._opened: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, RLock] = {}
        self._lock = Lock()

    @property
    def device(self) -> torch.device:
        """The device to compute on.

        Raises:
            DeviceError: it is not available.
        """
        from saev_core.support.devices import pick_device

        return self._once("device", lambda: pick_device(self._device))

    @property
    def refs(self) -> dict[str, dict[str, Any]]:
        """The run's `model` and `dataset` references as written in a store. Imports both plugins.

        Raises:
            UnknownPluginError, PluginError, ConfigError: as `resolve`.
        """
        config = self.run.config
        return self._once("refs", lambda: {"model": model_ref(config.model), "dataset": dataset_ref(config.dataset)})

    # Recorded activations.

    def has_store(self) -> bool:
        """Whether a store exists, even if incomplete or damaged."""
        return ActivationStore.exists(self.run.store_url)

    def store(self, *, checked: bool = True) -> ActivationStore:
        """The run's activations.

        Args:
            checked: false skips the comparison with the run's model and data set, which imports their plugins and torch.

        Raises:
            RunError: nothing is recorded yet, or it was recorded from another model or data set than the run's.
            StoreError: it is damaged.
        """
        store = self._once("store", self._open_store)
        if checked:
            self._once("store is the run's", lambda: self._compare(store))
        return store

    def replace_store(self, store: ActivationStore) -> None:
        """Use the store that was just recorded in place of the one opened before."""
        self._opened["store"] = store

    def is_recorded(self) -> bool:
        """Whether every image is recorded at every configured layer.

        Raises:
            RunError, StoreError: as `store`, if there is one.
        """
        if not self.has_store():
            return False
        config, store = self.run.config.record, self.store()
        n_blocks = store.meta.model["n_blocks"]
        done = {site for site in store.sites if store.complete(site)}
        # Recording rejects layers that the model does not have.
        return all(-n_blocks <= layer < n_blocks and Site(layer % n_blocks, config.stream) in done for layer in config.layers)

    # Inputs.

    def dataset(self, identity: str | None = None) -> ImageDataset:
        """The images of the run, the same ones as recorded, if any were.

        Args:
            identity: identity of the images when recorded, empty if unknown; None: the store's.

        Raises:
            ChangedDatasetError: they are not the recorded images.
            DatasetError: they cannot be opened.
        """
        return self._once(("dataset", identity), lambda: self._same_pictures(identity))

    def model(self) -> VisionModel:
        """The run's model, on the device.

        Raises:
            PluginError, ModelError: it cannot be loaded.
        """
        from saev_core.models.base import load_model

        return self._once("model", lambda: load_model(self.run.config.model, self._device))

    # Vectors for training and evaluation.

    def live(self, read: ReadConfig) -> LiveSource:
        """Activations computed on the fly from the model and data set.

        Raises:
            ModelError, StoreError, DatasetError: as `LiveSource`.
        """
        from saev_core.activations.sources.live import LiveSource

        def made() -> LiveSource:
            refs = {"model_ref": self.refs["model"], "dataset_ref": self.refs["dataset"]}
            return LiveSource(self.model(), self.dataset(), self.run.config.record, read, **refs)

        return self._once(("live", json.dumps(read.model_dump(mode="json"))), made)

    @property
    def live_sources(self) -> list[LiveSource]:
        """The sources returned by `live` so far."""
        return [value for key, value in list(self._opened.items()) if isinstance(key, tuple) and key[0] == "live"]

    def images(self, read: ReadConfig) -> ImageVectors:
        """Vectors to evaluate an SAE on: from the store, or from the model if the run trains live and nothing is recorded."""
        from saev_core.activations.sources.stored_vectors import StoredVectors

        return self.live(read) if self.run.config.train.live and not self.is_recorded() else StoredVectors(self.store(), read)

    def source(self, read: ReadConfig) -> ActivationSource:
        """Training vectors, from the store or directly from the model."""
        from saev_core.activations.sources.stored import StoreSource

        return self.live(read) if self.run.config.train.live else StoreSource(self.store(), read)

    # Outputs.

    def sae_name(self, name: str = "") -> str:
        """The name of an SAE; by default the only one, or the best.

        Raises:
            RunError: there is no SAE, none of that name, or several with none marked best.
        """
        names = self.run.to_index([name] if name else ())
        if len(names) == 1:
            return names[0]
        if self.run.best:
            return self.run.best
        raise RunError(
            f"{self.run.path} has several SAEs ({', '.join(names)}): select one, or mark the best with saev evaluate {self.run.path}."
        )

    def checkpoint(self, name: str = "", *, checked: bool = True) -> Checkpoint:
        """A trained SAE.

        Args:
            checked: false skips the comparison with the recorded activations, if any.

        Raises:
            RunError: as `sae_name`.
            CheckpointError: it is damaged, or was trained on other activations.
            StoreError: the store is damaged.
        """
        name = self.sae_name(name)
        checkpoint = self._once(("checkpoint", name), lambda: self.read_checkpoint(name))
        if checked and self.has_store():
            self._once(("checkpoint fits", name), lambda: checkpoint.check(self.store(checked=False)))
        return checkpoint

    def read_checkpoint(self, name: str) -> Checkpoint:
        """The SAE of exactly that name, as on disk now. Neither checked nor cached: a sweep has hundreds, and stages overwrite them.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from saev_core.sae.checkpoint import Checkpoint

        return Checkpoint.load(self.run.sae_dir(name), self._sae_device or self.device)

    def index(self, name: str = "", *, checked: bool = True) -> FeatureIndex:
        """The feature index of an SAE.

        Args:
            checked: false skips the comparison with the SAE, which loads the SAE and imports torch.

        Raises:
            RunError: as `sae_name`, or the SAE is not indexed, or the index was built from another checkpoint.
            CheckpointError: as `checkpoint`.
        """
        from saev_core.features.index import FeatureIndex

        name = self.sae_name(name)
        index = self._once(("index", name), lambda: FeatureIndex.open(self.run.features_path(name)))
        if checked:
            self._once(("index fits", name), lambda: index.check(self.checkpoint(name)))
        return index

    def forget(self, name: str) -> None:
        """Drop what is cached of SAE `name` after it was rewritten; the next request reads it from disk."""
        for what in ("checkpoint", "checkpoint fits", "index", "index fits"):
            self._opened.pop((what, name), None)

    def _open_store(self) -> ActivationStore:
        if not self.has_store():
            raise RunError(f"{self.run.path} has no activations yet; record them with saev record {self.run.path}.")
        return ActivationStore.open(self.run.store_url)

    def _compare(self, store: ActivationStore) -> None:
        for what, want in self.refs.items():
            have = getattr(store.meta, what)
            if changed := [key for key in want if have.get(key) != want[key]]:
                key = changed[0]
                raise RunError(
                    f"{store.url} was recorded with another {what}: its {key} is {json.dumps(have.get(key))}, not {json.dumps(want[key])}; "
                    "record into another folder (--out or --store)."
                )

    def _same_pictures(self, identity: str | None) -> ImageDataset:
        dataset = self._once("dataset", self._load_dataset)
        if identity is None:
            identity = str(self.store(checked=False).meta.dataset.get("identity", "")) if self.has_store() else ""
        if identity not in ("", dataset.identity()):
            what = f"these images are not the ones recorded for {self.run.path}"
            raise ChangedDatasetError(
                f"{what}; if those have moved, pass their new location: {self.hint}."
                if self.hint
                else f"{what}; restore those, or record these into another run with --out."
            )
        return dataset

    def _load_dataset(self) -> ImageDataset:
        try:
            return load_dataset(self._where or self.run.config.dataset)
        except SaevError as error:
            if not self.hint:
                raise
            raise DatasetError(f"{error} If the images have moved, pass their new location: {self.hint}.") from None

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The cached value of `key`, made by the first thread that requests it; a cached value is returned without locking."""
        found = self._opened.get(key, self)
        if found is self:
            with self._lock:
                lock = self._locks.setdefault(key, RLock())
            with lock:
                found = self._opened.get(key, self)
                if found is self:
                    found = self._opened[key] = make()
        return cast("T", found)
