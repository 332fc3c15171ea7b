"""`TaskContext`: the context passed to a task's verb."""

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
    """A verb's context: the run and its artifacts, the device, and the output. Everything but the run is opened on first use."""

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
            name: name of the task, used for its folder.
            device: as `--device`; empty: the run's.
            dataset: current location of the images, as `--dataset`; empty: unchanged since recording.
            say: called with one human-readable line at a time.
            table: called with rows and `header` to show; by default each row goes to `say`.
            track: receives the progress of long jobs.
        """
        self.run, self.name, self.say, self.track = run, name, say, track
        self._table = table
        self.workspace = Workspace(run, device, dataset, hint=f"saev task {name} VERB {run.path} --dataset NAME:FOLDER")

    def table(self, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
        """Print aligned columns."""
        cells = [[str(each) for each in row] for row in rows]
        if self._table is not None:
            self._table(cells, header)
            return
        for row in [list(header), *cells] if header else cells:
            self.say("  ".join(row))

    def folder(self, name: str = "") -> Path:
        """`RUN/tasks/<task>`, which is created, or the path `name` in it, which is not.

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
        """The device to compute on.

        Raises:
            DeviceError: it is not available.
        """
        return self.workspace.device

    def store(self) -> ActivationStore:
        """The run's activations.

        Raises:
            RunError, StoreError: nothing is recorded, or the store is damaged or belongs to another run.
        """
        return self.workspace.store()

    def dataset(self) -> ImageDataset:
        """The images of the run, the same ones as recorded.

        Raises:
            DatasetError: they cannot be opened, or are not the recorded ones; the message shows how to pass another location.
        """
        return self.workspace.dataset()

    def model(self) -> VisionModel:
        """The run's model, on the device.

        Raises:
            PluginError, ModelError: it cannot be loaded.
        """
        return self.workspace.model()

    def sae_name(self, name: str = "") -> str:
        """The name of an SAE; by default the only one, or the best.

        Raises:
            RunError: there is no SAE, none of that name, or several with none marked best.
        """
        return self.workspace.sae_name(name)

    def checkpoint(self, name: str = "") -> Checkpoint:
        """A trained SAE, on the device, checked against the recorded activations, if any.

        Raises:
            RunError: as `sae_name`.
            CheckpointError: it is damaged, or was trained on other activations.
        """
        return self.workspace.checkpoint(name)

    def index(self, name: str = "") -> FeatureIndex:
        """The feature index of an SAE, checked against it.

        Raises:
            RunError: as `sae_name`, or it is not indexed.
        """
        return self.workspace.index(name)
