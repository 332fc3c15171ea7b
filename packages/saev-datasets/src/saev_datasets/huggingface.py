"""Any image data set that the `datasets` library reads: from the hub, its cache, or a local folder."""

from __future__ import annotations

import logging
import sys
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import Field

from saev_core import BadImageError, DatasetConfig, Example, ImageDataset, open_rgb
from saev_core.data.decode import open_mask
from saev_core.errors import DatasetError
from saev_core.support.digest import digest

logger = logging.getLogger(__name__)

_DECODERS = 4  # threads that decode a stream ahead of its reader; rows themselves are read sequentially
_PATIENCE_S = 10  # the hub client retries for 25 s before it reports that there is no network


class HuggingFaceConfig(DatasetConfig):
    locations = ("name", "streaming")

    name: str = ""
    """A data set's name on the hub, or a local folder or file (parquet, arrow, `save_to_disk`, image folder)."""
    split: str = ""
    """Which split; default: `train`, or the only one."""
    config: str = ""
    """Which configuration (subset), if the data set has several."""
    revision: str = ""
    """Branch, tag or commit on the hub; default: the newest."""
    image: str = ""
    """Column of the images; default: the only image column."""
    label: str = ""
    """Column of the labels; default: the class label column, if any. `none`: no labels."""
    mask: str = ""
    """Column of the masks (images of class numbers), if any."""
    n_mask_classes: int = Field(default=256, ge=1, le=65536)
    """Number of mask values, including 0; used only with `mask`."""
    streaming: bool = False
    """Read in order over the network, without downloading."""
    n: int = Field(default=0, ge=0)
    """Only the first `n` images; 0: all. Required to stream a data set of unknown length."""


class HuggingFace(ImageDataset):
    """A `datasets` data set. Rows keep their index; an unreadable row yields a `BadImageError` in its place.

    A stream is read in order through `examples`. Indexing works, but re-reads all previous rows.
    """

    Config = HuggingFaceConfig

    def __init__(self, cfg: HuggingFaceConfig) -> None:
        if not cfg.name:
            raise DatasetError("huggingface needs a name or path: --dataset huggingface:NAME.")
        self._cfg = cfg
        self._local = Path(cfg.name).expanduser() if Path(cfg.name).expanduser().exists() else None
        rows, self.split = _load(cfg, self._local)
        self.sequential = not hasattr(rows, "num_rows")
        features = rows.features or (rows._resolve_features().features if self.sequential else None)
        if not features:
            raise DatasetError(f"{cfg.name} does not declare its columns; load it without streaming.")
        self._image = _image_column(cfg, features)
        self._label, self.classes, self._number = _labels(cfg, features, rows)
        for column in filter(None, (self._image, cfg.mask)):
            if column not in features:
                raise DatasetError(f"{cfg.name} has no column {column!r}; it has {', '.join(features)}.")
            rows = rows.cast_column(column, _undecoded(cfg, column, features[column]))
        self._rows = rows.select_columns([column for column in (self._image, self._label, cfg.mask) if column])
        self.mask_classes = [f"class {number}" for number in range(cfg.n_mask_classes)] if cfg.mask else None
        self._n = self._length(rows)
        self._lock = Lock()
        self._open: tuple[int, Iterator[dict[str, Any]]] | None = None

    def _length(self, rows: Any) -> int:
        known: int | None = None
        if not self.sequential:
            known = rows.num_rows
        elif rows.info.splits and self.split in rows.info.splits:
            known = rows.info.splits[self.split].num_examples
        if not known and not self._cfg.n and self.sequential:
            raise DatasetError(f"{self._cfg.name} does not declare its number of images; set dataset.options.n to stream that many.")
        return min(filter(None, (known, self._cfg.n)), default=0)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._n:
            raise IndexError(index)
        if not self.sequential:
            return self._example(index, self._rows[index])
        found = next(self.examples(index, index + 1))
        if isinstance(found, BadImageError):
            raise found
        return found

    def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
        if not self.sequential:
            yield from super().examples(start, stop)
            return
        with self._lock:
            kept, self._open = self._open, None
        rows = kept[1] if kept and kept[0] == start else iter(self._rows.skip(start))
        waiting: deque[Future[Example | BadImageError]] = deque()
        with ThreadPoolExecutor(_DECODERS, "saev-decode") as pool:
            for index in range(start, stop):
                row = next(rows, None)
                if row is None:
                    yield from (one.result() for one in waiting)
                    raise DatasetError(f"{self._cfg.name} ended after {index} images, not {self._n}; set dataset.options.n to that.")
                waiting.append(pool.submit(self._try, index, row))
                if len(waiting) > 2 * _DECODERS:
                    yield waiting.popleft().result()
            # Keep the iterator for a later call that continues here: skipping rows costs as much as reading them.
            with self._lock:
                self._open = stop, rows
            while waiting:
                yield waiting.popleft().result()

    def _try(self, index: int, row: dict[str, Any]) -> Example | BadImageError:
        try:
            return self._example(index, row)
        except BadImageError as error:
            return error

    def _example(self, index: int, row: dict[str, Any]) -> Example:
        name = self.name(index)
        image = open_rgb(*_source(row[self._image], name))
        mask = open_mask(*_source(row[self._cfg.mask], name)) if self._cfg.mask else None
        if mask is not None and mask.shape != (image.height, image.width):
            raise BadImageError(name, f"a mask of {mask.shape[1]} x {mask.shape[0]} px for an image of {image.width} x {image.height}")
        if mask is not None and mask.max() >= self._cfg.n_mask_classes:
            raise BadImageError(name, f"a mask with the value {mask.max()}; raise dataset.options.n_mask_classes")
        value = row[self._label] if self._label else None
        if self._number is not None:
            value = self._number.get(value)
        # The hub marks the labels of a hidden test split with -1.
        return Example(index, image, None if value is None or value < 0 else int(value), mask)

    def name(self, index: int) -> str:
        return f"{self._cfg.name} {self.split} row {index}"

    def identity(self) -> str:
        cfg = self._cfg
        where: object = cfg.name
        if self._local:
            where = _contents(self._local)
        columns = [self._image, self._label, cfg.mask]
        return digest(where, cfg.config, cfg.revision, self.split, columns, self._n, list(self.classes or ()))


def _load(cfg: HuggingFaceConfig, local: Path | None) -> tuple[Any, str]:
    """The rows (`Dataset` or `IterableDataset`) and the name of their split."""
    try:
        import datasets
    except ImportError as error:
        raise DatasetError('this data set needs the datasets library; pip install "saev-datasets[huggingface]".') from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if local and (local / "dataset_dict.json").is_file():
            return _pick_split(cfg, datasets.load_from_disk(str(local)))
        if local and (local / "state.json").is_file():
            return datasets.load_from_disk(str(local)), cfg.split or "train"
        if local:
            return _pick_split(cfg, _load_local(cfg, local))
        return _load_hub(cfg)
    except DatasetError:
        raise
    except Exception as error:  # readers of third-party files raise arbitrary exceptions
        raise DatasetError(_explain(cfg.name, error)) from error


def _load_local(cfg: HuggingFaceConfig, local: Path) -> Any:
    import datasets

    if not local.is_file():
        _refuse_empty(local)
        return datasets.load_dataset(str(local), cfg.config or None, streaming=cfg.streaming)
    kind = {".parquet": "parquet", ".arrow": "arrow"}.get(local.suffix.lower())
    if kind is None:
        raise DatasetError(f"{local} is neither a folder nor a .parquet or .arrow file.")
    return datasets.load_dataset(kind, data_files={cfg.split or "train": str(local)}, streaming=cfg.streaming)


def _refuse_empty(folder: Path) -> None:
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}; check its permissions.") from error
    if empty:
        raise DatasetError(f"{folder} is empty; give the folder with the data set.")


def _load_hub(cfg: HuggingFaceConfig) -> tuple[Any, str]:
    import datasets

    if cfg.name.startswith(("/", ".", "~")) or cfg.name.count("/") > 1:
        raise DatasetError(f"{cfg.name} does not exist; give a local folder, or a data set on the hub as owner/name.")
    options: dict[str, Any] = {"name": cfg.config or None, "revision": cfg.revision or None, "streaming": cfg.streaming}
    before = datasets.config.HF_HUB_OFFLINE
    if not before and not _reachable(datasets.config.HF_ENDPOINT):
        logger.info("%s is not reachable; looking for a downloaded copy of %s", datasets.config.HF_ENDPOINT, cfg.name)
        before, datasets.config.HF_HUB_OFFLINE = False, True
    try:
        if datasets.config.HF_HUB_OFFLINE:
            # A local copy needs no streaming.
            options |= {"revision": None, "streaming": False}
        split = cfg.split or None
        loaded = datasets.load_dataset(cfg.name, split=split, **options)
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    return (loaded, cfg.split) if split else _pick_split(cfg, loaded)


def _reachable(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_PATIENCE_S):
            return True
    except urllib.error.HTTPError:
        return True  # the hub responded
    except (OSError, ValueError):
        return False


def _pick_split(cfg: HuggingFaceConfig, loaded: Any) -> tuple[Any, str]:
    if not isinstance(loaded, dict):
        return loaded, cfg.split or "train"
    names = list(loaded)
    split = cfg.split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if not split:
        raise DatasetError(f"{cfg.name} has the splits {', '.join(names)}; choose one with dataset.options.split.")
    if split not in names:
        raise DatasetError(f"{cfg.name} has no split {split!r}; it has {', '.join(names)}.")
    return loaded[split], split


def _explain(name: str, error: Exception) -> str:
    """A one-line message for an exception raised by `datasets`."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "gated" in text:
        return f"{name} is a gated data set: accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN."
    if isinstance(error, ConnectionError):
        return f"{name}: the hub is not reachable, and no copy has been downloaded; check the network, or give a local folder."
    if isinstance(error, FileNotFoundError) and "Hub" in text:
        return f"{name} is neither on the hub (or is private: log in with `hf auth login`) nor a local folder."
    cause = error.__cause__ or error.__context__
    if cause is not None and type(error).__name__ == "DatasetGenerationError":
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
    return f"{name} cannot be loaded: {text[:300]}"


def _image_column(cfg: HuggingFaceConfig, features: Any) -> str:
    import datasets

    if cfg.image:
        return cfg.image
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image) and name != cfg.mask]
    if len(found) == 1:
        return str(found[0])
    if usual := [name for name in ("image", "img") if name in found]:
        return str(usual[0])
    have = f"image columns {', '.join(found)}" if found else f"no image column, only {', '.join(features)}"
    raise DatasetError(f"{cfg.name} has {have}; choose one with dataset.options.image.")


def _labels(cfg: HuggingFaceConfig, features: Any, rows: Any) -> tuple[str, list[str] | None, dict[Any, int] | None]:
    """Column, class names, and the number of each value if the column's values are not numbers."""
    import datasets

    if cfg.label == "none":
        return "", None, None
    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    column = cfg.label or next((name for name in ("label", "labels") if name in found), found[0] if found else "")
    if not column:
        return "", None, None
    if column not in features:
        raise DatasetError(f"{cfg.name} has no column {column!r}; it has {', '.join(features)}.")
    if isinstance(features[column], datasets.ClassLabel):
        return column, list(features[column].names), None
    if not hasattr(rows, "num_rows"):
        raise DatasetError(
            f"column {column!r} of {cfg.name} has no class labels; set dataset.options.label to none, or turn off streaming."
        )
    values = sorted(value for value in rows.unique(column) if value is not None)
    return column, [str(value) for value in values], {value: number for number, value in enumerate(values)}


def _undecoded(cfg: HuggingFaceConfig, column: str, feature: Any) -> Any:
    """The column as bytes and path: images are decoded here, so that one bad image does not abort the run."""
    import datasets

    kind = getattr(feature, "dtype", "")
    if not isinstance(feature, datasets.Image) and kind not in ("binary", "large_binary", "string") and not isinstance(feature, dict):
        raise DatasetError(f"column {column!r} of {cfg.name} contains {kind or type(feature).__name__}, not images.")
    return datasets.Image(decode=False)


def _source(value: dict[str, Any] | None, name: str) -> tuple[bytes | Path, str]:
    if value is None or (value.get("bytes") is None and not value.get("path")):
        raise BadImageError(name, "empty")
    path = value.get("path") or ""
    name = f"{name} ({path})" if path else name
    if value.get("bytes") is not None:
        return value["bytes"], name
    if "://" not in path:
        return Path(path), name
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read(), name
    except (OSError, ValueError) as error:
        raise BadImageError(name, f"{type(error).__name__}: {error}") from error


def _contents(local: Path) -> list[list[Any]]:
    """Relative name and size of every data file: equal for a copy elsewhere."""
    if local.is_file():
        return [[local.name, local.stat().st_size]]
    files = sorted(file for file in local.rglob("*") if file.is_file() and not file.name.startswith((".", "cache-")))
    return [[file.relative_to(local).as_posix(), file.stat().st_size] for file in files]
