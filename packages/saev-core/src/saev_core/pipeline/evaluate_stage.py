"""`evaluate_stage`: evaluate checkpoints, measure recovery of the ground truth where it is known, and compare several SAEs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from saev_core.data.dataset import KnownTruth, knows_truth
from saev_core.evaluation.measure import measure
from saev_core.evaluation.pareto import EvaluatedSAE, pareto
from saev_core.evaluation.seeds import Measured, compare_seeds, frequency_path, is_consensus, keep_frequency, seeds_of, write_stability
from saev_core.pipeline.report_stage import draw_pareto
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.initialise import CALIBRATE_ON


def evaluate_stage(context: StageContext) -> Summary:
    """Evaluate every SAE of the run, and compare them.

    Returns:
        `sae`; for several SAEs `pareto`, for several seeds `stability`; `recovery` if the data set has ground truth; for a run that
        trains live, the image counts, as `record_stage`.

    Raises:
        RunError: the run has no SAE, or nothing is recorded.
        CheckpointError: an SAE is damaged, or was trained on other activations.
    """
    run, names = context.run, context.sae_names()
    found = {name: _evaluate(context, name) for name in names if not is_consensus(run, name)}
    cards = {name: card for name, (_, card) in found.items()}
    measured = {name: each for name, (each, _) in found.items()}
    seeds = seeds_of(measured)
    entries = {point: _compare_seeds(context, point, some, measured) for point, some in seeds.items()}
    for name in context.sae_names():  # a consensus is an SAE too, and may be new
        if name not in measured:
            measured[name], cards[name] = _evaluate(context, name)
    points = [each.point for each in measured.values()]
    done = [*(f"evaluate:{name}" for name in measured), *(f"stability:{point}" for point in seeds)]
    stability = write_stability(run, entries, points)
    ranked = _rank(context, points) if len(points) > 1 else None
    return context.live_images() | Summary(
        run.path,
        context.stamps.seconds(*done),
        sae=cards,
        stability=stability or None,
        pareto=ranked,
        recovery=run.result("recovery") or None,
    )


def card_text(card: Mapping[str, Any]) -> str:
    """An evaluation card as one line."""
    return "  ".join(f"{key} {card[key]:.4g}" for key in ("nmse", "l0", "dead", "dense") if isinstance(card.get(key), int | float))


def _evaluate(context: StageContext, name: str) -> tuple[Measured, dict[str, Any]]:
    """Evaluate one SAE, unless up to date; also returns its card."""
    run, stage, workspace = context.run, f"evaluate:{name}", context.workspace
    checkpoint = context.checkpoint(name)
    images = workspace.images(checkpoint.read)
    key = context.stamps.key(run.config.evaluate, checkpoint.fingerprint, images.meta.fingerprint)
    if checkpoint.card and context.stamps.up_to_date(stage, key):
        context.say(f"evaluate: {name} up to date, skipping.")
    else:
        began = time.monotonic()
        done = measure(checkpoint, images, run.config.evaluate, track=context.track)
        checkpoint = checkpoint.with_card(done.card)
        checkpoint.save(run.sae_dir(name))
        workspace.forget(name)
        keep_frequency(run, name, done.frequency)
        _recover(context, name, checkpoint)
        context.stamps.record(stage, key, began)
        context.say(f"evaluate: {name} {card_text(checkpoint.card)}")
    return Measured.of(name, checkpoint), checkpoint.card


def _recover(context: StageContext, name: str, checkpoint: Checkpoint) -> None:
    """Measure recovery, if the data set has ground truth and the SAE reads patches and has held-out images."""
    run, read = context.run, checkpoint.read
    if read.tokens != "patches" or not read.heldout or not knows_truth(run.config.dataset):
        return
    from saev_core.evaluation.known_truth import recover

    truth = cast("KnownTruth", context.workspace.dataset())
    table = recover(checkpoint, context.workspace.images(read), truth, track=context.track)
    run.write_result("recovery", {**run.result("recovery"), name: table.to_json()})


def _compare_seeds(context: StageContext, point: str, seeds: list[str], found: Mapping[str, Measured]) -> dict[str, Any]:
    """Measure how well the seeds of one point agree, and save their consensus as an SAE of the run."""
    run, stamps, stage, above = context.run, context.stamps, f"stability:{point}", context.run.config.evaluate.consensus
    key = stamps.key(above, seeds, [found[name].fingerprint for name in seeds])
    entry: dict[str, Any] = run.result("stability").get(point, {})
    made = entry.get("consensus", {}).get("name")
    if entry and stamps.up_to_date(stage, key, partial(context.checkpoint, made) if made else lambda: None):
        context.say(f"evaluate: seed agreement of {point} up to date, skipping.")
        return entry
    began = time.monotonic()
    checkpoints = {name: context.checkpoint(name) for name in seeds}
    frequency = {name: _frequency(context, name, each) for name, each in checkpoints.items()}
    x = context.workspace.source(checkpoints[seeds[0]].read).sample(CALIBRATE_ON, 0) if above is not None else None
    entry = compare_seeds(run, point, checkpoints, frequency, above, x)
    context.workspace.forget(f"{point}-consensus")
    run.write_result("stability", {**run.result("stability"), point: entry})
    stamps.record(stage, key, began)
    context.say(f"evaluate: {len(seeds)} seeds of {point} agree with a mean cosine of {entry['mean_cosine']:.3f}")
    if why := entry.get("consensus", {}).get("why"):
        context.say(f"evaluate: no consensus for {point}: {why}")
    return entry


def _frequency(context: StageContext, name: str, checkpoint: Checkpoint) -> np.ndarray:
    path = frequency_path(context.run, name)
    if not path.exists():
        done = measure(checkpoint, context.workspace.images(checkpoint.read), context.run.config.evaluate, track=context.track)
        keep_frequency(context.run, name, done.frequency)
    return cast("np.ndarray", np.load(path, allow_pickle=False))


def _rank(context: StageContext, points: Sequence[EvaluatedSAE]) -> dict[str, Any]:
    """Write the Pareto front and the best SAE as a table and a plot."""
    run = context.run
    ranked = pareto(points, run.config.evaluate.best_l0).to_json()
    changed = ranked != run.result("pareto")
    run.write_result("pareto", ranked)
    draw_pareto(run, changed=changed)
    best, bound = ranked["best"], ranked["best_l0"]
    what = f"{best} has the lowest NMSE" if best else "no SAE is"
    context.say(f"evaluate: {what} among those with L0 <= {bound:.4g}")
    return ranked
