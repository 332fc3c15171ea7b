"""Several SAEs as a picture and as the report's section."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from saev_core.config.run import RunConfig
from saev_core.errors import RunError
from saev_core.evaluation.pareto import EvaluatedSAE, pareto
from saev_core.runs.run import Run
from saev_viz.drawing.svg import COLOURS, SHAPES, Drawing, Mark, outline
from saev_viz.html.pareto import chart, section, write_pareto

VARIANTS = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka", "mp", "p-anneal")


def many(n_k: int = 5, seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    points = [
        EvaluatedSAE(f"{v}-k{2**k}-s1", v, 2**k * draw.uniform(0.97, 1.03), 0.5 / 2 ** (k / 2) * draw.uniform(1, 1.3), 0.01, 512, 1, 1e-3)
        for v in VARIANTS
        for k in range(3, 3 + n_k)
    ]
    return pareto([*points, EvaluatedSAE("topk-consensus", "topk", 30, 0.2, 0.0, 99, None, 1e-3, consensus=True)]).to_json()


def test_names_never_cover_one_another_or_leave_the_picture() -> None:
    for seed in range(6):
        for width, by_number in ((900, False), (380, True)):
            drawing = chart(many(seed=seed), width, 520, by_number=by_number)
            named = [w for w in drawing.words if w.style == "name" and w.y > 100]
            assert any("(best)" in w.text for w in named), "the best one is always labelled"
            for mark in drawing.marks:
                assert 0 < mark.x < width
                assert 0 < mark.y < 520
            pixels = np.asarray(drawing.picture(1.0), int)
            assert (pixels[0] == 255).all(), "nothing is cut off"
            assert (pixels[:, -1] == 255).all()
            assert (pixels[-1] == 255).all()


def test_every_variant_has_a_mark_of_its_own() -> None:
    looks = {(COLOURS[i % len(COLOURS)], tuple(np.round(outline(Mark(0, 0, i)), 3).ravel())) for i in range(len(COLOURS) * len(SHAPES))}
    assert len(looks) == len(COLOURS) * len(SHAPES)
    areas = []
    for i in range(len(SHAPES)):
        x, y = np.array(outline(Mark(0, 0, i))).T
        areas.append(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
    assert max(areas) < 1.7 * min(areas), "none looks more important than another"


def test_page_and_file_show_the_same_places() -> None:
    drawing = chart(many(), 900, 520)
    tree = ElementTree.fromstring(drawing.svg())
    marks = tree.findall("path[@class='mark']") + [p for p in tree.iter("path") if "faint" in str(p.get("class"))]
    assert len(marks) >= len(many()["points"])
    colour = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    one = Drawing(40, 40, "one", marks=[Mark(10, 30, 0, 5)])
    pixels = np.asarray(one.picture(1.0), int)
    assert np.abs(pixels[30, 10] - colour).max() < 3
    assert (pixels[10, 30] == 255).all()


def test_the_section_names_all_and_folds_what_is_long() -> None:
    few, much = section(many(2), {}), section(many(8), {})
    assert "<details>" not in few
    assert few.count("<tr>") == 1 + 2 * len(VARIANTS) + 1
    assert "<details><summary>All 65 SAEs" in much
    assert len(re.findall("<svg", few)) == 2
    assert section({}, {}) == ""
    assert section(pareto([EvaluatedSAE("a", "topk", 8, 0.1, 0, 9, 0, 1e-3)]).to_json(), {}) == ""


def test_names_are_escaped_and_seeds_are_told() -> None:
    ranked = pareto([EvaluatedSAE(f"<b>{i}", "topk", 8 + i, 0.1, 0, 9, i, 1e-3) for i in range(2)]).to_json()
    entry = {"saes": ["a", "b"], "n_live": [1000, 1200], "mean_cosine": 0.81, "above_0.9": 0.4, "above_0.7": 0.7}
    text = section(ranked, {"topk": {**entry, "consensus": {"d_sae": 700, "nmse": 0.2, "parents_nmse": 0.1}}})
    assert "<b>0" not in text
    assert "1,000 to 1,200" in text
    assert "700 features, NMSE 0.2000 (its seeds 0.1000)" in text
    assert "nothing &lt; fits" in section(ranked, {"topk": {**entry, "consensus": {"why": "nothing < fits"}}})


@pytest.mark.parametrize(("l0", "nmse"), [([8, 8], [0.1, 0.1]), ([0.0, 3.0], [0.0, 1.0]), ([1, 1000], [1e-4, 2.0])])
def test_any_numbers_can_be_drawn(l0: list[float], nmse: list[float]) -> None:
    ranked = pareto([EvaluatedSAE(f"{i}", "topk", a, b, 0, 9, 0, 1e-3) for i, (a, b) in enumerate(zip(l0, nmse, strict=True))]).to_json()
    for mark in chart(ranked, 380, 400).marks:
        assert np.isfinite([mark.x, mark.y]).all()


def test_the_picture_is_written_whole(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    with pytest.raises(RunError, match="no comparison of SAEs"):
        write_pareto(run)
    run.write_result("pareto", many())
    path = write_pareto(run)
    with Image.open(path) as picture:
        assert picture.size == (1800, 1120)
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".png"] == ["pareto.png"]
