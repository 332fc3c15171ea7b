"""The arrays of a store, by name: raw file access if the store is local and in our layout, zarr-python otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from saev_core.activations.store.shard_file import Layout, ShardReader, ShardWriter, chunk_file, read_chunk, write_chunk
from saev_core.errors import StoreError
from saev_core.support.urls import local_path

_PLAIN: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_BYTE: list[dict[str, Any]] = [{"name": "bytes"}, {"name": "crc32c"}]


class Reader(Protocol):
    """Reads inner chunks and verifies their checksums; safe from several threads."""

    layout: Layout

    def read(self, chunk: int, out: np.ndarray) -> None: ...

    def verify(self, shard: int) -> list[str]: ...


class Writer(Protocol):
    """Takes the rows of one shard in order: fill `space(n)`, call `advance(m)`; at the end `close`, then `publish`."""

    def space(self, n: int) -> np.ndarray: ...

    def advance(self, n: int) -> None: ...

    def close(self) -> None: ...

    def publish(self) -> None: ...

    def discard(self) -> None: ...


@dataclass(frozen=True)
class Table:
    """A small array with a few rows per shard, chunked at shard boundaries so that disjoint writers share no file."""

    shape: tuple[int, ...]
    per_shard: int
    dtype: np.dtype[Any]
    fill: int = 0

    @property
    def chunk(self) -> tuple[int, ...]:
        return (self.per_shard, *self.shape[1:])

    @property
    def n_shards(self) -> int:
        return -(-self.shape[0] // self.per_shard)

    def rows(self, shard: int) -> slice:
        return slice(shard * self.per_shard, min((shard + 1) * self.per_shard, self.shape[0]))


class Arrays:
    """A store's arrays. `name` is the path within the store, such as `resid.10/patches`."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.local = local_path(url)
        self._readers: dict[str, Reader] = {}
        self._raw: dict[str, bool] = {}

    def reader(self, name: str, layout: Layout) -> Reader:
        """A reader of the sharded array `name`; raw if it is local and in our layout, zarr's otherwise.

        Raises:
            StoreError: there is no such array.
        """
        if name not in self._readers:
            if self.local is not None and self._is_raw(name, layout):
                self._readers[name] = ShardReader(self.local / name, layout)
            else:
                self._readers[name] = ZarrReader(self._zarr(name), layout, f"{self.url}/{name}")
        return self._readers[name]

    def writer(self, name: str, layout: Layout, shard: int) -> Writer:
        """A writer of one shard of `name`: streaming with memory for one chunk if local, with memory for the whole shard otherwise."""
        if self.local is not None and self._is_raw(name, layout):
            return ShardWriter(self.local / name, layout, shard)
        return ZarrWriter(self._zarr(name), layout, shard, f"{self.url}/{name}")

    def has_shard(self, name: str, layout: Layout, shard: int) -> bool:
        """Whether the shard's file exists; True without checking where the check is slow."""
        if self.local is None or not self._is_raw(name, layout):
            return True
        return chunk_file(self.local / name, shard, 1 + len(layout.row)).exists()

    def get(self, name: str, table: Table, shard: int | None = None) -> np.ndarray:
        """The small array `name`, or one shard's rows of it.

        Raises:
            StoreError: a chunk is damaged; the message names its file.
        """
        shards = range(table.n_shards) if shard is None else range(shard, shard + 1)
        if self.local is None or not self._is_raw(name, table):
            where = slice(None) if shard is None else table.rows(shard)
            return np.asarray(_guarded(lambda: self._zarr(name)[where], f"{self.url}/{name}"))
        first = table.rows(shards.start).start
        n_rows = table.rows(shards.stop - 1).stop - first if len(shards) else 0
        out = np.full((n_rows, *table.shape[1:]), table.fill, table.dtype)
        for each in shards:
            rows = table.rows(each)
            chunk = read_chunk(chunk_file(self.local / name, each, len(table.shape)), table.chunk, table.dtype)
            if chunk is not None:
                out[rows.start - first : rows.stop - first] = chunk[: rows.stop - rows.start]
        return out

    def put(self, name: str, table: Table, shard: int, values: np.ndarray) -> None:
        """Write one shard's rows of the small array `name`; a file that already holds them is not touched.

        Raises:
            StoreError: the disk is full, or the store cannot be written.
        """
        rows = table.rows(shard)
        values = np.asarray(values, table.dtype)
        assert values.shape == (rows.stop - rows.start, *table.shape[1:]), (name, values.shape)
        if self.local is None or not self._is_raw(name, table):
            array = self._zarr(name, "r+")

            def assign() -> None:
                array[rows] = values

            _guarded(assign, f"{self.url}/{name}")
            return
        path = chunk_file(self.local / name, shard, len(table.shape))
        chunk = np.full(table.chunk, table.fill, table.dtype)
        chunk[: len(values)] = values
        try:
            old = read_chunk(path, table.chunk, table.dtype)
        except StoreError:  # a damaged chunk is being replaced
            old = None
        if old is None or old.tobytes() != chunk.tobytes():
            write_chunk(path, chunk)

    def verify(self, name: str, table: Table) -> list[str]:
        """One line per damaged chunk of a small array."""
        problems = []
        for shard in range(table.n_shards):
            try:
                self.get(name, table, shard)
            except StoreError as error:
                problems.append(str(error))
        return problems

    def _is_raw(self, name: str, spec: Layout | Table) -> bool:
        if name not in self._raw:
            assert self.local is not None
            path = self.local / name / "zarr.json"
            try:
                meta = json.loads(path.read_text(encoding="utf-8"))
                self._raw[name] = _as_written(meta, spec)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}: not readable as a zarr array ({error}); the store is damaged, record it again.") from None
        return self._raw[name]

    def _zarr(self, name: str, mode: Any = "r+") -> Any:
        import zarr

        return _guarded(lambda: zarr.open_array(self.url, path=name, mode=mode), f"{self.url}/{name}")


def _as_written(meta: dict[str, Any], spec: Layout | Table) -> bool:
    """Whether an array's zarr metadata describe exactly the bytes that `shard_file` reads and writes."""
    plain = _PLAIN if spec.dtype.itemsize > 1 else _BYTE
    key = {"name": "default", "configuration": {"separator": "/"}}
    encoding = meta["chunk_key_encoding"]
    if encoding not in (key, {"name": "default"}) or meta["data_type"] != spec.dtype.name or meta.get("storage_transformers"):
        return False
    outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
    if isinstance(spec, Table):
        return bool(meta["shape"] == list(spec.shape) and outer == list(spec.chunk) and meta["codecs"] == plain)
    sharding = {
        "chunk_shape": [spec.chunk_images, *spec.row],
        "codecs": plain,
        "index_codecs": _PLAIN,
        "index_location": "end",
    }
    return bool(
        meta["shape"] == [spec.n_images, *spec.row]
        and outer == [spec.shard_images, *spec.row]
        and meta["codecs"] == [{"name": "sharding_indexed", "configuration": sharding}]
    )


def create_arrays(group: Any, arrays: Mapping[str, Layout | Table]) -> None:
    """Create the (empty) arrays in a zarr group; zarr-python writes all metadata."""
    from zarr.codecs import Crc32cCodec

    for name, spec in arrays.items():
        if isinstance(spec, Table):
            group.create_array(
                name, shape=spec.shape, chunks=spec.chunk, dtype=spec.dtype.name, fill_value=spec.fill, compressors=[Crc32cCodec()]
            )
        else:
            group.create_array(
                name,
                shape=(spec.n_images, *spec.row),
                shards=(spec.shard_images, *spec.row),
                chunks=(spec.chunk_images, *spec.row),
                dtype=spec.dtype.name,
                fill_value=0,
                compressors=[Crc32cCodec()],
            )


class ZarrReader:
    """Reads through zarr-python: any codec, any URL; about five times slower than raw reading."""

    def __init__(self, array: Any, layout: Layout, name: str) -> None:
        self._array, self.layout, self._name = array, layout, name

    def read(self, chunk: int, out: np.ndarray) -> None:
        """Read inner chunk number `chunk` into `out`, like `ShardReader.read`; rows past the last image are not touched."""
        images = self.layout.chunk(chunk)
        place = f"{self._name}/c/{images.start // self.layout.shard_images} (images {images.start} to {images.stop - 1})"
        out[: len(images)] = _guarded(lambda: self._array[images.start : images.stop], place)

    def verify(self, shard: int) -> list[str]:
        """One line per chunk that cannot be read."""
        first = shard * self.layout.chunks_per_shard
        buffer = np.empty((self.layout.chunk_images, *self.layout.row), self.layout.dtype)
        problems = []
        for chunk in range(first, min(first + self.layout.chunks_per_shard, self.layout.n_chunks)):
            try:
                self.read(chunk, buffer)
            except StoreError as error:
                problems.append(str(error))
        return problems


class ZarrWriter:
    """Writes one shard through zarr-python: needs memory for the whole shard."""

    def __init__(self, array: Any, layout: Layout, shard: int, name: str) -> None:
        images = layout.images(shard)
        self._array, self._name = array, f"{name}/c/{shard}"
        self._at, self._filled = slice(images.start, images.stop), 0
        self._rows = np.zeros((len(images), *layout.row), layout.dtype)

    def space(self, n: int) -> np.ndarray:
        return self._rows[self._filled : self._filled + n]

    def advance(self, n: int) -> None:
        self._filled += n

    def close(self) -> None:
        """Does nothing; `publish` writes everything."""

    def publish(self) -> None:
        def assign() -> None:
            self._array[self._at] = self._rows

        _guarded(assign, self._name)

    def discard(self) -> None:
        """Does nothing; nothing has been written."""


def _guarded(action: Any, place: str) -> Any:
    """Run a zarr operation; any failure becomes a one-line error that names the place."""
    try:
        return action()
    except FileNotFoundError:
        raise StoreError(f"{place} is missing; check the URL, or record again.") from None
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"{place} cannot be read or written ({why}); `saev store verify` lists all damaged chunks.") from None
