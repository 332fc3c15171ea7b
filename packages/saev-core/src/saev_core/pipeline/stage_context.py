"""`StageContext`: what every stage of a run works with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from saev_core.errors import RunError
from saev_core.pipeline.summary import MissingImage, Summary
from saev_core.plugins.registry import resolve
from saev_core.runs.hooks import Observers
from saev_core.runs.run import Run
from saev_core.runs.stamps import Stamps
from saev_core.sae.checkpoint import Checkpoint
from saev_core.support.progress import Track, silent
from saev_core.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass
class StageContext:
    """The run, what is known of its stages, and who is told. `StageContext.of(workspace)` makes one."""

    workspace: Workspace
    stamps: Stamps
    observers: Observers
    say: Callable[[str], None] = log.info
    """Given one line for a person whenever something is done or skipped."""
    track: Track = silent
    """Told how far each stage is."""
    only: Sequence[str] = ()
    """SAEs to index; none named: all up to four, of more the best."""
    _said: set[int] = field(default_factory=set)
    """Images that a person was told cannot be read."""

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        *,
        say: Callable[[str], None] = log.info,
        track: Track = silent,
        observers: Iterable[object] = (),
        only: Sequence[str] = (),
    ) -> Self:
        """
        Args:
            observers: hook implementations beside the run's trackers and the installed `saev.hooks`.

        Raises:
            PluginError: a tracker cannot be used, or a hook does not fit.
        """
        trackers = []
        for name in workspace.run.config.trackers:
            tracker, cfg = resolve("tracker", name)
            trackers.append(tracker(cfg))
        return cls(workspace, Stamps(workspace.run, say), Observers(*trackers, *observers), say, track, only)

    @property
    def run(self) -> Run:
        """Whose stages they are."""
        return self.workspace.run

    def emit(self, hook: str, **arguments: Any) -> None:
        """Call every observer's `hook`."""
        self.observers.emit(hook, run=self.run, **arguments)

    def sae_names(self) -> list[str]:
        """Trained SAEs of the run.

        Raises:
            RunError: there is none.
        """
        if not (names := self.run.sae_names):
            raise RunError(f"{self.run.path} has no trained SAE; train one with saev train {self.run.path}.")
        return names

    def checkpoint(self, name: str) -> Checkpoint:
        """A trained SAE as it is on disk, checked against the store, or the model where nothing is recorded.

        Raises:
            CheckpointError: there is none, it is damaged, or of other activations.
        """
        checkpoint = self.workspace.read_checkpoint(name)
        checkpoint.check(self.workspace.images(checkpoint.read))
        return checkpoint

    def live_images(self) -> Summary:
        """What a recording would have said of the images, of those that were read live so far; nothing where none were."""
        if not (sources := self.workspace.live_sources):
            return Summary(self.run.path)
        missing = {image[0]: image for source in sources for image in source.missing}
        for index, name, why in [image for image in missing.values() if image[0] not in self._said][:20]:
            self.say(f"train: image {index} is left out: {name} ({why})")
        self._said |= missing.keys()
        told = [MissingImage(index=index, name=name, why=why) for index, name, why in map(missing.__getitem__, sorted(missing))]
        return Summary(self.run.path, missing=told, n_images=sources[-1].n_images, n_missing=len(told))
