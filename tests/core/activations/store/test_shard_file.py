"""The raw shard files against zarr-python, killed writers, full disks and damaged bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.activations.store.arrays import Table, create_arrays
from saev_core.activations.store.shard_file import ALIGN, Layout, ShardReader, ShardWriter, chunk_file, read_chunk, write_chunk
from saev_core.errors import StoreError

F16 = np.dtype(np.float16)


def rows_of(layout: Layout) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((layout.n_images, *layout.row)).astype(layout.dtype)


def write(array: Path, layout: Layout, rows: np.ndarray, batch: int) -> None:
    """All shards, `batch` rows at a time."""
    for shard in range(layout.n_shards):
        images = layout.images(shard)
        writer = ShardWriter(array, layout, shard)
        at = images.start
        while at < images.stop:
            space = writer.space(min(batch, images.stop - at))
            space[:] = rows[at : at + len(space)]
            writer.advance(len(space))
            at += len(space)
        writer.close()
        writer.publish()


def make(folder: Path, layout: Layout, batch: int = 3) -> tuple[Path, np.ndarray]:
    create_arrays(zarr.create_group(str(folder)), {"x": layout})
    rows = rows_of(layout)
    write(folder / "x", layout, rows, batch)
    return folder / "x", rows


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    chunk=st.integers(1, 6),
    chunks_per_shard=st.integers(1, 4),
    tokens=st.integers(1, 5),
    d=st.integers(1, 33),
    dtype=st.sampled_from(["float16", "float32"]),
    batch=st.integers(1, 17),
)
def test_zarr_reads_streamed_shards_bit_identically(
    *, n: int, chunk: int, chunks_per_shard: int, tokens: int, d: int, dtype: str, batch: int
):
    layout = Layout(n, chunk * chunks_per_shard, chunk, (tokens, d), np.dtype(dtype))
    with tempfile.TemporaryDirectory() as folder:
        array, rows = make(Path(folder) / "z", layout, batch)
        assert zarr.open(str(array), mode="r")[:].tobytes() == rows.tobytes()
        reader, out = ShardReader(array, layout), np.empty((chunk, tokens, d), dtype)
        for number in range(layout.n_chunks):
            images = layout.chunk(number)
            reader.read(number, out)
            assert out[: len(images)].tobytes() == rows[images.start : images.stop].tobytes()
            assert not out[len(images) :].any()
        assert [reader.verify(shard) for shard in range(layout.n_shards)] == [[]] * layout.n_shards


def test_raw_reader_reads_what_zarr_wrote(tmp_path: Path):
    layout = Layout(20, 8, 4, (3, 5), F16)
    create_arrays(zarr.create_group(str(tmp_path / "z")), {"x": layout})
    rows = rows_of(layout)
    zarr.open(str(tmp_path / "z"), mode="r+")["x"][:] = rows
    out = np.empty((4, 3, 5), F16)
    for number in range(layout.n_chunks):
        ShardReader(tmp_path / "z" / "x", layout).read(number, out)
        assert (out == rows[number * 4 : number * 4 + 4]).all()


def test_chunks_start_on_pages(tmp_path: Path):
    layout = Layout(12, 12, 4, (3, 500), F16)
    array, _ = make(tmp_path / "z", layout)
    data = chunk_file(array, 0, 3).read_bytes()
    index = np.frombuffer(data[-layout.index_bytes : -4], "<u8").reshape(-1, 2)
    assert (index[:, 0] % ALIGN == 0).all()
    assert np.diff(index[:, 0].astype(int)).min() > layout.chunk_bytes + 4  # there really are gaps


def test_chunks_past_the_last_image_are_absent_and_cost_nothing(tmp_path: Path):
    layout = Layout(5, 64, 4, (2, 8), F16)
    array, rows = make(tmp_path / "z", layout)
    assert chunk_file(array, 0, 3).stat().st_size == 2 * ALIGN + layout.index_bytes
    assert (zarr.open(str(array))[:] == rows).all()


def test_writer_needs_memory_for_one_chunk(tmp_path: Path):
    layout = Layout(256, 256, 4, (16, 256), np.dtype(np.float32))  # a chunk is 64 KiB, the shard 4 MiB
    block = np.ones((4, 16, 256), np.float32)
    tracemalloc.start()
    writer = ShardWriter(tmp_path / "x", layout, 0)
    for _ in range(64):
        writer.space(4)[:] = block
        writer.advance(4)
    writer.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.publish()
    assert peak < 2 * layout.chunk_bytes


def test_a_shard_closed_early_gives_back_what_it_reserved(tmp_path: Path):
    layout = Layout(64, 64, 2, (4, 600), np.dtype(np.float16))
    writer = ShardWriter(tmp_path / "x", layout, 0)
    writer.space(2)[:] = 3
    writer.advance(2)
    writer.close()
    writer.publish()
    assert writer.path.stat().st_size < 5 * layout.chunk_bytes
    out = np.empty((2, 4, 600), np.float16)
    ShardReader(tmp_path / "x", layout).read(0, out)
    assert (out == 3).all()


def test_shard_is_invisible_until_published_and_discard_leaves_nothing(tmp_path: Path):
    layout = Layout(4, 4, 4, (1, 8), F16)
    writer = ShardWriter(tmp_path / "x", layout, 0)
    writer.space(4)[:] = 1
    writer.advance(4)
    writer.close()
    assert not chunk_file(tmp_path / "x", 0, 3).exists()
    writer.discard()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


WRITER = """
import sys, numpy as np
from pathlib import Path
from saev_core.activations.store.shard_file import Layout, ShardWriter
layout = Layout(8, 8, 2, (4, 600), np.dtype(np.float16))
writer = ShardWriter(Path(sys.argv[1]), layout, 0)
writer.space(2)[:] = 1
writer.advance(2)
print("half", flush=True)
sys.stdin.read()
"""


def half_written(array: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(array)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_leftover_of_a_killed_writer_is_ignored_then_removed(tmp_path: Path):
    layout = Layout(8, 8, 2, (4, 600), F16)
    create_arrays(zarr.create_group(str(tmp_path / "z")), {"x": layout})
    array = tmp_path / "z" / "x"
    end(half_written(array))
    (left,) = array.rglob("*.tmp")
    assert not zarr.open(str(array), mode="r")[:].any()  # zarr sees an array without that shard
    with pytest.raises(StoreError, match="missing"):
        ShardReader(array, layout).read(0, np.empty((2, 4, 600), F16))
    rows = rows_of(layout)
    write(array, layout, rows, 3)
    assert not left.exists()
    assert (zarr.open(str(array), mode="r")[:] == rows).all()


def test_work_of_a_living_writer_is_not_swept_away(tmp_path: Path):
    process = half_written(tmp_path / "x")
    try:
        (busy,) = (tmp_path / "x").rglob("*.tmp")
        layout = Layout(8, 8, 2, (4, 600), F16)
        write(tmp_path / "x", layout, rows_of(layout), 3)
        assert busy.exists()
    finally:
        end(process)


LIMITED = """
import os, resource, sys, numpy as np
from pathlib import Path
from saev_core.errors import StoreError
from saev_core.activations.store.shard_file import Layout, ShardWriter
if sys.argv[2] == "while writing":
    del os.posix_fallocate
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    writer = ShardWriter(Path(sys.argv[1]), Layout(64, 64, 2, (4, 600), np.dtype(np.float16)), 0)
    for _ in range(32):
        writer.space(2)[:] = 1
        writer.advance(2)
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("found", ["at the start", "while writing"])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, found: str):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "x"), found], capture_output=True, text=True, check=True)
    assert "disk is full" in done.stdout
    assert "free some space" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_one_line(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        write_chunk(tmp_path / "c" / "0", np.zeros(3))


def test_file_in_the_way_of_the_array_is_one_line(tmp_path: Path):
    (tmp_path / "x").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        ShardWriter(tmp_path / "x", Layout(4, 4, 4, (1, 8), F16), 0)


@pytest.fixture
def good(tmp_path: Path) -> tuple[ShardReader, Path]:
    layout = Layout(8, 8, 2, (4, 100), F16)
    array, _ = make(tmp_path / "z", layout)
    return ShardReader(array, layout), chunk_file(array, 0, 3)


def reads(reader: ShardReader) -> None:
    out = np.empty((2, 4, 100), F16)
    for chunk in range(4):
        reader.read(chunk, out)


@pytest.mark.parametrize("size", [0, 3, 100, ALIGN + 10, 4 * ALIGN, 4 * ALIGN + 67])
def test_truncated_shard_is_named(good: tuple[ShardReader, Path], size: int):
    reader, path = good
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreError, match=r"0/0/0 .*truncated"):
        reads(reader)
    assert len(reader.verify(0)) == 1


def test_shard_truncated_after_its_index_was_read_is_named(good: tuple[ShardReader, Path]):
    reader, path = good
    reads(reader)
    path.write_bytes(path.read_bytes()[: ALIGN + 10])
    with pytest.raises(StoreError, match="ends inside its chunk 1"):
        reads(reader)


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 8 * (4 * ALIGN + 68) - 1))
def test_any_flipped_bit_of_data_or_index_is_found(bit: int):
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(8, 8, 2, (4, 100), F16)
        array, _ = make(Path(folder) / "z", layout)
        path = chunk_file(array, 0, 3)
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        place = bit // 8
        gap = place < 4 * ALIGN and place % ALIGN >= layout.chunk_bytes + 4
        problems = ShardReader(array, layout).verify(0)
        if gap:  # padding holds nothing
            assert problems == []
        else:
            assert len(problems) == 1
            assert str(path) in problems[0]


def test_missing_chunk_is_named(good: tuple[ShardReader, Path]):
    reader, path = good
    path.unlink()
    with pytest.raises(StoreError, match=r"0/0/0 is missing.*saev store verify"):
        reads(reader)
    assert len(reader.verify(0)) == 1


def test_chunk_absent_from_the_index_is_named(tmp_path: Path):
    layout = Layout(8, 8, 2, (4, 100), F16)
    create_arrays(zarr.create_group(str(tmp_path / "z")), {"x": layout})
    zarr.open(str(tmp_path / "z"), mode="r+")["x"][:2] = 1
    with pytest.raises(StoreError, match="lacks its chunk 1"):
        reads(ShardReader(tmp_path / "z" / "x", layout))


def test_small_chunks_round_trip_and_tell_damage(tmp_path: Path):
    table = Table((5, 2), 4, np.dtype(np.int32), -1)
    create_arrays(zarr.create_group(str(tmp_path)), {"t": table})
    path = chunk_file(tmp_path / "t", 0, 2)
    assert read_chunk(path, table.chunk, table.dtype) is None
    values = np.arange(8, dtype=np.int32).reshape(4, 2)
    write_chunk(path, values)
    assert (read_chunk(path, table.chunk, table.dtype) == values).all()
    assert (zarr.open(str(tmp_path / "t"))[:4] == values).all()
    data = bytearray(path.read_bytes())
    data[5] ^= 16
    path.write_bytes(data)
    with pytest.raises(StoreError, match="checksum"):
        read_chunk(path, table.chunk, table.dtype)
    path.write_bytes(data[:9])
    with pytest.raises(StoreError, match="holds 9 bytes, not 36"):
        read_chunk(path, table.chunk, table.dtype)
