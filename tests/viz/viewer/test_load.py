"""Twenty people in one viewer at once: every answer comes, and each is that person's own."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import pytest
from commands import Serving

from saev_core.runs.run import Run
from saev_core.testing.synthetic_run import synthetic_run
from saev_viz.run_view.library import Library
from saev_viz.viewer.app import make_server

D, N = 2000, 400


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("load") / "run"
    return synthetic_run(folder, d_sae=D, n_images=N, d_model=16, n_labels=20, side=8, top_k=8, n_samples=12, recorded=True)


class Person:
    """Sends clicks like the page: one POST per event, without a queue."""

    def __init__(self, address: str, seed: int) -> None:
        self.rng, self.number = random.Random(seed), seed
        self.client = httpx.Client(base_url=address, timeout=120)
        self.events = {e["api_name"]: e["id"] for e in reversed(self.client.get("/config").json()["dependencies"])}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def call(self, name: str, *data: Any) -> list[Any]:
        body = {"data": data, "fn_index": self.events[name], "session_hash": f"person{self.number}"}
        answer = self.client.post("/gradio_api/run/predict", json=body)
        assert answer.status_code == 200, (name, data, answer.text[:300])
        return list(answer.json()["data"])

    def click(self) -> None:
        feature, image = self.rng.randrange(D), self.rng.randrange(N)
        head, _ = self.call("show", "topk", feature, self.rng.choice(["inferno", "viridis"]), "percentile")
        assert f"Feature {feature} " in head
        low = self.rng.random()
        sort = self.rng.choice(["max", "monosemanticity", "purity", "lift"])
        (found,) = self.call("search", "topk", f"concentration>{low:.3f}", sort, False, None, {}, False)
        assert f"concentration&gt;{low:.3f}" in found
        for path in (f"/saev/image/{image}?px=96", f"/saev/map/topk/{feature}/{image}"):
            answer = self.client.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["content-type"].startswith("image/")


def crowd(address: str, n: int, each: int) -> list[Exception]:
    """`n` users click `each` times concurrently; returns the failures."""
    wrong: list[Exception] = []
    together = threading.Barrier(n)

    def person(seed: int) -> None:
        try:
            with Person(address, seed) as one:
                together.wait(120)
                for _ in range(each):
                    one.click()
        except (AssertionError, httpx.HTTPError, threading.BrokenBarrierError) as error:
            wrong.append(error)

    people = [threading.Thread(target=person, args=(seed,)) for seed in range(n)]
    for one in people:
        one.start()
    for one in people:
        one.join(300)
    return wrong


@pytest.mark.slow
def test_twenty_people_click_at_once_and_none_meets_an_error(run: Run, serving: Serving) -> None:
    with serving(make_server(Library(run))) as address:
        assert crowd(address, 20, 4) == []


@pytest.mark.slow
def test_browsers_walk_through_features_while_others_click(run: Run, serving: Serving, chromium: Any) -> None:
    wrong: list[Exception] = []
    with serving(make_server(Library(run))) as address:
        pages = [chromium.new_page() for _ in range(3)]
        said: list[str] = []
        for page in pages:
            page.set_default_timeout(120_000)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(f"{address}/?feature=7")
        for page in pages:
            page.wait_for_selector("#saev-head h2:has-text('Feature 7')")
        others = threading.Thread(target=lambda: wrong.extend(crowd(address, 17, 2)))
        others.start()
        for _ in range(4):
            for page in pages:
                page.keyboard.press("n")
        others.join(300)
        for page in pages:
            page.keyboard.press("n")
            page.wait_for_function("!document.querySelector('#saev-head h2').textContent.startsWith('Feature 7 ')")
            assert page.locator(".toast-body.error").count() == 0
            page.close()
    assert wrong == []
    assert said == []


def test_notes_of_many_people_all_stay(run: Run) -> None:
    notes = Library(run)["topk"].notes
    writers = [threading.Thread(target=notes.write, args=(feature, f"note {feature}")) for feature in range(40)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    assert notes.all() == {feature: f"note {feature}" for feature in range(40)}


def test_many_threads_read_the_same_as_one(run: Run) -> None:
    """The index, its kept rows, thumbnails and heat maps, asked for at once on a viewer that nobody has used yet."""
    alone, shared = Library(run)["topk"], Library(run)["topk"]
    wrong: list[object] = []

    def read(seed: int) -> None:
        for feature in np.random.default_rng(seed).integers(0, D, 12).tolist():
            image = feature % N
            same = [
                shared.index.samples(feature) == alone.index.samples(feature),
                shared.nearest(feature) == alone.nearest(feature),
                shared.library.pictures.jpeg(image, 96) == alone.library.pictures.jpeg(image, 96),
                np.array_equal(shared.seen(image).map(feature), alone.seen(image).map(feature)),
                [top.index for top in shared.index.top(feature)] == [top.index for top in alone.index.top(feature)],
            ]
            if not all(same):
                wrong.append((feature, same))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for one in readers:
        one.start()
    for one in readers:
        one.join(120)
    assert wrong == []


def test_a_synthetic_run_is_one_like_any_other(tmp_path: Path) -> None:
    made = synthetic_run(tmp_path / "run", d_sae=64, n_images=50, d_model=8, n_labels=4, side=4, top_k=4, n_samples=6)
    view = Library(made)["topk"]
    assert view.checkpoint.sae.d_sae == view.index.d_sae == 64  # its index belongs to its checkpoint
    assert view.library.dataset is not None
    assert np.isfinite(view.index.monosemanticity[view.table.alive]).all()
    place = view.index.place(view.start)
    assert place.sum() == pytest.approx(1, abs=1e-3)
