"""`Pipeline`: the stages of a run, each skipped if its output is up to date.

    images -> VisionModel -> ActivationStore -> train -> Checkpoint -> FeatureIndex -> report

A stage reads the previous artifact, writes its own once, and never modifies an upstream one. The run's `stages.json` records
provenance: a stage's key is a digest of its settings and of the fingerprints of its inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saev_core.pipeline.evaluate_stage import evaluate_stage
from saev_core.pipeline.index_stage import index_stage
from saev_core.pipeline.record_stage import record_stage
from saev_core.pipeline.report_stage import report_stage
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.pipeline.train_stage import plan_training, refuse_impossible, train_stage
from saev_core.runs.run import STAGES, Run
from saev_core.support.progress import Track, silent
from saev_core.workspace import Workspace

log = logging.getLogger(__name__)

STAGE_FUNCTIONS: Mapping[str, Callable[[StageContext], Summary]] = {
    "record": record_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
    "index": index_stage,
    "report": report_stage,
}
"""The function of each stage, in order; each can be called on its own with a `StageContext`."""


class Pipeline:
    """The stages of one run: `run_stages` runs them, `plan` estimates the cost of training."""

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
            track: receives the progress of each stage.
            say: called with one human-readable line whenever a stage is done or skipped.
            observers: hook implementations in addition to the run's trackers and the installed `saev.hooks`.
            only: SAEs to index; empty: all if there are at most four, otherwise the best.
        """
        self.run = run
        self.workspace = Workspace(run)
        self.context = StageContext.of(self.workspace, say=say, track=track, observers=observers, only=only)

    def run_stages(self, stages: Iterable[str] = STAGES) -> Summary:
        """Run the stages in order; the output of one is kept if a later one fails.

        Raises:
            SaevError: a stage failed; one line with the reason.
        """
        context, found = self.context, Summary(self.run.path)
        wanted, impossible = self._possible(list(stages))
        context.emit("run_started", config=self.run.config.model_dump(mode="json"))
        try:
            if "record" in wanted and "train" in wanted and not self.workspace.is_recorded():
                refuse_impossible(context)
            for name, stage in STAGE_FUNCTIONS.items():
                if name in wanted:
                    found |= stage(context)
            if impossible:
                again = f"make one with saev record {self.run.path}, then saev index {self.run.path}"
                context.say(f"{' and '.join(impossible)} need a recording; {again}.")
        except BaseException as error:
            context.emit("run_ended", error=error)
            raise
        context.emit("run_ended", error=None)
        return found

    def plan(self) -> dict[str, Any]:
        """What training would do and cost, see `plan_training`. Writes nothing."""
        return plan_training(self.context)

    def _possible(self, wanted: list[str]) -> tuple[list[str], list[str]]:
        """Split the stages into those to run and those that a live run cannot run because they need a recording."""
        if not self.run.config.train.live or "train" not in wanted:
            return wanted, []
        needs = {"index", "report"} if not self.workspace.is_recorded() else set()
        return [stage for stage in wanted if stage not in {"record", *needs}], [stage for stage in wanted if stage in needs]
