"""`StageContext`: the inputs shared by all stages of a run."""

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
    """The run, the stamps of its stages, and the outputs for logging and progress. Create one with `StageContext.of(workspace)`."""

    workspace: Workspace
    stamps: Stamps
    observers: Observers
    say: Callable[[str], None] = log.info
    """Called with one human-readable line whenever something is done or skipped."""
    track: Track = silent
    """Receives the progress of each stage."""
    only: Sequence[str] = ()
    """SAEs to index; empty: all if there are at most four, otherwise the best."""
    _said: set[int] = field(default_factory=set)
    """Unreadable images already reported."""

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
            observers: hook implementations in addition to the run's trackers and the installed `saev.hooks`.

        Raises:
            PluginError: a tracker cannot be used, or a hook has the wrong signature.
        """
        trackers = []
        for name in workspace.run.config.trackers:
            tracker, cfg = resolve("tracker", name)
            trackers.append(tracker(cfg))
        return cls(workspace, Stamps(workspace.run, say), Observers(*trackers, *observers), say, track, only)

    @property
    def run(self) -> Run:
        """The run of these stages."""
        return self.workspace.run

    def emit(self, hook: str, **arguments: Any) -> None:
        """Call `hook` on every observer."""
        self.observers.emit(hook, run=self.run, **arguments)

    def sae_names(self) -> list[str]:
        """Names of the run's trained SAEs.

        Raises:
            RunError: there are none.
        """
        if not (names := self.run.sae_names):
            raise RunError(f"{self.run.path} has no trained SAE; train one with saev train {self.run.path}.")
        return names

    def checkpoint(self, name: str) -> Checkpoint:
        """A trained SAE as on disk, checked against the store, or against the model if nothing is recorded.

        Raises:
            CheckpointError: it is missing, damaged, or was trained on other activations.
        """
        checkpoint = self.workspace.read_checkpoint(name)
        checkpoint.check(self.workspace.images(checkpoint.read))
        return checkpoint

    def live_images(self) -> Summary:
        """The image counts that a recording would return, for images read live so far; nothing if none were."""
        if not (sources := self.workspace.live_sources):
            return Summary(self.run.path)
        missing = {image[0]: image for source in sources for image in source.missing}
        for index, name, why in [image for image in missing.values() if image[0] not in self._said][:20]:
            self.say(f"train: image {index} cannot be read, skipping: {name} ({why})")
        self._said |= missing.keys()
        told = [MissingImage(index=index, name=name, why=why) for index, name, why in map(missing.__getitem__, sorted(missing))]
        return Summary(self.run.path, missing=told, n_images=sources[-1].n_images, n_missing=len(told))
