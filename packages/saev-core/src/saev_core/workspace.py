"""`Workspace`: a run, opened. Its store, data set, model, checkpoints and indexes, each opened when first asked for, once, and checked."""

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

if TYPE_CHECKING:  # they bring torch, which nobody needs who only looks at what a run holds
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
    """What a run holds. Safe from several threads: one opens a thing, and those that ask for the same wait for it alone."""

    def __init__(self, run: Run, device: str = "", dataset: str = "", *, sae_device: str = "", hint: str = "") -> None:
        """
        Args:
            device: as `--device`; empty: the run's.
            dataset: where the pictures are now, as `--dataset`; empty: where they were when they were recorded.
            sae_device: where SAEs are put; empty: where the model is.
            hint: the command that says where the pictures are now, for errors about them.
        """
        self.run, self.hint = run, hint
        self._device, self._where, self._sae_device = device or run.config.device, dataset, sae_device
        self._opened: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, RLock] = {}
        self._lock = Lock()

    @property
    def device(self) -> torch.device:
        """Where to compute.

        Raises:
            DeviceError: it is absent.
        """
        from saev_core.support.devices import pick_device

        return self._once("device", lambda: pick_device(self._device))

    @property
    def refs(self) -> dict[str, dict[str, Any]]:
        """The run's `model` and `dataset` as a store names them. Loads both plugins.

        Raises:
            UnknownPluginError, PluginError, ConfigError: as `resolve`.
        """
        config = self.run.config
        return self._once("refs", lambda: {"model": model_ref(config.model), "dataset": dataset_ref(config.dataset)})

    # Recorded activations.

    def has_store(self) -> bool:
        """Whether anything was recorded, be it a part or damaged."""
        return ActivationStore.exists(self.run.store_url)

    def store(self, *, checked: bool = True) -> ActivationStore:
        """The run's activations.

        Args:
            checked: false leaves out the comparison with the run's model and data set, which loads their plugins, and with them torch.

        Raises:
            RunError: nothing is recorded yet, or of another model or data set than the run's.
            StoreError: it is damaged.
        """
        store = self._once("store", self._open_store)
        if checked:
            self._once("store is the run's", lambda: self._compare(store))
        return store

    def replace_store(self, store: ActivationStore) -> None:
        """Take the store that was just recorded from this run's model and data set in the place of one that was opened before."""
        self._opened["store"] = store

    def is_recorded(self) -> bool:
        """Whether every image is recorded at every layer that the run asks for.

        Raises:
            RunError, StoreError: as `store`, where there is one.
        """
        if not self.has_store():
            return False
        config, store = self.run.config.record, self.store()
        n_blocks = store.meta.model["n_blocks"]
        done = {site for site in store.sites if store.complete(site)}
        # A layer that the model does not have is for the recording to refuse.
        return all(-n_blocks <= layer < n_blocks and Site(layer % n_blocks, config.stream) in done for layer in config.layers)

    # What they were made from.

    def dataset(self, identity: str | None = None) -> ImageDataset:
        """The pictures of the run: those that were recorded, if any were.

        Args:
            identity: what the pictures were when they were recorded, empty if that is not known; None: what the store says.

        Raises:
            ChangedDatasetError: they are others than those that were recorded.
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

    # Vectors to train on and to measure on.

    def live(self, read: ReadConfig) -> LiveSource:
        """The model's activations of the data set, not recorded.

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
        """Those of `live` that were asked for."""
        return [value for key, value in list(self._opened.items()) if isinstance(key, tuple) and key[0] == "live"]

    def images(self, read: ReadConfig) -> ImageVectors:
        """What an SAE is measured on: the store, or the model itself where the run trains live and nothing is recorded."""
        from saev_core.activations.sources.stored_vectors import StoredVectors

        return self.live(read) if self.run.config.train.live and not self.is_recorded() else StoredVectors(self.store(), read)

    def source(self, read: ReadConfig) -> ActivationSource:
        """Training vectors, from the store or straight from the model."""
        from saev_core.activations.sources.stored import StoreSource

        return self.live(read) if self.run.config.train.live else StoreSource(self.store(), read)

    # What was made from them.

    def sae_name(self, name: str = "") -> str:
        """The SAE of that name; none named: the best, or the only one.

        Raises:
            RunError: there is none, none of that name, or several of which none is marked best.
        """
        names = self.run.to_index([name] if name else ())
        if len(names) == 1:
            return names[0]
        if self.run.best:
            return self.run.best
        raise RunError(
            f"{self.run.path} has several SAEs ({', '.join(names)}): name one, or saev evaluate {self.run.path} to mark the best."
        )

    def checkpoint(self, name: str = "", *, checked: bool = True) -> Checkpoint:
        """A trained SAE.

        Args:
            checked: false leaves out the comparison with the recorded activations, where there are any.

        Raises:
            RunError: as `sae_name`.
            CheckpointError: it is damaged, or of other activations.
            StoreError: the store that it is compared with is damaged.
        """
        name = self.sae_name(name)
        checkpoint = self._once(("checkpoint", name), lambda: self.read_checkpoint(name))
        if checked and self.has_store():
            self._once(("checkpoint fits", name), lambda: checkpoint.check(self.store(checked=False)))
        return checkpoint

    def read_checkpoint(self, name: str) -> Checkpoint:
        """The SAE of exactly that name as it is on disk now. Neither checked nor kept: a sweep has hundreds, and stages write them.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        from saev_core.sae.checkpoint import Checkpoint

        return Checkpoint.load(self.run.sae_dir(name), self._sae_device or self.device)

    def index(self, name: str = "", *, checked: bool = True) -> FeatureIndex:
        """The feature index of an SAE.

        Args:
            checked: false leaves out the comparison with the SAE, which loads it, and with it torch.

        Raises:
            RunError: as `sae_name`, it is not indexed, or the index is of another checkpoint.
            CheckpointError: as `checkpoint`.
        """
        from saev_core.features.index import FeatureIndex

        name = self.sae_name(name)
        index = self._once(("index", name), lambda: FeatureIndex.open(self.run.features_path(name)))
        if checked:
            self._once(("index fits", name), lambda: index.check(self.checkpoint(name)))
        return index

    def forget(self, name: str) -> None:
        """Drop what is kept of SAE `name`, which was written anew: whoever asks next gets what is on disk then."""
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
            what = f"these pictures are others than those that were recorded for {self.run.path}"
            raise ChangedDatasetError(
                f"{what}; if the right ones are elsewhere, say where: {self.hint}."
                if self.hint
                else f"{what}; put those back, or record these into another run with --out."
            )
        return dataset

    def _load_dataset(self) -> ImageDataset:
        try:
            return load_dataset(self._where or self.run.config.dataset)
        except SaevError as error:
            if not self.hint:
                raise
            raise DatasetError(f"{error} If the pictures have moved, say where: {self.hint}.") from None

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made by the first thread that asks for `key`; what is there already is answered without waiting."""
        found = self._opened.get(key, self)
        if found is self:
            with self._lock:
                lock = self._locks.setdefault(key, RLock())
            with lock:
                found = self._opened.get(key, self)
                if found is self:
                    found = self._opened[key] = make()
        return cast("T", found)
