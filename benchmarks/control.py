"""Latency of a slider in the control tabs, in Chromium, from the input event to the frame with the changed bars.

    python benchmarks/control.py [--moves 120] [--json TABLE]

Three settings on synthetic runs: a probe of 1,000 classes at the SAE's own site (d 768, 24,576 features: the size of a ViT-B), the
same SAE with a segmentation probe of 151 classes on 14 x 14 patches, and a ViT-S (d 384, 12 blocks, 224 pixels, random weights)
whose block 11 must re-run for every move, because its SAE is after block 10 and the probe reads the last block. A move is measured
until the next frame after the bars have changed, so every number includes one frame of 16 ms. Needs chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from viewer import served

from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main as saev
from saev_core.runs.run import Run
from saev_core.tasks.probe import Probe
from saev_core.testing.synthetic_run import synthetic_run

D_SAE = 24_576
AIMS = {"same site": 0.15, "segmentation": 0.15, "rest of the model": 0.4}
"""Targets for the 95th percentile, in seconds."""

MOVE = """async ([moves, what, release]) => {
  const ranges = [...document.querySelectorAll(".ctl-row input[type=range]")].filter((x) => x.offsetParent && !x.disabled);
  const place = document.querySelector(what), ctl = document.querySelector(".ctl"), took = [];
  const idle = async () => { while (ctl.getAttribute("aria-busy") === "true") await new Promise((done) => setTimeout(done, 2)); };
  const frame = () => new Promise(requestAnimationFrame);
  for (let i = 0; i < moves; i++) {
    const range = ranges[(i * 7) % ranges.length];
    await idle(); await frame();
    const changed = new Promise((done, fail) => {
      const watch = new MutationObserver(() => { watch.disconnect(); done(); });
      watch.observe(place, { subtree: true, childList: true, characterData: true, attributes: true });
      setTimeout(() => { watch.disconnect(); fail(new Error("nothing changed in 20 s")); }, 20000);
    });
    let to = Math.round((-1 + 3 * ((i * 0.618 + 0.1) % 1)) * 20) / 20;
    if (Math.abs(to - range.value) < 0.01) to += to > 0 ? -0.5 : 0.5;  // moving a slider to its current value changes nothing
    const began = performance.now();
    range.value = to;
    range.dispatchEvent(new Event("input", { bubbles: true }));
    if (release) { range.dispatchEvent(new Event("change", { bubbles: true })); await idle(); } else await changed;
    await frame();
    took.push((performance.now() - began) / 1000);
  }
  return took;
}"""


def save_probe(run: Run, task: str, n_classes: int, d: int, site: str, tokens: str) -> None:
    """Random rows: predictions do not matter here."""
    torch.manual_seed(0)
    weight, names = torch.randn(n_classes, d) / d**0.5, [f"class {c}" for c in range(n_classes)]
    Probe(weight, torch.zeros(n_classes), names, site, tokens).save(run.path / "tasks" / task / "probe")


def base(folder: Path) -> Run:
    """A run of the size of a ViT-B's, with a classifier and a segmenter at the SAE's site."""
    run = synthetic_run(folder, d_sae=D_SAE, n_images=256, d_model=768, n_labels=1000, recorded=True)
    save_probe(run, "classification", 1000, 768, "resid.10", "mean")
    save_probe(run, "semseg", 151, 768, "resid.10", "patches")
    return run


def small(folder: Path) -> Run:
    """A run of a ViT-S whose last block re-runs for every edit."""
    options = ["model.options.pretrained=false", f"sae.options.d_sae={D_SAE}", "sae.options.k=32"]
    short = ["train.n_tokens=4096", "train.n_init=1024", "train.batch_size=1024", "record.dtype=float32"]
    command = ["run", "--out", str(folder), "--model", "timm:vit_small_patch16_224", "--dataset", "shapes:24", "--record-layers", "-2"]
    if saev([*command, "--set", *options, *short]):
        raise SystemExit("could not prepare the run of the ViT-S.")
    run = Run.open(folder)
    store = ActivationStore.open(run.store_url)
    assert np.isfinite(store.read(store.sites[0], [0])).all()
    save_probe(run, "classification", 1000, 384, "resid.11", "cls")
    return run


def say(what: str, times: list[float], aim: float | None) -> dict[str, Any]:
    """Print median and 95th percentile, and return a line of the table."""
    p50, p95 = (float(v) for v in np.percentile(times, (50, 95)))
    told = "" if aim is None else f"   target: below {aim * 1000:.0f}"
    print(f"{what:52} p50 {p50 * 1000:6.1f} ms   p95 {p95 * 1000:6.1f} ms   of {len(times)}{told}", flush=True)
    missed = aim is not None and p95 >= aim
    return {"what": f"control: {what}, p95", "aim": f"below {aim} s" if aim else "", "reached": {"ours": p95}, "missed": missed}


def measure(browser: Any, run: Run, tab: str, moves: int) -> dict[str, list[float]]:
    """Seconds of single moves, and of moves including the exact result that follows when the slider is released."""
    shown = ".ctl-bars" if tab == "classification" else ".ctl-table tbody"
    with served(run) as (address, _, _):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/?tab={tab}")
        page.locator(".ctl:not(.loading) .ctl-row").first.wait_for(state="visible", timeout=180_000)
        page.wait_for_timeout(3000)  # thumbnails
        page.evaluate(MOVE, [5, shown, False])
        found = {"move": page.evaluate(MOVE, [moves, shown, False]), "release": page.evaluate(MOVE, [moves // 2, shown, True])}
        page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=120)
    parser.add_argument("--json", type=Path, help="file for the table of targets")
    args = parser.parse_args()
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("chromium is not installed.")
    from playwright.sync_api import sync_playwright

    told = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-background-networking"])
        run = base(Path(folder) / "base")
        problems = (("same site", run, "classification"), ("segmentation", run, "segmentation"))
        for what, each, tab in (*problems, ("rest of the model", small(Path(folder) / "small"), "classification")):
            taken = measure(browser, each, tab, args.moves)
            told.append(say(f"slider to new prediction, {what}", taken["move"], AIMS[what]))
            say("  release, until the exact result is shown", taken["release"], None)
        browser.close()
    if args.json:
        args.json.write_text(json.dumps({"table": told}))


if __name__ == "__main__":
    main()
