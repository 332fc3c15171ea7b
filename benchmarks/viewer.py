"""Time the viewer takes to start, show a feature, filter and sort, measured over HTTP on a synthetic run.

    python benchmarks/viewer.py [--run FOLDER] [--features 24576] [--images 50000] [--pages 1000] [--sessions 20]

The run is created in FOLDER if it does not exist; without --run, in a temporary folder. The time of importing gradio is reported
separately, because it is a lower bound for any gradio application.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from saev_core.runs.run import Run
from saev_core.testing.synthetic_run import synthetic_run

QUERIES = ("", "monosemanticity>0.4 frequency<1%", "star", "label:heart lift>3", "note:wing", "concentration>0.7 purity>=0.2", "#77")
SORTS = ("max", "mean", "frequency", "monosemanticity", "purity", "lift", "number")
AIMS = {"start": 2.0, "feature page": 0.3, "filter and sort": 0.2}
"""Targets in seconds, for the 95th percentile except `start`."""


class Session:
    """One user's session, as a browser talks to the server: every event is one POST, without a queue."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=address, timeout=60)
        self.hash = f"{random.getrandbits(40):x}"
        self.numbers: dict[str, int] = {}
        for event in self.client.get("/config").raise_for_status().json()["dependencies"]:
            self.numbers.setdefault(event["api_name"], event["id"])

    def call(self, name: str, *data: Any, event: Any = None) -> list[Any]:
        """The response of a callback.

        Raises:
            RuntimeError: the callback failed; the message has its response.
        """
        body = {"data": data, "fn_index": self.numbers[name], "session_hash": self.hash, "event_data": event, "trigger_id": None}
        answer = self.client.post("/gradio_api/run/predict", json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{name}{data}: {answer.status_code} {answer.text[:300]}")
        return list(answer.json()["data"])

    def page(self, sae: str, feature: int) -> list[Any]:
        """Request the feature pane."""
        return self.call("show", sae, feature, "inferno", "percentile")

    def search(self, sae: str, text: str, sort: str) -> list[Any]:
        """Request the list of features."""
        return self.call("search", sae, text, sort, False, None, {}, False)

    def picture(self, index: int) -> bytes:
        """Request a thumbnail."""
        return self.client.get(f"/saev/image/{index}?px=224").raise_for_status().content


@contextmanager
def served(run: Run) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """Start the viewer in a separate process: its URL, the process, and seconds until its first response."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    command = [sys.executable, "-m", "saev_core.cli", "view", str(run.path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit("the viewer exited immediately; run it by hand to see why: saev view " + str(run.path))
            try:
                if httpx.get(address).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.01)
        yield address, process, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def python(code: str) -> float:
    """Seconds that a new Python process takes."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    """Current memory of a process, in MB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def say(what: str, times: list[float]) -> dict[str, Any]:
    """Print median and 95th percentile, and return a line of the table."""
    p50, p95 = (float(v) for v in np.percentile(times, (50, 95)))
    aim = AIMS.get(what)
    told = "" if aim is None else f"   target: below {aim * 1000:.0f}"
    print(f"{what:32} p50 {p50 * 1000:7.1f} ms   p95 {p95 * 1000:7.1f} ms   of {len(times)}{told}", flush=True)
    return {"what": f"viewer: {what}, p95", "aim": f"below {aim} s", "reached": {"ours": p95}, "missed": aim is not None and p95 >= aim}


def start(run: Run, rounds: int = 3) -> dict[str, Any]:
    """Time from start to first response, and of importing gradio as a floor; rounds alternate and the best counts."""
    floor, ours = [], []
    for _ in range(rounds):
        floor.append(python("import gradio"))
        with served(run) as (_, _, took):
            ours.append(took)
    print(f"start to first response          {min(ours):.2f} s   target: below {AIMS['start']} s")
    print(f"  of that, python and gradio     {min(floor):.2f} s   ours on top {min(ours) - min(floor):.2f} s", flush=True)
    return {"what": "viewer: start", "aim": "below 2 s", "reached": {"ours": min(ours)}, "missed": min(ours) >= AIMS["start"]}


def alone(run: Run, n_pages: int) -> list[dict[str, Any]]:
    """One user clicking."""
    rng = random.Random(0)
    with served(run) as (address, process, _):
        session = Session(address)
        first = seconds(lambda: session.page("topk", rng.randrange(run_features(run))))
        print(f"first feature page               {first * 1000:7.1f} ms")
        lines = [say("feature page", [seconds(lambda: session.page("topk", rng.randrange(run_features(run)))) for _ in range(200)])]
        for sort in SORTS:
            session.search("topk", "", sort)  # a column is computed once
        asked = [(text, sort) for text in QUERIES for sort in SORTS] * 2
        lines.append(say("filter and sort", [seconds(lambda pair=pair: session.search("topk", *pair)) for pair in asked]))  # type: ignore[misc]
        n_images = run.config.dataset.options["n"]
        say("image not seen before", [seconds(lambda: session.picture(rng.randrange(n_images))) for _ in range(100)])
        say("image cached", [seconds(lambda: session.picture(7)) for _ in range(50)])
        before = memory_mb(process)
        for done in range(n_pages):
            session.page("topk", rng.randrange(run_features(run)))
            if done == n_pages // 2:
                middle = memory_mb(process)
        after = memory_mb(process)
        print(f"memory of the server             {before:.0f} MB, after {n_pages // 2} pages {middle:.0f}, after {n_pages} {after:.0f}")
    return lines


def together(run: Run, n_sessions: int, each: int = 15) -> None:
    """Many users clicking concurrently without pauses: the time of each response, and whether any fails."""
    times: dict[str, list[float]] = {"page": [], "search": [], "picture": []}
    failed: list[str] = []

    def person(number: int) -> None:
        rng = random.Random(number)
        try:
            session = Session(address)
            for _ in range(each):
                times["page"].append(seconds(lambda: session.page("topk", rng.randrange(run_features(run)))))
                times["search"].append(seconds(lambda: session.search("topk", rng.choice(QUERIES), rng.choice(SORTS))))
                times["picture"].append(seconds(lambda: session.picture(rng.randrange(run.config.dataset.options["n"]))))
        except (RuntimeError, httpx.HTTPError) as error:
            failed.append(str(error))

    with served(run) as (address, _, _):
        Session(address).page("topk", 0)
        people = [threading.Thread(target=person, args=(number,)) for number in range(n_sessions)]
        began = time.perf_counter()
        for one in people:
            one.start()
        for one in people:
            one.join()
        took = time.perf_counter() - began
    n = sum(map(len, times.values()))
    print(f"{n_sessions} concurrent users: {n} responses in {took:.1f} s, {n / took:.0f} per second, {len(failed)} failed {failed[:1]}")
    for what, taken in times.items():
        say(f"  {what}", taken)
    if failed:
        raise SystemExit(1)


def run_features(run: Run) -> int:
    return int(run.config.sae.options["d_sae"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file for the table of targets")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.run or Path(folder) / "run"
        if not (path / "config.json").exists():
            print(f"created a run of {args.features:,} features and {args.images:,} images in", end=" ", flush=True)
            print(f"{seconds(lambda: synthetic_run(path, d_sae=args.features, n_images=args.images)):.0f} s")
        run = Run.open(path)
        told = [start(run), *alone(run, args.pages)]
        together(run, args.sessions)
    if args.json:
        args.json.write_text(json.dumps({"table": told}))


if __name__ == "__main__":
    main()
