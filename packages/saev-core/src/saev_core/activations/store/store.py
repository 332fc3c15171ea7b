"""`ActivationStore`: recorded activations on disk, a zarr v3 group that any zarr program can open. See docs/store-format.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import ValidationError

from saev_core.activations.store.arrays import Arrays, Reader, Table, create_arrays
from saev_core.activations.store.meta import FORMAT, StoreMeta
from saev_core.activations.store.shard_file import TOKENS, Layout
from saev_core.config.affects import settings_that_matter
from saev_core.config.toml_and_set import differences
from saev_core.errors import StoreError
from saev_core.support.files import new_folder
from saev_core.support.progress import Track, silent
from saev_core.support.urls import local_path
from saev_core.types import Box, Site

if TYPE_CHECKING:  # lazy: they import torch, which reading a store's metadata does not need
    from saev_core.activations.store.shard_writer import ShardSetWriter
    from saev_core.sae.norm import Norm


class ActivationStore:
    """Activations of `n_images` images at one or more sites. Make one with `create` or `open`.

    A local store is accessed as raw files; any other fsspec URL goes through zarr-python.
    """

    def __init__(self, url: str, meta: StoreMeta) -> None:
        self.url, self.meta, self.grid = url, meta, meta.grid
        self._arrays = Arrays(url)
        self._layouts, self._tables = meta.layouts(), {**meta.image_tables(), **meta.site_tables()}

    @staticmethod
    def exists(url: str | Path) -> bool:
        """Whether a store is at `url`, whole or damaged: `open` tells which.

        Raises:
            StoreError: a remote address cannot be asked.
        """
        path = local_path(url)
        return (path / "zarr.json").exists() if path is not None else _attributes(url) is not None

    @classmethod
    def create(cls, url: str | Path, meta: StoreMeta) -> ActivationStore:
        """Create an empty store, or open an existing one for the same model, images and layout.

        Safe to call from several processes at once.

        Raises:
            StoreError: something else is there (the message names the difference), or the location is not writable.
        """
        if _attributes(url) is not None:
            return cls.open(url)._expect(meta)
        path = local_path(url)
        if path is None:
            _create_group(str(url), meta)
            return cls.open(url)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise StoreError(f"{path} exists and is not an activation store; choose an empty or new folder.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(path) as new:
                _create_group(str(new), meta)
        except OSError as error:
            if _attributes(url) is not None:  # another process was first
                return cls.open(url)._expect(meta)
            raise StoreError(f"{path}: cannot create a store there ({error.strerror or error}); choose another folder.") from None
        return cls.open(url)._expect(meta)

    @classmethod
    def open(cls, url: str | Path) -> ActivationStore:
        """Open the store at a path or URL, complete or not.

        Raises:
            StoreError: as `describe`.
        """
        return cls(str(url), cls.describe(url))

    @staticmethod
    def describe(url: str | Path) -> StoreMeta:
        """What the store at a path or URL holds, without opening it.

        Raises:
            StoreError: there is none, or it is of another format version.
        """
        attributes = _attributes(url)
        if attributes is None:
            raise StoreError(f"{url} is not an activation store; record one there with saev record --store {url}.")
        version = attributes.get("format")
        if version != FORMAT:
            raise StoreError(f"{url} has store format {version}, this saev reads {FORMAT}; install the saev-core that recorded it.")
        try:
            return StoreMeta.model_validate(attributes)
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(map(str, detail["loc"]))
            raise StoreError(f"{url}: the store's metadata are damaged ({where}: {detail['msg']}); record it again.") from None

    def _expect(self, meta: StoreMeta) -> ActivationStore:
        if self.meta.fingerprint == meta.fingerprint:
            return self
        have, want = settings_that_matter(self.meta), settings_that_matter(meta)
        changed = "; ".join(f"{key} {a} there, {b} here" for key, a, b in differences(have, want))
        raise StoreError(f"{self.url} was recorded with other settings ({changed}); record into another folder with --store.")

    @property
    def n_images(self) -> int:
        return self.meta.n_images

    @property
    def n_shards(self) -> int:
        return self.meta.n_shards

    @property
    def sites(self) -> list[Site]:
        """Sites that have been added, complete or not, sorted."""
        if (path := local_path(self.url)) is not None:
            names = [each.name for each in path.iterdir() if (each / "zarr.json").exists()]
        else:
            names = list(_zarr_group(self.url).group_keys())
        return sorted(Site.parse(name) for name in names if "." in name and not name.startswith("."))

    def add_site(self, site: Site) -> None:
        """Add a site's empty arrays; existing data are not touched. Does nothing if the site exists.

        Raises:
            StoreError: the store is not writable.
        """
        if site in self.sites:
            return
        arrays: dict[str, Layout | Table] = {**self._layouts, **self.meta.site_tables()}
        path = local_path(self.url)
        if path is None:
            create_arrays(_zarr_group(self.url, "r+").create_group(str(site)), arrays)
            return
        import zarr

        try:
            with new_folder(path / str(site)) as new:
                create_arrays(zarr.create_group(str(new)), arrays)
        except OSError as error:
            if site not in self.sites:  # otherwise another process added it first
                raise StoreError(f"{path}: cannot add {site} ({error.strerror or error}); check permissions and free space.") from None

    def done(self, site: Site) -> UInt8[np.ndarray, " n_images"]:
        """0 not yet recorded, 1 recorded, 2 missing: the image could not be read."""
        return self._get(f"{self._known(site)}/done")

    def shards_done(self, site: Site) -> Bool[np.ndarray, " n_shards"]:
        """Which shards are recorded and have all their files."""
        done = self.done(site)
        starts = np.arange(0, self.n_images, self.meta.shard_images)
        whole: np.ndarray = np.minimum.reduceat(done, starts) > 0
        for shard in np.flatnonzero(whole):
            whole[shard] = all(self._arrays.has_shard(f"{site}/{part}", layout, int(shard)) for part, layout in self._layouts.items())
        return whole

    def complete(self, site: Site) -> bool:
        """Whether every image is recorded or known to be missing."""
        return bool(self.shards_done(site).all())

    @property
    def labels(self) -> Int[np.ndarray, " n_images"]:
        """int32 class numbers; -1 unknown or not yet recorded."""
        return self._get("label")

    @property
    def sizes(self) -> Int[np.ndarray, "n_images 2"]:
        """Width and height of the originals, in pixels; 0 where not recorded."""
        return self._get("size")

    @property
    def mask(self) -> np.ndarray | None:
        """Majority class per patch, uint16 `[n_images, n_patches]`; None if the data set has no masks."""
        return self._get("mask") if self.meta.has_mask else None

    def crop(self, index: int) -> Box:
        """The part of original `index` that the model saw, in original pixels; pass it to `grid.box` to map patches back."""
        shard, row = divmod(int(index), self.meta.shard_images)
        return Box(*map(float, self._arrays.get("crop", self._tables["crop"], shard)[row]))

    @property
    def crops(self) -> Float[np.ndarray, "n_images 4"]:
        """Left, top, right and bottom of every image's `crop`, float32."""
        return self._get("crop")

    def write_shard(self, sites: list[Site], shard: int) -> ShardSetWriter:
        """A writer of one shard into `sites`, which must have been added. Writers of different shards need no lock.

        Raises:
            StoreError: no such site or shard, or the store is not writable.
        """
        from saev_core.activations.store.shard_writer import ShardSetWriter

        if not 0 <= shard < self.n_shards:
            raise StoreError(f"{self.url} has shards 0 to {self.n_shards - 1}, not {shard}.")
        return ShardSetWriter(self._arrays, shard, [self._known(site) for site in sites], self._layouts, self._tables)

    def reader(self, site: Site, part: Literal["patches", "prefix"] = "patches") -> Reader:
        """A reader of whole inner chunks of one array, each verified; safe from several threads.

        Raises:
            StoreError: no such site, or no prefix tokens.
        """
        if part not in self._layouts:
            raise StoreError(f"{self.url} has no {part} tokens: {self.meta.model.get('name')} has no CLS token; read patches or mean.")
        return self._arrays.reader(f"{self._known(site)}/{part}", self._layouts[part])

    def read(self, site: Site, index: Any, part: Literal["patches", "prefix"] = "patches") -> np.ndarray:
        """Raw activations `[n, n_tokens, d_model]` in the stored dtype, in the order of `index`; missing images are zero.

        Args:
            index: image numbers `[n]`, or a slice.

        Raises:
            StoreError: a chunk is damaged or not yet recorded (the message names its file), or there is no such image.
        """
        reader, size = self.reader(site, part), self.meta.chunk_images
        numbers = np.arange(self.n_images)[index] if isinstance(index, slice) else np.asarray(index, np.int64).reshape(-1)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.n_images:
            raise StoreError(f"{self.url} holds images 0 to {self.n_images - 1}, not {numbers.min()} to {numbers.max()}.")
        out = np.empty((len(numbers), *reader.layout.row), reader.layout.dtype)
        buffer = np.empty((size, *reader.layout.row), reader.layout.dtype)
        order = np.argsort(numbers // size, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(numbers[order] // size)) + 1) if len(numbers) else []:
            chunk = int(numbers[places[0]]) // size
            reader.read(chunk, buffer)
            out[places] = buffer[numbers[places] - chunk * size]
        return out

    def moments(self, site: Site, tokens: str = "patches") -> tuple[int, Float[np.ndarray, " d_model"], float]:
        """Number of vectors, their sum and their summed squared length, in float64, over all recorded images.

        Args:
            tokens: `patches`, `cls` or `mean`.
        """
        if tokens == "cls" and not self.meta.n_prefix:
            self.reader(site, "prefix")
        policy, site = TOKENS.index(tokens), self._known(site)
        count, total, squares = (self._get(f"{site}/{name}") for name in ("count", "sum", "sumsq"))
        # add.reduce over the first axis adds row by row: bit-identical regardless of who wrote which shard, and when.
        return int(count[:, policy].sum()), np.add.reduce(total[:, policy], axis=0), float(sum(squares[:, policy].tolist()))

    def norm(self, site: Site, tokens: str = "patches") -> Norm:
        """The shift and scale to mean 0 and mean squared length `d_model`.

        Raises:
            StoreError: nothing is recorded, or `cls` is requested for a model without prefix tokens.
        """
        from saev_core.sae.norm import Norm

        return Norm.from_moments(*self.moments(site, tokens))

    def resolve(self, layer: int, stream: str = "resid") -> Site:
        """The recorded site of a layer; negative layers count from the model's last block.

        Raises:
            StoreError: it is not recorded; the message lists those that are.
        """
        n_blocks = self.meta.model.get("n_blocks")
        if layer < 0 and n_blocks is None:
            raise StoreError(f"{self.url} does not record how many blocks its model has; give the layer as a block number.")
        number = layer if layer >= 0 else layer + int(n_blocks or 0)
        held = self.sites
        if number < 0 or Site(number, stream) not in held:
            asked = f"{stream}.{number}" if number >= 0 else f"layer {layer}"
            raise StoreError(
                f"{self.url} holds {', '.join(map(str, held)) or 'no site yet'}, not {asked}; "
                f"choose one of these layers, or add it with saev record --record-layers {layer}."
            )
        return Site(number, stream)

    def verify(self, sites: list[Site] | None = None, track: Track = silent) -> list[str]:
        """Every problem with the recorded shards, one line each, naming the file; empty if there is none."""
        sites = self.sites if sites is None else [self._known(site) for site in sites]
        problems = [line for name, table in self.meta.image_tables().items() for line in self._arrays.verify(name, table)]
        with track("verify", len(sites) * self.n_shards, "shards") as meter:
            for site in sites:
                small = [line for name, table in self.meta.site_tables().items() for line in self._arrays.verify(f"{site}/{name}", table)]
                problems += small
                for shard in range(self.n_shards):
                    meter.update(1)
                    if not self._recorded(site, shard):
                        continue
                    for part in self._layouts:
                        problems += self.reader(site, part).verify(shard)  # type: ignore[arg-type]
        return problems

    def _recorded(self, site: Site, shard: int) -> bool:
        try:
            return bool(self._arrays.get(f"{site}/done", self._tables["done"], shard).all())
        except StoreError:  # already reported by `verify`; the data are still readable
            return True

    def _known(self, site: Site) -> Site:
        path = local_path(self.url)
        if not ((path / str(site) / "zarr.json").exists() if path is not None else site in self.sites):
            raise StoreError(f"{self.url} holds {', '.join(map(str, self.sites)) or 'no site yet'}, not {site}.")
        return site

    def _get(self, name: str) -> np.ndarray:
        return self._arrays.get(name, self._tables[name.rpartition("/")[2]])


def _attributes(url: str | Path) -> dict[str, Any] | None:
    """The store's metadata, not validated; None if there is no store."""
    path = local_path(url)
    if path is not None:
        try:
            root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path / 'zarr.json'}: not readable ({error}); record the store again.") from None
        found = root.get("attributes", {}).get("saev") if isinstance(root, dict) else None
    else:
        try:
            found = _zarr_group(str(url)).attrs.get("saev")
        except FileNotFoundError:
            return None
    return found if isinstance(found, dict) else None


def _zarr_group(url: str, mode: Any = "r") -> Any:
    import zarr

    try:
        return zarr.open_group(url, mode=mode)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise StoreError(f"{url} cannot be opened ({error}); check the URL, and install its fsspec driver (s3fs, gcsfs).") from None


def _create_group(url: str, meta: StoreMeta) -> None:
    import zarr

    group = zarr.create_group(url, overwrite=True, attributes={"saev": meta.model_dump(mode="json")})
    create_arrays(group, meta.image_tables())
