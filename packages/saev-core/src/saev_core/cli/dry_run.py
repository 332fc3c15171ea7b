"""`--dry-run`: what a training would do and what it would cost, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saev_core.cli.console import Screen, duration, size

if TYPE_CHECKING:
    from saev_core.config.run import RunConfig

MOST_ROWS = 40
"""Number of SAEs listed per pass in text output; --json lists all."""


def show_plan(screen: Screen, path: Path, config: RunConfig) -> None:
    """Print the training plan of a run, which need not exist. Writes nothing."""
    from saev_core.pipeline.pipeline import Pipeline
    from saev_core.runs.run import Run

    plan = Pipeline(Run(path, config, {}), say=screen.say).plan()
    screen.result(plan)
    n_there = plan["points"] - sum(len(one["saes"]) for one in plan["passes"])
    there = f", {n_there} up to date" if n_there else ""
    screen.say(f"{plan['points']} SAEs{there}; {len(plan['passes'])} passes over the data")
    for number, one in enumerate(plan["passes"], 1):
        screen.say("")
        screen.say(f"pass {number}: {_pass_text(one)}")
        rows = [[sae["name"], size(sae["memory"]), f"{sae['step_s'] * 1e3:,.1f} ms"] for sae in one["saes"][:MOST_ROWS]]
        screen.table(rows, ["SAE", "memory", "per step"])
        if (more := len(one["saes"]) - MOST_ROWS) > 0:
            screen.say(f"... and {more} more; --json lists all")
    screen.say("")
    most = max((one["memory"] for one in plan["passes"]), default=0)
    states = max((one["disk_states"] for one in plan["passes"]), default=0)
    screen.table(
        [
            ["memory", f"at most {size(most)} per pass, limit {size(plan['memory_limit'])}{_too_large(plan)}"],
            ["time", f"about {duration(plan['seconds'])}, from timing a few steps of each kind of SAE on this machine"],
            ["disk", f"{size(plan['disk'])} of checkpoints, plus up to {size(states)} of training state during a pass"],
        ]
    )


def _pass_text(one: dict[str, Any]) -> str:
    text = f"{len(one['saes'])} SAEs on {one['site']} ({one['tokens']}), {one['n_steps']:,} steps of {one['batch_size']:,} vectors: "
    text += f"{size(one['memory'])}, about {duration(one['seconds'])}"
    if one["part"][1] > 1:
        text += f"; part {one['part'][0]} of {one['part'][1]}, to fit in memory"
    return text + ("; resumes" if one["resumes"] else "")


def _too_large(plan: dict[str, Any]) -> str:
    over = [one for one in plan["passes"] if one["memory"] > plan["memory_limit"]]
    return "; OVER THE LIMIT: lower sae.d_sae or train.batch_size" if over else ""
