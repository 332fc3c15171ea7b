"""`saev store info | verify | plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saev_core.cli.console import Screen, duration, size
from saev_core.cli.options import Flags
from saev_core.errors import StoreError
from saev_core.runs.checks import check_config
from saev_core.runs.run import Run

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore


def open_store(path: str) -> ActivationStore:
    """The store at a path or URL, or that of a run folder."""
    from saev_core.activations.store.store import ActivationStore
    from saev_core.workspace import Workspace

    return Workspace(Run.open(path)).store(checked=False) if (Path(path) / "config.json").exists() else ActivationStore.open(path)


def info(path: str, *, as_json: bool, debug: bool) -> None:
    """Print what a store holds."""
    screen = Screen(as_json=as_json, debug=debug)
    store = open_store(path)
    meta, grid = store.meta, store.grid
    sites = {str(site): {"complete": store.complete(site), "missing": int((store.done(site) == 2).sum())} for site in store.sites}
    recorded = {str(site): int((store.done(site) > 0).sum()) for site in store.sites}
    screen.result({"url": store.url, "fingerprint": meta.fingerprint, **meta.model_dump(mode="json"), "sites": sites})
    rows = [
        ("store", store.url),
        ("model", f"{meta.model['name']} ({meta.model.get('dist', '')}), {meta.model.get('n_blocks', '?')} blocks"),
        ("data set", f"{meta.dataset['name']} ({meta.dataset.get('dist', '')})"),
        ("images", f"{meta.n_images:,}"),
        ("tokens", f"{grid.rows} x {grid.cols} patches of {grid.patch_px} px, {grid.n_prefix} prefix tokens"),
        ("vectors", f"{meta.d_model} wide, {meta.dtype}; {meta.chunk_images} images per chunk, {meta.shard_images} per shard"),
        ("fingerprint", meta.fingerprint[:16]),
    ]
    for name, site in sites.items():
        state = "complete" if site["complete"] else f"{recorded[name]:,} of {meta.n_images:,} images"
        rows.append((name, state + (f", {site['missing']:,} missing" if site["missing"] else "")))
    if not sites:
        rows.append(("sites", "none yet"))
    screen.table(rows)


def verify(path: str, *, as_json: bool, debug: bool) -> None:
    """Read and verify every chunk.

    Raises:
        StoreError: any chunk is damaged; the files are listed.
    """
    screen = Screen(as_json=as_json, debug=debug)
    store = open_store(path)
    problems = store.verify(track=screen.track)
    screen.result({"url": store.url, "problems": problems})
    for problem in problems:
        screen.say(problem)
    if problems:
        raise StoreError(f"{store.url}: {len(problems)} problems, the first: {problems[0]}")
    screen.say(f"{store.url}: all chunks are valid.")


def plan(flags: Flags) -> None:
    """Print the disk, memory and time of a recording, from a measured forward pass."""
    screen = Screen(as_json=flags.json, debug=flags.debug)
    from saev_core.cli.run import run_and_config

    path, config = run_and_config(flags, must_exist=False)
    check_config(config)
    from saev_core.activations.recording.record import plan as measure
    from saev_core.workspace import Workspace

    workspace = Workspace(Run(path, config, {}))
    found = measure(workspace.model(), workspace.dataset(), workspace.run.store_url, config.record)
    screen.result({name: getattr(found, name) for name in ("n_images", "bytes_disk", "bytes_free", "bytes_ram", "seconds", "rate")})
    screen.table(
        [
            ("images", f"{found.n_images:,}"),
            ("disk", size(found.bytes_disk) + (f" of {size(found.bytes_free)} free" if found.bytes_free is not None else "")),
            ("memory", size(found.bytes_ram)),
            ("time", f"{duration(found.seconds)} at {found.rate:,.1f} images/s"),
        ]
    )
