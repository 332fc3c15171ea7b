"""`Library`: a run as the viewer reads it; everything is opened on first access and cached. Does not import gradio."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from saev_core import Box, ImageDataset, Run, SaevError, Workspace
from saev_core.errors import RunError, StoreError
from saev_core.sae.checkpoint_card import CheckpointCard
from saev_viz.run_view.addresses import image_url
from saev_viz.run_view.feature_facts import known_truth, read_names, read_stability
from saev_viz.run_view.feature_table import FeatureTable
from saev_viz.run_view.notes import Notes
from saev_viz.run_view.picture_codes import Seen, new, recorded
from saev_viz.run_view.thumbnails import Pictures
from saev_viz.run_view.uploads import Uploads

if TYPE_CHECKING:
    from saev_core import ActivationStore, Checkpoint, VisionModel

log = logging.getLogger(__name__)

KEEP_SEEN = 64
"""Pictures whose codes are cached in memory."""


class Library:
    """A run: its indexed SAEs, its pictures, its store and model.

    Raises:
        RunError: no SAE of the run has a feature index yet.
    """

    def __init__(self, run: Run, dataset: str = "", others: Sequence[Run] = ()) -> None:
        """
        Args:
            dataset: location of the pictures, in the syntax of `--dataset`; empty: the location stored in the run.
            others: further runs, whose SAEs are listed as `RUN:SAE`; `dataset` also applies to those of the same data set.
        """
        self.title = run.path.resolve().name
        self.number = 0
        """Its position among the open runs: 0, and the others from 1."""
        self.run = run
        # One picture at a time: the CPU is fast enough for an SAE, and tabs keep their probes and pictures there.
        hint = f"saev view {run.path} --dataset NAME:FOLDER"
        self.workspace = Workspace(run, dataset=dataset, sae_device="cpu", hint=hint)
        self._lock = RLock()
        self._views: dict[str, View] = {}
        self.names = [name for name in run.sae_names if run.features_path(name).exists()]
        if not self.names:
            raise RunError(f"{run.path} has no feature index yet; build one with saev index {run.path}.")
        self.own = list(self.names)
        """Names of this run's SAEs, without those of `others`."""
        self.others = [Library(other, dataset if other.config.dataset == run.config.dataset else "") for other in others]
        self._elsewhere: dict[str, tuple[Library, str]] = {}
        for i, library in enumerate(self.others, 1):
            taken = {self.title, *(before.title for before in self.others[: i - 1])}
            while library.title in taken:
                library.title += f"-{i}"
            library.number = i
            self._elsewhere |= {f"{library.title}:{name}": (library, name) for name in library.own}
        self.names += self._elsewhere

    warmed = False
    """Whether `warm` was scheduled."""

    def warm(self) -> None:
        """Compute the slower columns and load the first SAE (and torch), so that the first sort by such a column and the
        first picture are fast."""
        try:
            view = self[self.first]
            for column in view.table.columns.values():
                _ = column.values
            _ = view.checkpoint
        except SaevError as error:
            log.info("the SAE was not loaded beforehand: %s", error)

    def __getitem__(self, name: str) -> View:
        """The view of SAE `name`.

        Raises:
            RunError: it has no index, or the index is of another checkpoint or format.
        """
        if name not in self.names:
            raise RunError(f"{self.run.path} has no indexed SAE {name!r}; it has {', '.join(self.names)}.")
        if name in self._elsewhere:
            library, bare = self._elsewhere[name]
            return library[bare]
        with self._lock:
            if name not in self._views:
                self._views[name] = View(self, name)
            return self._views[name]

    @cached_property
    def first(self) -> str:
        """The SAE shown first: the sweep's best, else the indexed one with the lowest held-out error."""
        if self.run.best in self.own:
            return str(self.run.best)
        return min(self.own, key=lambda name: float(CheckpointCard.load(self.run.sae_dir(name)).card.get("nmse", np.inf)))

    @cached_property
    def store(self) -> ActivationStore:
        """The store that the run's SAEs were trained on; checked without loading the model plugin and torch.

        Raises:
            RunError: it is missing.
            StoreError: it is damaged, or of another run.
        """
        store, view = self.workspace.store(checked=False), self[self.first]
        if view.saved.store.get("fingerprint", store.meta.fingerprint) != store.meta.fingerprint:
            raise StoreError(f"{store.url} is not the store that {view.name} was trained on; point the run at the right store, or retrain.")
        return store

    @cached_property
    def _recorded(self) -> tuple[ActivationStore | None, str]:
        try:
            return self.store, ""
        except SaevError as error:
            if self.run.config.train.live:
                return None, ""  # live runs have no store
            return None, (
                f"The run's recorded activations cannot be opened ({error}) Features are shown from the index; "
                "opening a picture in the Image tab runs the model."
            )

    @property
    def lost(self) -> str:
        """Warning that the store is missing, and what still works without it; empty if it is available or the run never had one."""
        return self._recorded[1]

    @cached_property
    def n_images(self) -> int:
        """Number of images of the run."""
        store = self._recorded[0]
        return store.n_images if store is not None else self[self.first].index.n_images

    @cached_property
    def uploads(self) -> Uploads:
        """Uploaded pictures."""
        return Uploads()

    @property
    def model(self) -> VisionModel:
        """The run's model, for new pictures and for steering; loaded on first use."""
        return self.workspace.model()

    @cached_property
    def _opened(self) -> tuple[ImageDataset | None, str]:
        # All SAEs of a run share one data set and record its identity, so the store, which may be missing, is not needed.
        identity = str(self[self.first].saved.store["dataset"].get("identity", ""))
        try:
            return self.workspace.dataset(identity), ""
        except SaevError as error:
            return None, f"The pictures cannot be shown: {error}"

    @property
    def dataset(self) -> ImageDataset | None:
        """The data set; None if it cannot be opened, see `no_pictures`."""
        return self._opened[0]

    @property
    def no_pictures(self) -> str:
        """Why there are no pictures, and what to do; empty if there are."""
        return self._opened[1]

    def src(self, index: int, px: int) -> str:
        """Address of picture `index`, its longer side about `px` pixels."""
        return image_url(index, px, self.number)

    @cached_property
    def pictures(self) -> Pictures:
        """Thumbnails of the data set's pictures."""
        return Pictures(self.dataset)

    @cached_property
    def classes(self) -> list[str]:
        """Label names by number; empty if there are none."""
        return [str(name) for name in (self.dataset.classes if self.dataset is not None else None) or ()]

    @cached_property
    def labels(self) -> np.ndarray[Any, Any]:
        """int32 label of each image, -1 where unknown."""
        store = self._recorded[0]
        return store.labels if store is not None else np.full(self.n_images, -1, np.int32)

    @cached_property
    def sizes(self) -> Sizes | np.ndarray[Any, Any]:
        """Width and height of each original image: `sizes[index]`."""
        store = self._recorded[0]
        return store.sizes if store is not None else Sizes(self)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of original `index`, each at least 1 (the store holds 0 for unreadable images)."""
        width, height = (max(int(side), 1) for side in self.sizes[index])
        return width, height

    @cached_property
    def _crops(self) -> np.ndarray[Any, Any]:
        return self.store.crops

    def crop(self, index: int) -> Box:
        """The model's input crop of image `index`, in pixels of the original; without a store, from the model's transform, and
        without a model, the whole image."""
        store = self._recorded[0]
        if store is not None:
            return Box(*map(float, self._crops[index]))
        width, height = (int(side) for side in self.sizes[index])
        try:
            return self.model.crop(width, height)
        except SaevError as error:
            log.warning("the model's input crop of image %d is unknown: %s", index, error)
            return Box(0, 0, width, height)

    def label(self, index: int) -> str:
        """Name of an image's label; empty if it has none."""
        number = int(self.labels[index])
        if number < 0:
            return ""
        return self.classes[number] if number < len(self.classes) else f"label {number}"


class Sizes:
    """Width and height of pictures without a store, read on demand."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._known: dict[int, tuple[int, int]] = {}

    def __getitem__(self, index: int) -> tuple[int, int]:
        if index not in self._known:
            try:
                self._known[index] = self._library.pictures.original(index).size
            except SaevError:  # shown as a grey placeholder, see `Pictures.jpeg`, with the model's input shape
                grid = self._library[self._library.first].index.grid
                return grid.width_px, grid.height_px
        return self._known[index]


class View:
    """One SAE of a run."""

    def __init__(self, library: Library, name: str) -> None:
        self.library, self.name = library, name
        self.index = library.workspace.index(name, checked=False)
        self.saved = CheckpointCard.load(library.run.sae_dir(name))
        # Fast check by the weights' digest; `checkpoint` compares the rest when it loads them.
        if self.index.attributes.get("weights", self.saved.weights_digest) != self.saved.weights_digest:
            raise RunError(f"{self.index.path} is the index of another checkpoint; rebuild it with saev index {library.run.path}.")
        self.card = self.saved.card
        self._lock = RLock()
        self._seen: OrderedDict[int, Seen] = OrderedDict()

    @property
    def key(self) -> str:
        """Its key in the viewer: the SAE's name, prefixed with its run if that is one of `others`."""
        return f"{self.library.title}:{self.name}" if self.library.number else self.name

    @cached_property
    def table(self) -> FeatureTable:
        """All features' numbers, to search, filter and sort."""
        return FeatureTable.of(
            self.index,
            self.library.classes,
            labels=self.library.labels,
            names=read_names(self.library.run.features_path(self.name).with_suffix(".names.json"), self.index.attributes["checkpoint"]),
            truth=known_truth(self.library.run, self.name),
            stability=read_stability(self.library.run, self.name),
        )

    @property
    def names(self) -> list[str]:
        """Proposed name of each feature; empty if it has none."""
        return self.table.names

    def common_label(self, feature: int) -> str:
        """Name of the label of at least half of a feature's top images; empty if there is none."""
        return self.table.label(int(self.table.common[feature]))

    @cached_property
    def start(self) -> int:
        """The feature shown first: the strongest of medium frequency."""
        found = self.index.select((-4, -1.5)) or self.index.select() or [0]
        return max(found, key=lambda feature: float(self.index.max[feature]))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The SAE, checked against its index; loaded on first use.

        Raises:
            CheckpointError: it is damaged, or was trained on another store.
            RunError: the index is of another checkpoint.
        """
        checkpoint = self.library.workspace.checkpoint(self.name, checked=not self.library.lost)
        self.index.check(checkpoint)
        return checkpoint

    def seen(self, index: int) -> Seen:
        """Codes of picture `index` of the data set; the most recent are cached."""
        store = self.library._recorded[0]
        with self._lock:
            if index not in self._seen:
                if store is not None:
                    self._seen[index] = recorded(self.checkpoint, store, index)
                else:
                    self._seen[index] = self.look(self.library.pictures.original(index))
            self._seen.move_to_end(index)
            while len(self._seen) > KEEP_SEEN:
                self._seen.popitem(last=False)
            return self._seen[index]

    def look(self, image: Image.Image) -> Seen:
        """Codes of a new picture; runs the model."""
        store, stream = self.library._recorded[0], self.checkpoint.read.stream
        with self._lock:
            model = self.library.model
            sites = store.sites if store is not None else [model.site(layer, stream) for layer in self.library.run.config.record.layers]
            return new(self.checkpoint, model, image, sites)

    @cached_property
    def _directions(self) -> np.ndarray[Any, Any]:
        """Unit-norm decoder rows, float32 `[d_sae, d_in]`; read without loading the SAE."""
        W_dec = self.saved.decoder()
        W_dec /= np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12)
        return W_dec

    def nearest(self, feature: int, n: int = 8) -> list[tuple[int, float]]:
        """Live features with the nearest decoder directions, with their cosines; nearest first."""
        cosine = self._directions @ self._directions[feature]
        cosine[~self.table.alive] = -2
        cosine[feature] = -2
        some = np.argpartition(-cosine, min(n, len(cosine) - 1))[:n]
        return [(int(i), float(cosine[i])) for i in some[np.argsort(-cosine[some], kind="stable")] if cosine[i] > -2]

    @cached_property
    def notes(self) -> Notes:
        """Users' notes on its features."""
        return Notes(self.library.run.path / "notes" / f"{self.name}.json")

    @cached_property
    def uppers(self) -> np.ndarray[Any, Any]:
        """For each feature the value at which heat maps reach full colour."""
        found = self.index.percentile(float(self.index.attributes["percentile"])).astype(np.float32)
        return np.asarray(np.where(found > 0, found, 1.0))

    def upper(self, feature: int, end: str = "percentile") -> float:
        """The value at which heat maps reach full colour: the index's percentile of the feature's values, or its `max`."""
        return float(self.index.max[feature]) or 1.0 if end == "max" else float(self.uppers[feature])
