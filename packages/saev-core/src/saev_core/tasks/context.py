"""TODO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from saev_core.errors import DatasetError, RunError, SaevError
from saev_core.runs.run import Run
from saev_core.support.progress import Track, silent

if TYPE_CHECKING:
    import torch

    from saev_core.activations.store.store import ActivationStore
    from saev_core.data.dataset import ImageDataset
    from saev_core.features.index import FeatureIndex
    from saev_core.models.base import VisionModel
    from saev_core.sae.checkpoint import Checkpoint

log = logging.getLogger(__name__)


class TaskContext:
    """What a verb works with: the run and what was made in it, the device, and where to speak. All but the run is opened when asked for."""

    def __init__(
        self,
        run: Run,
        name: str,
        *,
        device: str = "",
        dataset: str = "",
        say: Callable[[str], None] = log.info,
        table: Callable[..., None] | None = None,
        track: Track = silent,
    ) -> None:
        """
        Args:
            name: the task's, for its folder.
            device: as `--device`; empty: the run's.
            dataset: where the pictures lie now, as `--dataset`; empty: where they lay when they were recorded.
            say: given one line for a person.
            table: given rows for a person, and `header`; by default each goes to `say`.
            track: told how far a long job is.
        """
        self.run, self.name, self.say, self.track = run, name, say, track
        self._device, self._where, self._table = device, dataset, table
        self._checkpoints: dict[str, Checkpoint] = {}

    def table(self, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
        """Aligned columns for a person."""
        cells = [[str(each) for each in row] for row in rows]
        if self._table is not None:
            self._table(cells, header)
            return
        for row in [list(header), *cells] if header else cells:
            self.say("  ".join(row))

    def folder(self, name: str = "") -> Path:
        """`RUN/tasks/<task>`, which is made, or the path `name` in it, which is not.

        Raises:
            RunError: it cannot be written.
        """
        path = self.run.path / "tasks" / self.name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path} cannot be written ({error.strerror or error}).") from None
        return path / name if name else path

    @cached_property
    def device(self) -> torch.device:
        """Where to compute.

        Raises:
            DeviceError: it is absent.
        """
        from saev_core.support.devices import pick_device

        return pick_device(self._device or self.run.config.device)

    @cached_property
    def _store(self) -> ActivationStore:
        from saev_core.workspace import open_store

        return open_store(self.run)

    def store(self) -> ActivationStore:
        """The run's activations.

        Raises:
            RunError, StoreError: nothing is recorded, or it is damaged or another's.
        """
        return self._store

    @cached_property
    def _dataset(self) -> ImageDataset:
        from saev_core.data.dataset import load_dataset

        told = f"if the pictures have moved, say where: saev task {self.name} VERB {self.run.path} --dataset NAME:FOLDER."
        try:
            dataset = load_dataset(self._where or self.run.config.dataset)
        except SaevError as error:
            raise DatasetError(f"{error} {told[0].upper()}{told[1:]}") from None
        recorded = self._recorded_identity()
        if recorded not in ("", dataset.identity()):
            raise DatasetError(f"these pictures are others than those that {self.run.path} was made of; {told}")
        return dataset

    def _recorded_identity(self) -> str:
        """What the store says of its pictures; empty where nothing is recorded."""
        from saev_core.activations.store.store import ActivationStore

        url = self.run.store_url
        if "://" not in url and not Path(url).exists():
            return ""
        return str(ActivationStore.open(url).meta.dataset.get("identity", ""))

    def dataset(self) -> ImageDataset:
        """The pictures of the run, those that were recorded.

        Raises:
            DatasetError: they cannot be opened, or are others; says how to name another place.
        """
        return self._dataset

    @cached_property
    def _model(self) -> VisionModel:
        from saev_core.models.base import load_model

        return load_model(self.run.config.model, str(self.device))

    def model(self) -> VisionModel:
        """The run's model, on the device.

        Raises:
            PluginError, ModelError: it cannot be loaded.
        """
        return self._model

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

    def checkpoint(self, name: str = "") -> Checkpoint:
        """A trained SAE, on the device, checked against the recorded activations where there are any.

        Raises:
            RunError: as `sae_name`.
            CheckpointError: it is damaged, or of other activations.
        """
        from saev_core.sae.checkpoint import Checkpoint

        name = self.sae_name(name)
        if name not in self._checkpoints:
            checkpoint = Checkpoint.load(self.run.sae_dir(name), self.device)
            if not self.run.config.train.live or self._recorded_identity():
                checkpoint.check(self.store())
            self._checkpoints[name] = checkpoint
        return self._checkpoints[name]

    def index(self, name: str = "") -> FeatureIndex:
        """The feature index of an SAE, checked against it.

        Raises:
            RunError: as `sae_name`, or it is not indexed.
        """
        from saev_core.features.index import FeatureIndex

        name = self.sae_name(name)
        return FeatureIndex.open(self.run.features_path(name), self.checkpoint(name))
