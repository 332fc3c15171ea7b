"""`saev data download`: download a data set's archives, and optionally split it at random into trees of class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saev_core.cli.console import Screen
from saev_core.config.base import PluginRef
from saev_core.data.dataset import load_dataset
from saev_core.data.download import download
from saev_core.data.split_folders import write_split
from saev_core.errors import DatasetError, PluginError, UsageError
from saev_core.plugins.registry import find, installed


def bring(
    name: str, folder: str, *, split: float | None, seed: int, keep: bool, again: bool, as_json: bool = False, debug: bool = False
) -> None:
    """Download a data set, open it, and optionally split it.

    Raises:
        UnknownPluginError: no data set has that name.
        UsageError: it declares no archives, or the split is not between 0 and 1.
        DatasetError: see `download`, `load_dataset` and `write_split`.
    """
    screen = Screen(as_json=as_json, debug=debug)
    if not name:
        screen.result([{"name": each, "size": size, "sources": urls} for each, size, urls in offered()])
        screen.table([[each, f"{size / 1e6:,.0f} MB", urls[0]] for each, size, urls in offered()], ["data set", "size", "from"])
        return
    if split is not None and not 0 < split < 1:
        raise UsageError(f"--split takes a share between 0 and 1, such as .8, not {split:g}.")
    kind = find("dataset", name).load()
    if not kind.sources:
        raise UsageError(f"{name} has nothing to download; these do: {', '.join(each for each, _, _ in offered())}.")
    path = Path(folder or Path("data") / name)
    found = download(kind.sources, path, again=again, keep=keep, track=screen.track, say=screen.say)
    where = kind.Config.locations[0]
    images = len(load_dataset(PluginRef(name=name, options={where: str(path)})))
    screen.say(f"{images:,} images: --dataset {name}:{path}")
    answer: dict[str, Any] = {"name": name, "folder": str(path), "images": images, "archives": found["archives"]}
    if split is not None:
        answer["split"] = _split(screen, PluginRef(name=name, options={where: str(path), **kind.whole}), path, split, seed)
    screen.result(answer)


def _split(screen: Screen, ref: PluginRef, path: Path, share: float, seed: int) -> dict[str, Any]:
    folder = path / f"split-{share:g}-{seed}"
    if folder.exists():
        screen.say(f"{folder} is up to date, skipping.")
    else:
        write_split(load_dataset(ref), folder, share, seed)
    trees = {part: load_dataset(f"image-folder:{folder / part}") for part in ("train", "test")}
    if trees["train"].classes != trees["test"].classes:
        raise DatasetError(f"{folder} has different classes in train/ and test/; delete it and re-run the same command.")
    for part, tree in trees.items():
        screen.say(f"{len(tree):,} images in {part}: --dataset image-folder:{folder / part}")
    return {"folder": str(folder), **{part: len(tree) for part, tree in trees.items()}}


def offered() -> list[tuple[str, int, list[str]]]:
    """Name, bytes and URLs of every data set that can be downloaded; those that cannot be imported are omitted."""
    found = []
    for plugin in installed("dataset"):
        try:
            sources = getattr(plugin.load(), "sources", ())
        except PluginError:
            continue
        if sources:
            found.append((plugin.name, sum(each.size for each in sources), [each.url for each in sources]))
    return found
