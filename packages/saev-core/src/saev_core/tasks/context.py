"""`TaskContext`: what a task's verb works with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saev_core.errors import RunError
from saev_core.runs.run import Run
from saev_core.support.progress import Track, silent
from saev_core.workspace import Workspace

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
        self._table = table
        self.workspace = Workspace(run, device, dataset, hint=f"saev task {name} VERB {run.path} --dataset NAME:FOLDER")

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

    @property
    def device(self) -> torch.device:
        """Where to compute.

        Raises:
            DeviceError: it is absent.
        """
        return self.workspace.device

    def store(self) -> ActivationStore:
        """The run's activations.

        Raises:
            RunError, StoreError: nothing is recorded, or it is damaged or another's.
        """
        return self.workspace.store()

    def dataset(self) -> ImageDataset:
        """The pictures of the run, those that were recorded.

        Raises:
            DatasetError: they cannot be opened, or are others; says how to name another place.
        """
        return self.workspace.dataset()

    def model(self) -> VisionModel:
        """The run's model, on the device.

        Raises:
            PluginError, ModelError: it cannot be loaded.
        """
        return self.workspace.model()

    def sae_name(self, name: str = "") -> str:
        """The SAE of that name; none named: the best, or the only one.

        Raises:
            RunError: there is none, none of that name, or several of which none is marked best.
        """
        return self.workspace.sae_name(name)

    def checkpoint(self, name: str = "") -> Checkpoint:
        """A trained SAE, on the device, checked against the recorded activations where there are any.

        Raises:
            RunError: as `sae_name`.
            CheckpointError: it is damaged, or of other activations.
        """
        return self.workspace.checkpoint(name)

    def index(self, name: str = "") -> FeatureIndex:
        """The feature index of an SAE, checked against it.

        Raises:
            RunError: as `sae_name`, or it is not indexed.
        """
        return self.workspace.index(name)
