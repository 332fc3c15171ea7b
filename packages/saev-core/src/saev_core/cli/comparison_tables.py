"""Tables that compare several SAEs of a run: the Pareto front and seed agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saev_core.cli.console import Screen


def show(screen: Screen, ranked: Mapping[str, Any] | None, stable: Mapping[str, Any] | None) -> None:
    """Print what `saev evaluate` found for several SAEs; nothing for a single one."""
    if ranked:
        screen.say("")
        screen.say("SAEs by L0, on held-out images; * on the Pareto front (L0, NMSE):")
        screen.table(*pareto_rows(ranked))
    if stable:
        screen.say("")
        screen.say("seed agreement, cosine of matched decoder rows of live features:")
        screen.table(*stability_rows(stable))
        for name, entry in stable.items():
            if why := entry.get("consensus", {}).get("why"):
                screen.say(f"{name}: no consensus: {why}")


def pareto_rows(ranked: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Rows and header: every SAE, sorted by L0."""
    rows = []
    for p in ranked["points"]:
        seed = "" if p["seed"] is None else str(p["seed"])
        lr = "" if p["lr"] is None else f"{p['lr']:.3g}"
        mark = "* best" if p["best"] else "*" if p["on_front"] else ""
        rows.append([p["name"], f"{p['l0']:.4g}", f"{p['nmse']:.4f}", f"{p['dead']:.2%}", str(p["d_sae"]), lr, seed, mark])
    return rows, ["SAE", "L0", "NMSE", "dead", "features", "lr", "seed", "front"]


def stability_rows(stable: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Rows and header: every point that has several seeds."""
    rows = []
    for name, entry in stable.items():
        made = entry.get("consensus", {})
        nmse = f"{made['nmse']:.4f} ({made['parents_nmse']:.4f})" if "nmse" in made else ""
        live = f"{min(entry['n_live'])} to {max(entry['n_live'])}" if len(set(entry["n_live"])) > 1 else str(entry["n_live"][0])
        shares = [f"{entry[key]:.1%}" for key in ("above_0.9", "above_0.7")]
        rows.append([name, str(len(entry["saes"])), live, f"{entry['mean_cosine']:.3f}", *shares, str(made.get("d_sae", "")), nmse])
    return rows, ["point", "seeds", "live", "mean", "> .9", "> .7", "consensus", "NMSE (its seeds')"]
