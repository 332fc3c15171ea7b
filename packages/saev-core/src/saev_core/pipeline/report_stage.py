"""`report_stage`: the illustrated report and the plot of a sweep, both made by viewer plugins, if installed."""

from __future__ import annotations

import time
from contextlib import suppress

from saev_core.errors import NoViewerError
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.runs.run import Run
from saev_core.runs.viewer import find_viewer


def report_stage(context: StageContext) -> Summary:
    """Write the report, if an installed viewer plugin supports it.

    Returns:
        `report`.

    Raises:
        RunError: nothing is indexed.
    """
    run, stamps = context.run, context.stamps
    try:
        viewer = find_viewer("report")
    except NoViewerError as error:
        context.say(f"report: skipped, {error}")
        return Summary(run.path)
    path, key = run.report_path, _key(context)
    if path.exists() and stamps.up_to_date("report", key):
        context.say("report: up to date, skipping.")
    else:
        began = time.monotonic()
        path = viewer.report(run)
        stamps.record("report", key, began)
    return Summary(run.path, stamps.seconds("report"), report=path)


def draw_pareto(run: Run, *, changed: bool) -> None:
    """Plot `results/pareto.json` if it changed or has no plot yet, and a viewer plugin supports it."""
    if changed or not run.results_path("pareto").with_suffix(".png").exists():
        with suppress(NoViewerError):  # the table suffices
            find_viewer("pareto").pareto(run)


def _key(context: StageContext) -> str:
    run, stamps = context.run, context.stamps
    names = context.sae_names()
    before = [stamps.get(f"{stage}:{name}").get("key") for stage in ("evaluate", "index") for name in names]
    compared = [run.result(task) for task in ("pareto", "stability") if len(names) > 1]
    return stamps.key(run.config.report, before, run.result("recovery"), *compared)
