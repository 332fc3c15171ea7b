"""`saev run`, `record`, `train`, `evaluate`, `index`: run pipeline stages on a run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saev_core.cli.comparison_tables import show as show_compared
from saev_core.cli.console import Screen, duration
from saev_core.cli.dry_run import show_plan
from saev_core.cli.options import Flags
from saev_core.errors import StoreError
from saev_core.runs.checks import check_config, default_path
from saev_core.runs.run import STAGES, Run
from saev_core.runs.sweep import check_size

if TYPE_CHECKING:
    from saev_core.config.run import RunConfig
    from saev_core.pipeline.summary import Summary


def run_stages(flags: Flags, stages: Sequence[str] = STAGES) -> None:
    """Run the stages on the run that the flags name or configure, and print the results."""
    screen = Screen(as_json=flags.json, debug=flags.debug)
    path, config = run_and_config(flags, must_exist=stages[0] not in ("record", "train"))
    if "--sweep" in flags.given:
        check_size(config.sweep, config.sae.name, yes="--yes" in flags.given)
    check_config(config)
    if "--dry-run" in flags.given:
        show_plan(screen, path, config)
        return
    from saev_core.pipeline.pipeline import Pipeline

    run = Run.create(path, config)
    screen.say(f"run: {run.path}")
    summary = Pipeline(run, track=screen.track, say=screen.say, only=flags.given.get("--only", ())).run_stages(stages)
    screen.result(summary.to_json())
    if stages == STAGES:
        screen.say("")
        screen.table(summary_rows(summary))
        screen.say("")
        _recovery(screen, summary)
    show_compared(screen, summary.pareto, summary.stability)
    if summary.report:
        screen.say(f"report: {summary.report}")


def run_and_config(flags: Flags, *, must_exist: bool) -> tuple[Path, RunConfig]:
    """The run folder and its configuration: an existing run's own, with the changes made by the flags."""
    if flags.run and (must_exist or (Path(flags.run) / "config.json").exists()):
        return Path(flags.run), flags.config(None if flags.whole else Run.open(flags.run).config)
    config = flags.config(_of_store(flags.given["--store"]) if "--store" in flags.given and "--model" not in flags.given else None)
    return Path(flags.run) if flags.run else default_path(config, time.strftime("%Y-%m-%d")), config


def _of_store(url: str) -> RunConfig | None:
    """Defaults with the model and data set that a store was recorded from; None if there is no store yet."""
    from saev_core.activations.store.store import ActivationStore
    from saev_core.config.base import validate
    from saev_core.config.run import RunConfig

    try:
        meta = ActivationStore.open(url).meta
    except StoreError:
        return None
    refs = {"model": meta.model, "dataset": meta.dataset}
    return validate(RunConfig, {kind: {"name": ref["name"], "options": ref["options"]} for kind, ref in refs.items()})


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """Rows of the summary table at the end of `saev run`."""
    rows = [("images", f"{summary.n_images:,}" + (f" ({summary.n_missing:,} missing)" if summary.n_missing else ""))]
    cards = summary.sae or {}
    for name, card in cards.items() if not summary.pareto else ():
        rows.append(("SAE", name))
        for key in ("nmse", "explained_variance", "l0"):
            if key in card:
                rows.append((f"  {key}", f"{card[key]:.4g}"))
        for key in ("dead", "almost_dead", "dense"):
            if key in card:
                rows.append((f"  {key}", _share(card[key])))
        if recovered := (summary.recovery or {}).get(name):
            rows.append(("  ground truth recovered", f"mean F1 {recovered['mean']:.3f}"))
    seconds = summary.seconds
    if len(cards) > 1:
        kinds = dict.fromkeys(stage.partition(":")[0] for stage in seconds)
        seconds = {kind: sum(s for stage, s in seconds.items() if stage.partition(":")[0] == kind) for kind in kinds}
    rows.append(("time", ", ".join(f"{stage} {duration(s)}" for stage, s in seconds.items())))
    return rows


def _share(value: float) -> str:
    return f"{value:.2%} of features"


def _recovery(screen: Screen, summary: Summary) -> None:
    """Print the best and worst recovered value of every ground-truth factor; of several SAEs, for the best one."""
    for name, found in (summary.recovery or {}).items():
        if summary.pareto and name != summary.pareto["best"]:
            continue
        rows = []
        for factor, mean in found["factors"].items():
            values = sorted((row["f1"], row["value"]) for row in found["rows"] if row["factor"] == factor and row["n_positive"])
            if values:
                rows.append([factor, f"{mean:.3f}", f"{values[0][1]} {values[0][0]:.3f}", f"{values[-1][1]} {values[-1][0]:.3f}"])
        screen.say(f"ground truth recovered by {name}: F1 on held-out patches of the best feature for each value")
        screen.table([*rows, ["mean", f"{found['mean']:.3f}", "", ""]], ["factor", "mean", "worst", "best"])
        screen.say("")
