"""Load a `transformers` model and its image transform from local files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from saev_core.errors import ModelError
from saev_core.models.transform import IMAGENET_MEAN, IMAGENET_STD, ResizeCrop
from saev_models.hub import Folder, Repo, read_json

M = TypeVar("M", bound=nn.Module)


def load(cls: type[M], folder: Path, config: Any, name: str) -> M:
    """A `transformers` model loaded from `folder`, with no weight missing.

    Raises:
        ModelError: the weights are unreadable, or of another architecture.
    """
    from_pretrained: Any = cls.from_pretrained  # type: ignore[attr-defined]
    try:
        with _quiet():
            model, info = from_pretrained(
                folder, config=config, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:
        raise ModelError(f"{name}: its weights cannot be loaded as {cls.__name__} ({_line(error)}).") from error
    if wrong := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise ModelError(
            f"{name} is not a checkpoint of {cls.__name__}: {len(wrong)} weights missing or of the wrong shape, such as {wrong[0]}."
        )
    loaded: M = model
    return loaded


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bar for reading a file and the report on unused text tower weights."""
    from transformers.utils import logging as library

    shown, level = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()  # type: ignore[no-untyped-call]
    library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(level)
        if shown:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]


def read_transform(files: Folder | Repo, default: ResizeCrop, image_px: int = 0) -> ResizeCrop:
    """The transform described by `preprocessor_config.json`, using Pillow; `default` if there is no such file.

    Args:
        image_px: side of the square input to use instead; the resize scales in proportion.

    Raises:
        ModelError: the file requires something other than resize, centre crop, scale and normalise.
    """
    path = files.find("preprocessor_config.json")
    transform = default if path is None else from_preprocessor(read_json(path), str(path))
    return transform if image_px == 0 else _scaled(transform, image_px)


def from_preprocessor(config: dict[str, Any], name: str = "preprocessor_config.json") -> ResizeCrop:
    """A transform with the settings of a `transformers` image processor.

    Raises:
        ModelError: a size is given in an unsupported form.
    """
    crop = _pair(config.get("crop_size"), name) if config.get("do_center_crop", False) else None
    resize: int | tuple[int, int] | None = None
    if config.get("do_resize", True):
        size = config.get("size")
        if isinstance(size, dict) and "shortest_edge" in size and "longest_edge" not in size:
            resize = int(size["shortest_edge"])
        elif isinstance(size, int) and crop is not None:  # format from before sizes became dicts
            resize = size
        else:
            resize = _pair(size, name)
    normalise = config.get("do_normalize", True)
    return ResizeCrop(
        resize,
        crop,
        mean=tuple(config.get("image_mean", IMAGENET_MEAN)) if normalise else (0.0, 0.0, 0.0),
        std=tuple(config.get("image_std", IMAGENET_STD)) if normalise else (1.0, 1.0, 1.0),
        resample=int(config.get("resample", 3)),
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        floor=True,
    )


def _pair(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ModelError(f"{name}: size {json.dumps(size)} is not a fixed height and width; the model needs one.")


def _scaled(transform: ResizeCrop, image_px: int) -> ResizeCrop:
    from dataclasses import replace

    square = (image_px, image_px)
    if transform.crop is None:
        return replace(transform, resize=square)
    if isinstance(transform.resize, int):
        return replace(transform, resize=round(transform.resize * image_px / min(transform.crop)), crop=square)
    return replace(transform, resize=square, crop=square)


def pixels_of(transform: ResizeCrop, name: str) -> tuple[int, int]:
    """Output height and width of the transform, equal for all images.

    Raises:
        ModelError: they depend on the image.
    """
    if transform.crop is not None:
        return transform.crop
    if isinstance(transform.resize, tuple):
        return transform.resize
    raise ModelError(f"{name}: its preprocessor neither crops nor resizes to a fixed size; set model.image_px.")
