"""Interleaved timing, so that other load on the machine affects all candidates equally."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


def interleave(
    work: Mapping[str, Callable[[], float]],
    rounds: int,
    before: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Rates, units per second, of each function in each round; functions alternate within a round.

    Args:
        work: by name, a function that does some work and returns the number of units.
        before: called, untimed, before each function (e.g. to drop a cache).
        clock: seconds; `time.process_time` excludes other processes, for work in one thread.
    """
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, piece in work.items():
            before()
            gc.collect()
            start = clock()
            units = piece()
            rates[name].append(units / (clock() - start))
    return rates


def table(title: str, unit: str, rates: Mapping[str, list[float]], floor: str, scale: float = 1.0) -> None:
    """Print best and median rate of each, and the ratio of its best to the best of `floor`."""
    print(f"\n{title}\n{'':44}{'best':>12}{'median':>12}   x {floor}")
    base = max(rates[floor])
    for name, each in rates.items():
        best, median = max(each) / scale, statistics.median(each) / scale
        print(f"{name:44}{best:>12,.0f}{median:>12,.0f}{max(each) / base:>10.3f}   {unit}")


def asked(what: str, rates: Mapping[str, Sequence[float]], ours: str, over: str, least: float) -> dict[str, Any]:
    """A line of the table of targets: the best rate of `ours` over that of `over`, and whether it is at least `least`."""
    reached = {over: max(rates[ours]) / max(rates[over])} if over in rates else {}
    return {"what": what, "aim": f"{least:g}x {over}", "reached": reached, "missed": any(value < least for value in reached.values())}


def summary(told: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of targets, with the result against each candidate, and its peak memory if measured."""
    print("\n| what | target | result | peak MB | |\n| --- | --- | --- | --- | --- |")
    for line in told:
        named = len(line["reached"]) > 1
        reached = [f"{who} {value:.2f}" if named else f"{value:.2f}" for who, value in line["reached"].items()]
        reached += [f"{who} is not installed" for who in line.get("absent", ())]
        memory = ", ".join(f"{who} {value:,.0f}" for who, value in line.get("peak_mb", {}).items())
        cells = [line["what"], line["aim"], ", ".join(reached) or "not installed", memory, "MISSED" if line["missed"] else ""]
        print("| " + " | ".join(cells) + " |")


def batch_entropy(image: Int[np.ndarray, " batch"], n_images: int) -> float:
    """How evenly a batch spreads over images, 0 to 1: the entropy of its image numbers over the largest possible.

    1 means as many different images as a batch of that size can hold; 0, all from one.
    """
    _, counts = np.unique(image, return_counts=True)
    share = counts / counts.sum()
    most = math.log(min(len(image), n_images))
    return float(-(share * np.log(share)).sum() / most) if most > 0 else 1.0
