"""The SAEs of a run compared: reconstruction error against L0 as chart and table, and agreement between seeds."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from saev_core import Run
from saev_core.errors import RunError
from saev_core.support.files import replace_file
from saev_viz.drawing.charts import frame, log_ticks, number, percent, ticks
from saev_viz.drawing.svg import Drawing, Mark, Words, width_of

MOST_ROWS = 40
"""Maximum number of rows before those not on the front are collapsed."""
NEAR = ((10, -7, "start"), (10, 15, "start"), (-10, 15, "end"), (-10, -7, "end"), (0, -13, "middle"), (0, 23, "middle"))
"""Candidate positions of a label near its point: right, down, alignment; the first free one is used."""
FAR = tuple(
    (s * dx, t * dy, "start" if s > 0 else "end") for dy in (40, 70, 110, 160) for dx in (24, 60, 110) for s in (-1, 1) for t in (1, -1)
)
"""Fallback positions."""
Box = tuple[float, float, float, float]


def write_pareto(run: Run) -> Path:
    """Draw `results/pareto.json` as `results/pareto.png` and return its path.

    Raises:
        RunError: the run's SAEs were not compared, or the file cannot be written.
    """
    ranked = run.result("pareto")
    if not ranked.get("points"):
        raise RunError(f"{run.path} has no comparison of SAEs; train several, then run saev evaluate {run.path}.")
    path = run.results_path("pareto").with_suffix(".png")
    png = io.BytesIO()
    chart(ranked, 900, 560).picture().save(png, "PNG", optimize=True)
    try:
        replace_file(path, png.getvalue())
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}); check permissions and free space.") from None
    return path


def section(ranked: Mapping[str, Any], stable: Mapping[str, Any]) -> str:
    """The report's section comparing SAEs; empty if there is only one."""
    points = ranked.get("points", [])
    if len(points) < 2:
        return ""
    best = next((p for p in points if p["best"]), None)
    bound = number(ranked["best_l0"])
    chosen = f"<b>{escape(best['name'])}</b> has the lowest error" if best else "No SAE is"
    charts = chart(ranked, 900, 520).svg("broad") + chart(ranked, 380, 400, by_number=True).svg("narrow")
    return (
        f'<p class="note">Each point is an SAE, evaluated on held-out images. Left is sparser, down is a lower reconstruction '
        f"error. The line is the Pareto front; faint points are dominated. {chosen} among those with an "
        f'L0 of at most {bound}.</p><div class="pareto">{charts}</div>{_table(points)}{_stability(stable)}'
    )


def _table(points: Sequence[Mapping[str, Any]]) -> str:
    heads = ("#", "L0", "NMSE", "Dead", "Features", "Learning rate", "Seed")
    numbers = [f'<th class="num">{head}</th>' for head in heads]
    top = f"{numbers[0]}<th>SAE</th>{''.join(numbers[1:])}<th></th>"
    rows = [(p, _row(i, p)) for i, p in enumerate(points, 1)]

    def table(some: Iterable[str]) -> str:
        return f'<div class="wide"><table class="saes"><thead><tr>{top}</tr></thead><tbody>{"".join(some)}</tbody></table></div>'

    if len(rows) <= MOST_ROWS:
        return table(row for _, row in rows)
    front = table(row for p, row in rows if p["on_front"] or p["best"])
    return f"{front}<details><summary>All {len(rows)} SAEs</summary>{table(row for _, row in rows)}</details>"


def _row(i: int, p: Mapping[str, Any]) -> str:
    mark = "<b>best</b>" if p["best"] else "front" if p["on_front"] else ""
    lr = "" if p["lr"] is None else number(p["lr"])
    cells = (number(p["l0"]), f"{p['nmse']:.4f}", percent(p["dead"]), f"{p['d_sae']:,}", lr, "" if p["seed"] is None else str(p["seed"]))
    numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    return f'<tr><td class="num">{i}</td><th scope="row">{escape(p["name"])}</th>{numbers}<td>{mark}</td></tr>'


def _stability(stable: Mapping[str, Any]) -> str:
    if not stable:
        return ""
    rows = []
    for name, entry in stable.items():
        made = entry.get("consensus", {})
        one = f"{made['d_sae']:,} features" if "d_sae" in made else escape(made.get("why", "not made"))
        if "nmse" in made:
            one += f", NMSE {made['nmse']:.4f} (its seeds {made['parents_nmse']:.4f})"
        low, high = min(entry["n_live"]), max(entry["n_live"])
        live = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        shares = [percent(entry[key]) for key in ("above_0.9", "above_0.7")]
        cells = [str(len(entry["saes"])), live, f"{entry['mean_cosine']:.3f}", *shares]
        numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{numbers}<td class="made">{one}</td></tr>')
    heads = ("Seeds", "Live features", "Mean cosine", "Above .9", "Above .7")
    top = "<th></th>" + "".join(f'<th class="num">{head}</th>' for head in heads) + "<th>Consensus</th>"
    return (
        '<h3 class="after">Do seeds agree?</h3><p class="note">SAEs that differ only in their seed are matched feature by feature, one to '
        "one, by the cosine of their decoder rows; an unmatched feature counts as 0. Features found by all seeds form the consensus.</p>"
        f'<div class="wide"><table class="saes"><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def chart(ranked: Mapping[str, Any], width: float, height: float, *, by_number: bool = False) -> Drawing:
    """NMSE against L0: one mark per SAE, styled by variant, the front as a line, and the L0 bound of the best one.

    Args:
        by_number: label points of the front with their row in the table, for charts too small for names.
    """
    points = ranked["points"]
    variants = list(dict.fromkeys(sorted(p["variant"] for p in points)))
    drawing = Drawing(width, height, "L0 against held-out NMSE of every SAE, with the Pareto front")
    top = _legend(drawing, variants, any(p["consensus"] for p in points))
    area = (58.0, top, width - 16, height - 52)
    px, py = _axes(drawing, area, points, ranked["best_l0"])

    at = {p["name"]: (px(p["l0"]), py(p["nmse"])) for p in points}
    bound = px(ranked["best_l0"]) if ranked["best_l0"] > 0 else math.inf
    if area[0] <= bound <= area[2]:
        drawing.lines.append(("bound", [(bound, area[1]), (bound, area[3])]))
        text = f"L0 at most {number(ranked['best_l0'])}"
        left = bound + 6 + width_of(text) > area[2]
        drawing.words.append(Words(bound - 6 if left else bound + 6, area[1] + 12, text, "end" if left else "start"))
    front = [at[p["name"]] for p in points if p["on_front"]]
    if len(front) > 1:
        drawing.lines.append(("front", front))
    for p in sorted(points, key=lambda p: (p["on_front"], p["best"])):
        x, y = at[p["name"]]
        title = f"{p['name']}: L0 {number(p['l0'])}, NMSE {p['nmse']:.4f}, dead {percent(p['dead'])}"
        kind, shown = variants.index(p["variant"]), p["on_front"] or p["best"]
        drawing.marks.append(Mark(x, y, kind, 6.5 if p["best"] else 5.2, not shown, p["consensus"], title, p["name"]))
    _name(drawing, area, points, at, by_number, bound)
    return drawing


def _legend(drawing: Drawing, variants: Sequence[str], hollow: bool) -> float:
    """Draw the variants' marks and names at the top; return the height at which the plot area begins."""
    x, y = 14.0, 20.0
    entries = [(name, i, False) for i, name in enumerate(variants)] + ([("hollow: consensus of seeds", -1, True)] if hollow else [])
    for name, kind, _ in entries:
        wide = width_of(name) + (34 if kind >= 0 else 18)
        if x > 14 and x + wide > drawing.width - 8:
            x, y = 14.0, y + 22
        if kind >= 0:
            drawing.marks.append(Mark(x + 5, y - 4.5, kind, 5.2, title=name))
        drawing.words.append(Words(x + (15 if kind >= 0 else 0), y, name, "start", "name" if kind >= 0 else "tick"))
        x += wide
    return y + 34


def _axes(
    drawing: Drawing, area: Box, points: Sequence[Mapping[str, Any]], bound: float
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Draw grid, ticks and titles; return functions from L0 and NMSE to positions."""
    x0, y0, x1, y1 = area
    l0 = [p["l0"] for p in points]
    # For SAEs with the same target k, keep small deviations from it small on the axis.
    l0 += [0.9 * min(l0), 1.15 * max(l0)] if max(l0) < 1.3 * min(l0) else []
    to_x, ticks_x = _scale([*l0, bound] if min(l0) < bound < 1.3 * max(l0) else l0, x0, x1, 5 if drawing.width < 600 else 8)
    to_y, ticks_y = _scale([p["nmse"] for p in points], y1, y0, 6)
    for value in ticks_x:
        drawing.lines.append(("grid", [(to_x(value), y0), (to_x(value), y1)]))
        drawing.words.append(Words(to_x(value), y1 + 19, number(value), "middle"))
    for value in ticks_y:
        drawing.lines.append(("grid", [(x0, to_y(value)), (x1, to_y(value))]))
        drawing.words.append(Words(x0 - 8, to_y(value) + 4.5, number(value), "end"))
    drawing.words.append(Words((x0 + x1) / 2, drawing.height - 9, "L0: active features per vector", "middle", "axis"))
    drawing.words.append(Words(14, y0 - 12, "NMSE: share of variance lost", "start", "axis"))
    return to_x, to_y


def _scale(values: Sequence[float], start: float, stop: float, most: int) -> tuple[Callable[[float], float], list[float]]:
    """A function from values to positions, and ticks; logarithmic if values differ more than fourfold."""
    log = min(values) > 0 and max(values) / min(values) > 4
    shown = [math.log10(v) for v in values] if log else list(values)
    low, high = frame(shown, 0.08)
    if not log and min(values) >= 0:
        low = max(low, 0.0)

    def place(value: float) -> float:
        v = math.log10(value) if log else value
        return start + (v - low) / (high - low) * (stop - start)

    if not log:
        return place, ticks(low, high, most)
    found = [float(10**t) for t in log_ticks(low, high)]
    if len(found) < 4:
        digits = (1, 1.5, 2, 3, 4, 5, 7)
        exponents = range(math.floor(low), math.ceil(high) + 1)
        found = [d * 10.0**e for e in exponents for d in digits if low <= math.log10(d) + e <= high]
    return place, found


def _name(
    drawing: Drawing, area: Box, points: Sequence[Mapping[str, Any]], at: Mapping[str, tuple[float, float]], by_number: bool, bound: float
) -> None:
    """Label the points of the front, the best first, without overlaps; points without room stay unlabelled."""
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in at.values()]
    taken += [(w.x - (width_of(w.text) if w.anchor == "end" else 0), w.y - 12, w.x + width_of(w.text), w.y + 3) for w in drawing.words[-1:]]
    front = [at[p["name"]] for p in points if p["on_front"]]
    for (xa, ya), (xb, yb) in pairwise(front):
        n = max(2, int(math.hypot(xb - xa, yb - ya) / 8))
        taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in (((xa + (xb - xa) * i / n), (ya + (yb - ya) * i / n)) for i in range(1, n))]
    if area[0] <= bound <= area[2]:
        taken.append((bound - 1, area[1], bound + 1, area[3]))
    named = [(i, p) for i, p in enumerate(points, 1) if p["on_front"] or p["best"]]
    for i, p in sorted(named, key=lambda pair: not pair[1]["best"]):
        text = (f"#{i}" if by_number else p["name"]) + (" (best)" if p["best"] else "")
        x, y = at[p["name"]]
        wide = width_of(text)
        # The best one may be labelled from farther away, with a leader line.
        for dx, dy, anchor in NEAR + (FAR if p["best"] else FAR[:8]):
            left = x + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (left - 2, y + dy - 12, left + wide + 2, y + dy + 4)
            inside = box[0] >= area[0] and box[2] <= area[2] and box[1] >= area[1] and box[3] <= area[3]
            if inside and not any(_meet(box, other) for other in taken):
                drawing.words.append(Words(x + dx, y + dy, text, anchor, "name"))
                taken.append(box)
                if (dx, dy, anchor) in FAR:
                    end = {"start": left - 3, "middle": x + dx, "end": left + wide + 3}[anchor]
                    drawing.lines.append(("leader", [(x, y), (end, y + dy - 4 if anchor != "middle" else y + dy + (4 if dy < 0 else -13))]))
                break


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
