"""`report_stage`: everything to one illustrated file, and the picture of a sweep; both are drawn by viewer plugins, if installed."""

from __future__ import annotations

import time

from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.plugins.registry import find, installed
from saev_core.runs.run import Run


def report_stage(context: StageContext) -> Summary:
    """Write the report, if a viewer plugin is installed that makes it.

    Returns:
        `report`.

    Raises:
        RunError: nothing is indexed.
    """
    run, stamps = context.run, context.stamps
    if not _draws("report"):
        context.say("report: pip install saev-viz to have one.")
        return Summary(run.path)
    path, key = run.report_path, _key(context)
    if path.exists() and stamps.up_to_date("report", key):
        context.say("report: already there, skipped.")
    else:
        began = time.monotonic()
        path = find("viewer", "report").load()(run)
        stamps.record("report", key, began)
    return Summary(run.path, stamps.seconds("report"), report=path)


def draw_pareto(run: Run, *, changed: bool) -> None:
    """The picture of `results/pareto.json`, if that has changed or there is none yet, and a viewer plugin draws it."""
    if (changed or not run.results_path("pareto").with_suffix(".png").exists()) and _draws("pareto"):
        find("viewer", "pareto").load()(run)


def _draws(what: str) -> bool:
    return what in {plugin.name for plugin in installed("viewer")}


def _key(context: StageContext) -> str:
    run, stamps = context.run, context.stamps
    names = context.sae_names()
    before = [stamps.get(f"{stage}:{name}").get("key") for stage in ("evaluate", "index") for name in names]
    compared = [run.result(task) for task in ("pareto", "stability") if len(names) > 1]
    return stamps.key(run.config.report, before, run.result("recovery"), *compared)
