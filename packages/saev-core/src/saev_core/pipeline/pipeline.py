"""`Pipeline`: the stages of a run, each skipped when what it makes is there already and up to date.

    images -> VisionModel -> ActivationStore -> train -> Checkpoint -> FeatureIndex -> report

A stage reads the artifact before it, writes its own once, and never touches an upstream one. What was made from
what is kept in the run's `stages.json`: a stage's key is a digest of its settings and of the fingerprints it read.
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
"""What does each stage, in their order; each can be called alone, with a `StageContext`."""


class Pipeline:
    """One run's work: `run_stages` does what is asked, `plan` says what training will take."""

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
            track: told how far each stage is.
            say: given one line for a person whenever a stage is done or skipped.
            observers: hook implementations beside the run's trackers and the installed `saev.hooks`.
            only: SAEs to index; none named: all up to four, of more the best.
        """
        self.run = run
        self.workspace = Workspace(run)
        self.context = StageContext.of(self.workspace, say=say, track=track, observers=observers, only=only)

    def run_stages(self, stages: Iterable[str] = STAGES) -> Summary:
        """Do the stages in their order; what one has made stays when a later one fails.

        Raises:
            SaevError: what a stage cannot do, said in a line.
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
        """What training would do and what it takes, see `plan_training`. Writes nothing."""
        return plan_training(self.context)

    def _possible(self, wanted: list[str]) -> tuple[list[str], list[str]]:
        """Of the stages, those to do and those that a run which trains live has nothing to do with: they need a recording."""
        if not self.run.config.train.live or "train" not in wanted:
            return wanted, []
        needs = {"index", "report"} if not self.workspace.is_recorded() else set()
        return [stage for stage in wanted if stage not in {"record", *needs}], [stage for stage in wanted if stage in needs]
