"""`train_stage`: train one SAE or a sweep; `plan_training`: estimate its cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from saev_core.activations.recording.plan import n_recorded
from saev_core.activations.sources.expected import expected
from saev_core.errors import TrainError
from saev_core.evaluation.heldout import Heldout
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.runs.sweep import Point, expand
from saev_core.sae.base import make_sae
from saev_core.training.passes import Pass, limit_of, make_passes, plan_of


@dataclass(frozen=True)
class Points:
    """The SAEs that a run's configuration asks for."""

    all: list[Point]
    todo: list[Point]
    """SAEs to be trained."""
    stopped: dict[str, str]
    """SAEs that diverged before, with the reason."""


def train_stage(context: StageContext) -> Summary:
    """Train the SAEs of the configuration that are not up to date.

    Returns:
        `stopped`; for a run that trains live, the image counts, as `record_stage`.

    Raises:
        RunError: nothing is recorded.
        ConfigError: an SAE's options are invalid for these activations.
        TrainError: training cannot continue, or every SAE diverged.
    """
    config, workspace, say = context.run.config, context.workspace, context.say
    points = _points(context)
    names, stopped = [point.name for point in points.all], dict(points.stopped)
    if n_there := len(points.all) - len(points.todo) - len(stopped):
        say(f"train: {names[0] if len(names) == 1 else f'{n_there} of {len(names)} SAEs'} up to date, skipping.")
    limit = limit_of(config.train.memory_gb, workspace.device)
    passes = make_passes(points.todo, workspace.source, context.run.sae_dir, workspace.device, limit=limit)
    if len(passes) > 1:
        say(f"train: {len(points.todo)} SAEs in {len(passes)} passes over the data.")
    for one in passes:
        _say_size(context, one, limit)
        stopped |= _train(context, one)
    found = Summary(context.run.path, context.stamps.seconds(*(f"train:{name}" for name in names)), stopped=stopped or None)
    found |= context.live_images()
    for why in stopped.values():
        say(f"train: {why}")
    if len(stopped) == len(names):
        raise TrainError("all SAEs diverged: " + " ".join(stopped.values()))
    return found


def plan_training(context: StageContext) -> dict[str, Any]:
    """What `train_stage` would do and cost, measured on a few steps of each kind of SAE; see `plan_of`. Writes nothing."""
    config, workspace = context.run.config, context.workspace
    source = workspace.source
    limit = limit_of(config.train.memory_gb, workspace.device)
    if config.train.live or workspace.is_recorded():
        points = _points(context)
        todo, n_points = points.todo, len(points.all)
    else:
        todo = list(expand(config).points)
        n_points = len(todo)
        source = partial(expected, model=workspace.model(), n_images=n_recorded(config.record, workspace.dataset()))
    passes = make_passes(todo, source, context.run.sae_dir, workspace.device, limit=limit, n_timed=3)
    return plan_of(passes, n_points, limit)


def refuse_impossible(context: StageContext) -> None:
    """Build every SAE of the configuration once, to reject invalid options before hours of recording.

    Raises:
        ConfigError: an SAE's options are invalid for these activations.
    """
    d_model = context.workspace.model().d_model
    for point in expand(context.run.config).points:
        n_sites = point.config.read.n_sites
        make_sae(point.config.sae, n_sites * d_model, n_sites=n_sites)


def _points(context: StageContext) -> Points:
    sweep, stamps = expand(context.run.config), context.stamps
    if sweep.dropped:
        some = ", ".join(sweep.dropped[:5]) + (", ..." if len(sweep.dropped) > 5 else "")
        context.say(f"train: {len(sweep.dropped)} duplicate points of the sweep dropped: {some}")
    keys = [_key(context, point) for point in sweep.points]
    # In a sweep that grew, a point may have another name than when it was trained.
    had = {stamp["key"]: name for name, stamp in stamps.of_saes("train").items()}
    found = Points([replace(point, name=had.get(key, point.name)) for point, key in zip(sweep.points, keys, strict=True)], [], {})
    for point, key in zip(found.all, keys, strict=True):
        stage = f"train:{point.name}"
        if "stopped" in (stamp := stamps.get(stage)) and stamps.up_to_date(stage, key):
            found.stopped[point.name] = str(stamp["stopped"])
        elif not stamps.up_to_date(stage, key, partial(context.checkpoint, point.name)):
            found.todo.append(point)
    return found


def _key(context: StageContext, point: Point) -> str:
    live = context.run.config.train.live
    meta = context.workspace.live(point.config.read).meta if live else context.workspace.store().meta
    return context.stamps.key(point.says(), meta.fingerprint)


def _say_size(context: StageContext, one: Pass, limit: int) -> None:
    """Report a pass that was split, or does not fit, because of memory."""
    if one.part[1] > 1 and one.part[0] == 1:
        context.say(f"train: {one.part[1]} of them read the same data, because {limit / 1e9:.3g} GB cannot hold all their SAEs at once.")
    if one.cost and one.cost.memory > limit:
        context.say(
            f"train: {one.names[0]} needs about {one.cost.memory / 1e9:.3g} GB, limit is {limit / 1e9:.3g} GB; trying anyway; "
            "if it fails, lower sae.d_sae or train.batch_size."
        )


def _train(context: StageContext, one: Pass) -> dict[str, str]:
    """Run one pass; each SAE is stamped when saved. Returns the SAEs that diverged, with the reason."""
    run, began, points = context.run, time.monotonic(), {point.name: point for point in one.points}

    def stamp(name: str, **more: Any) -> None:
        point = points[name]
        context.stamps.record(f"train:{name}", _key(context, point), began, share=len(points), says=point.says(), **more)

    def emit(hook: str, **told: Any) -> None:
        context.emit(hook, **told)
        if hook == "checkpointed" and told["path"] == run.sae_dir(told["name"]):
            context.workspace.forget(told["name"])
            stamp(told["name"])

    stopped = one.train(run.sae_dir, emit=emit, track=context.track, device=context.workspace.device, heldout_of=Heldout.of)
    if run.config.sweep:
        for name, why in stopped.items():
            stamp(name, stopped=why)
    if done := [name for name in one.names if name not in stopped]:
        where = run.sae_dir(done[0]) if len(done) == 1 else run.path / "sae"
        context.say(f"train: {done[0] if len(done) == 1 else f'{len(done)} SAEs on {one.source.site}'} in {where}")
    return stopped
