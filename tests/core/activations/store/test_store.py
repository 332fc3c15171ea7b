"""The activation store: what another program sees, what is refused, and what several writers may do at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.errors import ShapeError, StoreError
from saev_core.testing import store_of
from saev_core.types import Box, Site

TEN, ELEVEN = Site(10), Site(11)


def meta_of(**changed: Any) -> StoreMeta:
    fields = {
        "model": {"name": "m", "dist": "", "options": {"checkpoint": "a"}, "n_blocks": 12},
        "dataset": {"name": "d"},
        "rows": 2,
        "cols": 3,
        "patch_px": 4,
        "n_prefix": 2,
        "d_model": 8,
        "n_images": 21,
        "chunk_images": 4,
        "shard_images": 8,
    }
    return StoreMeta.model_validate(fields | changed)


def tokens(n: int = 21, n_tokens: int = 8, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n_tokens, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def two(tmp_path: Path) -> tuple[ActivationStore, dict[Site, torch.Tensor]]:
    """21 images, 2 prefix tokens and 6 patches, at two sites; image 13 missing."""
    x = {TEN: tokens(), ELEVEN: tokens(seed=1)}
    missing = np.arange(21) == 13
    store = store_of(tmp_path / "s", x, n_prefix=2, label=np.arange(21) % 5, missing=missing, rows=2, cols=3)
    for values in x.values():
        values[13] = 0
    return store, x


def test_plain_zarr_reads_everything(two: tuple[ActivationStore, dict[Site, torch.Tensor]]):
    store, x = two
    root = zarr.open(store.url, mode="r")
    assert root.attrs["saev"]["model"]["name"] == "memory"
    for site, values in x.items():
        assert root[f"{site}/patches"][:].tobytes() == values[:, 2:].half().contiguous().numpy().tobytes()
        assert root[f"{site}/prefix"][:].tobytes() == values[:, :2].half().contiguous().numpy().tobytes()
        assert root[f"{site}/done"][:].tolist() == [2 if i == 13 else 1 for i in range(21)]
        assert root[f"{site}/count"][:].sum(0).tolist() == [20 * 6, 20, 20]
    assert root["label"][:].tolist() == [-1 if i == 13 else i % 5 for i in range(21)]


def test_reads_in_the_order_asked(two: tuple[ActivationStore, dict[Site, torch.Tensor]]):
    store, x = two
    index = np.array([20, 0, 7, 7, 3, 13])
    assert (store.read(TEN, index) == x[TEN][index, 2:].half().numpy()).all()
    assert (store.read(ELEVEN, slice(5, 18), "prefix") == x[ELEVEN][5:18, :2].half().numpy()).all()
    assert store.read(TEN, []).shape == (0, 6, 8)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 30),
    chunk=st.integers(1, 5),
    chunks=st.integers(1, 4),
    n_prefix=st.integers(0, 2),
    batch=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_any_shape_round_trips(
    *, n: int, chunk: int, chunks: int, n_prefix: int, batch: int, dtype: str, tmp_path_factory: pytest.TempPathFactory
):
    x = tokens(n, n_prefix + 3, 5)
    folder = tmp_path_factory.mktemp("s") / "store"
    store = store_of(folder, {TEN: x}, n_prefix=n_prefix, chunk_images=chunk, shard_images=chunk * chunks, dtype=dtype, batch=batch)
    assert store.complete(TEN)
    stored = x.to(getattr(torch, dtype))
    assert store.read(TEN, slice(None)).tobytes() == stored[:, n_prefix:].contiguous().numpy().tobytes()
    if n_prefix:
        assert zarr.open(str(folder))["resid.10/prefix"][:].tobytes() == stored[:, :n_prefix].contiguous().numpy().tobytes()
    assert store.verify() == []


def test_moments_are_those_of_the_stored_values_in_float64(two: tuple[ActivationStore, dict[Site, torch.Tensor]]):
    store, x = two
    kept = np.delete(x[TEN].half().double().numpy(), 13, 0)
    wanted = {"patches": kept[:, 2:].reshape(-1, 8), "cls": kept[:, 0], "mean": kept[:, 2:].mean(1)}
    for policy, vectors in wanted.items():
        n, total, squares = store.moments(TEN, policy)
        assert n == len(vectors)
        np.testing.assert_allclose(total, vectors.sum(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(squares, (vectors**2).sum(), rtol=1e-13)
        norm = store.norm(TEN, policy)
        normed = (torch.from_numpy(vectors) - norm.mean.double()) * norm.scale
        assert abs(normed.mean(0)).max() < 1e-6
        assert float(normed.square().sum(1).mean()) == pytest.approx(8, rel=1e-5)


def test_moments_do_not_depend_on_batches_or_on_the_order_of_shards(tmp_path: Path):
    x = tokens()
    one = store_of(tmp_path / "one", {TEN: x}, n_prefix=2, batch=1)
    other = ActivationStore.create(tmp_path / "other", one.meta)
    other.add_site(TEN)
    for shard in reversed(range(other.n_shards)):
        with other.write_shard([TEN], shard) as writer:
            writer.append({TEN: x[writer.images.start : writer.images.stop]}, list(writer.images))
    a, b = one.moments(TEN), other.moments(TEN)
    assert a[0] == b[0]
    assert a[1].tobytes() == b[1].tobytes()
    assert a[2] == b[2]


def test_labels_sizes_crops_and_masks_come_back(tmp_path: Path):
    store = ActivationStore.create(tmp_path / "s", meta_of(n_images=8, has_mask=True))
    store.add_site(TEN)
    with store.write_shard([TEN], 0) as writer:
        writer.append(
            {TEN: tokens(8)},
            torch.arange(8),
            label=torch.arange(8),
            size=np.full((8, 2), (640, 480)),
            crop=[(80.0, 0.5, 560, 480)] * 8,
            mask=np.arange(48).reshape(8, 6),
        )
    assert store.labels.tolist() == list(range(8))
    assert store.sizes[7].tolist() == [640, 480]
    assert store.crop(3) == Box(80, 0.5, 560, 480)
    assert store.grid.box(0, store.crop(3)) == Box(80, 0.5, 240, 240.25)
    mask = store.mask
    assert mask is not None
    assert mask.dtype == np.uint16
    assert mask[7].tolist() == list(range(42, 48))


def test_store_without_masks_has_none(two: tuple[ActivationStore, Any]):
    assert two[0].mask is None


@pytest.mark.parametrize("large", [65_520.0, -1e30])
def test_float16_overflow_is_refused_with_advice_and_float32_takes_it(tmp_path: Path, large: float):
    x = tokens()
    x[5, 3, 2] = large
    with pytest.raises(StoreError, match=r"resid\.10, image 5: .* does not fit float16 .*--dtype float32"):
        store_of(tmp_path / "half", {TEN: x}, n_prefix=2)
    assert not ActivationStore.open(tmp_path / "half").done(TEN).any()
    assert not list((tmp_path / "half").rglob("*.tmp"))
    store = store_of(tmp_path / "single", {TEN: x}, n_prefix=2, dtype="float32")
    assert store.read(TEN, [5])[0, 1, 2] == np.float32(large)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1, 5])  # CLS, register, patch
def test_nan_and_infinity_are_refused_with_advice(tmp_path: Path, bad: float, place: int):
    x = tokens()
    x[5, place, 2] = bad
    for dtype in ("float16", "float32"):
        with pytest.raises(StoreError, match=r"resid\.10, image 5: the model produced NaN or infinity; check its weights"):
            store_of(tmp_path / dtype, {TEN: x}, n_prefix=2, dtype=dtype)


def test_largest_float16_is_not_an_overflow(tmp_path: Path):
    x = tokens()
    x[0, 0, 0], x[0, 5, 0] = 65_504, -65_504
    assert store_of(tmp_path / "s", {TEN: x}, n_prefix=2).complete(TEN)


def test_garbage_in_rows_of_missing_images_does_no_harm(tmp_path: Path):
    x = tokens()
    x[5] = torch.nan
    store = store_of(tmp_path / "s", {TEN: x}, n_prefix=2, missing=np.arange(21) == 5)
    assert not store.read(TEN, [5]).any()
    assert store.moments(TEN)[0] == 20 * 6


def test_images_must_follow_on(tmp_path: Path):
    store = ActivationStore.create(tmp_path / "s", meta_of())
    store.add_site(TEN)
    with pytest.raises(StoreError, match="expects images 8 to 15 in order"), store.write_shard([TEN], 1) as writer:
        writer.append({TEN: tokens(2)}, [9, 10])
    with pytest.raises(StoreError, match="lacks images 10 to 15; it was not committed"), store.write_shard([TEN], 1) as writer:
        writer.append({TEN: tokens(2)}, [8, 9])
    with pytest.raises(ShapeError, match=r"got \(2, 7, 8\), the store expects \(2, 8, 8\)"), store.write_shard([TEN], 1) as writer:
        writer.append({TEN: tokens(2, 7)}, [8, 9])
    assert not store.done(TEN).any()
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file() and path.name != "zarr.json"]


def test_shards_resume_one_by_one(tmp_path: Path):
    x = tokens()
    store = ActivationStore.create(tmp_path / "s", meta_of())
    store.add_site(TEN)
    with store.write_shard([TEN], 1) as writer:
        writer.append({TEN: x[8:16]}, range(8, 16))
    assert store.shards_done(TEN).tolist() == [False, True, False]
    assert not store.complete(TEN)
    with pytest.raises(StoreError, match="missing; record again"):
        store.read(TEN, [0])
    again = ActivationStore.open(tmp_path / "s")
    for shard in (0, 2):
        with again.write_shard([TEN], shard) as writer:
            writer.append({TEN: x[writer.images.start : writer.images.stop]}, writer.images)
    assert again.complete(TEN)


def test_deleted_shard_counts_as_not_done(two: tuple[ActivationStore, Any]):
    store, _ = two
    (Path(store.url) / "resid.10/prefix/c/1/0/0").unlink()
    assert store.shards_done(TEN).tolist() == [True, False, True]


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_adding_a_site_later_touches_no_file_that_is_there(two: tuple[ActivationStore, Any]):
    store, _ = two
    before = digests(Path(store.url))
    x, added = tokens(seed=2), Site(3, "attn.proj")
    missing = np.arange(21) == 13
    store_of(store.url, {added: x}, n_prefix=2, label=np.arange(21) % 5, missing=missing, rows=2, cols=3)
    after = digests(Path(store.url))
    assert {name: after[name] for name in before} == before
    assert ActivationStore.open(store.url).sites == [added, TEN, ELEVEN]
    x[13] = 0
    assert (store.read(added, slice(None)) == x[:, 2:].half().numpy()).all()


def test_site_that_reads_a_once_missing_image_fills_its_label_in_and_never_takes_it_away(tmp_path: Path):
    x = tokens()
    first = store_of(tmp_path / "s", {TEN: x}, n_prefix=2, label=np.arange(21), missing=np.arange(21) == 4)
    assert first.labels[4] == -1
    store_of(tmp_path / "s", {ELEVEN: x}, n_prefix=2, label=np.arange(21))
    assert first.labels[4] == 4
    store_of(tmp_path / "s", {Site(1): x}, n_prefix=2, label=np.arange(21), missing=np.arange(21) == 4)
    assert first.labels[4] == 4


WRITE_PART = """
import sys, torch
from saev_core.activations.store.store import ActivationStore
from saev_core.activations.store.meta import StoreMeta
from saev_core.types import Site
url, part, meta = sys.argv[1], int(sys.argv[2]), StoreMeta.model_validate_json(sys.argv[3])
torch.set_num_threads(1)
x = torch.randn(meta.n_images, 8, 8, generator=torch.Generator().manual_seed(0))
print("ready", flush=True)
sys.stdin.readline()
store = ActivationStore.create(url, meta)
store.add_site(Site(10))
for shard in range(part, store.n_shards, 2):
    with store.write_shard([Site(10)], shard) as writer:
        for i in writer.images:
            writer.append({Site(10): x[i : i + 1]}, [i], label=[i])
"""


@pytest.mark.slow
def test_two_processes_make_one_store_at_once_without_locks(tmp_path: Path):
    meta = meta_of(n_images=150)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_PART, str(tmp_path / "s"), str(part), meta.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    errors = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        errors.append(process.communicate()[1])
    assert errors == ["", ""]
    store = ActivationStore.open(tmp_path / "s")
    x = tokens(150)
    assert store.complete(TEN)
    assert (store.read(TEN, slice(None)) == x[:, 2:].half().numpy()).all()
    assert store.labels.tolist() == list(range(150))
    assert store.verify() == []
    alone = store_of(tmp_path / "alone", {TEN: x}, n_prefix=2)
    assert store.moments(TEN)[1].tobytes() == alone.moments(TEN)[1].tobytes()
    assert not list(tmp_path.rglob("*.tmp"))


FULL_DISK = """
import resource, sys, torch
from saev_core.errors import StoreError
from saev_core.testing import store_of
from saev_core.types import Site
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
try:
    store_of(sys.argv[1], {Site(10): torch.randn(21, 8, 200)}, n_prefix=2, d_model=200)
except StoreError as error:
    print(error)
"""


@pytest.mark.slow
def test_full_disk_is_one_line_and_what_is_there_does_not_look_whole(tmp_path: Path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "the disk is full" in done.stdout
    store = ActivationStore.open(tmp_path / "s")
    assert not store.done(TEN).any()
    assert not store.complete(TEN)
    assert not list(tmp_path.rglob("*.tmp"))


def test_create_opens_what_is_there_and_names_the_difference(tmp_path: Path):
    ActivationStore.create(tmp_path / "s", meta_of())
    assert ActivationStore.create(tmp_path / "s", meta_of(versions={"torch": "9"})).n_images == 21
    with pytest.raises(StoreError, match=r"model\.options\.checkpoint a there, b here; n_images 21 there, 22 here.*another folder"):
        ActivationStore.create(
            tmp_path / "s", meta_of(model={"name": "m", "dist": "", "options": {"checkpoint": "b"}, "n_blocks": 12}, n_images=22)
        )


def test_create_refuses_a_folder_with_other_things_in_it(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(StoreError, match="exists and is not an activation store"):
        ActivationStore.create(tmp_path, meta_of())
    (tmp_path / "empty").mkdir()
    assert ActivationStore.create(tmp_path / "empty", meta_of()).sites == []


def test_create_below_a_file_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot create a store there"):
        ActivationStore.create(tmp_path / "file" / "s", meta_of())


def test_open_of_something_else_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    zarr.create_group(str(tmp_path / "group"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    for name in ("nowhere", "file", "group"):
        with pytest.raises(StoreError, match="is not an activation store; record one there"):
            ActivationStore.open(tmp_path / name)
    with pytest.raises(StoreError, match="not readable"):
        ActivationStore.open(tmp_path / "broken")


def test_other_format_version_is_refused_before_anything_else(two: tuple[ActivationStore, Any]):
    path = Path(two[0].url) / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["saev"] = {"format": 2, "something": "new"}
    path.write_text(json.dumps(root))
    with pytest.raises(StoreError, match="store format 2, this saev reads 1"):
        ActivationStore.open(two[0].url)


def test_fingerprint_is_of_everything_but_versions():
    assert meta_of().fingerprint == meta_of(versions={"numpy": "2"}).fingerprint
    others = {meta_of(**change).fingerprint for change in ({}, {"d_model": 9}, {"dtype": "float32"}, {"transform": "t"}, {"dataset": {}})}
    assert len(others) == 5


def test_layers_resolve_from_both_ends_and_others_are_named(two: tuple[ActivationStore, Any]):
    store, _ = two
    assert store.resolve(-2) == store.resolve(10) == TEN
    with pytest.raises(StoreError, match=r"holds resid\.10, resid\.11, not resid\.9.*--record-layers -3"):
        store.resolve(-3)
    with pytest.raises(StoreError, match=r"not mlp\.10"):
        store.resolve(10, "mlp")
    with pytest.raises(StoreError, match="not layer -20"):
        store.resolve(-20)
    with pytest.raises(StoreError, match=r"holds resid\.10, resid\.11, not resid\.3"):
        store.done(Site(3))


def test_no_such_image_or_shard_is_one_line(two: tuple[ActivationStore, Any]):
    with pytest.raises(StoreError, match="holds images 0 to 20, not 21 to 21"):
        two[0].read(TEN, [21])
    with pytest.raises(StoreError, match="shards 0 to 2, not 3"):
        two[0].write_shard([TEN], 3)


def test_cls_of_a_model_without_prefix_tokens_is_one_line(tmp_path: Path):
    store = store_of(tmp_path / "s", {TEN: tokens()})
    for ask in (lambda: store.norm(TEN, "cls"), lambda: store.read(TEN, [0], "prefix")):
        with pytest.raises(StoreError, match="no CLS token; read patches or mean"):
            ask()


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("resid.10/patches/c/1/0/0", "truncate", "truncated"),
        ("resid.11/patches/c/0/0/0", "flip", "checksum"),
        ("resid.10/prefix/c/2/0/0", "remove", "missing"),
        ("label/c/1", "flip", "checksum"),
        ("resid.10/done/c/0", "truncate", "holds"),
        ("resid.11/sum/c/2/0/0", "flip", "checksum"),
    ],
)
def test_verify_names_the_damaged_file(two: tuple[ActivationStore, Any], file: str, damage: str, says: str):
    store, _ = two
    assert store.verify() == []
    path = Path(store.url) / file
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-5])
    problems = ActivationStore.open(store.url).verify()
    assert len(problems) == 1
    assert str(path) in problems[0]
    assert says in problems[0]


def test_reading_a_damaged_chunk_names_it_and_its_neighbours_still_read(two: tuple[ActivationStore, dict[Site, torch.Tensor]]):
    store, x = two
    path = Path(store.url) / "resid.10/patches/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[4096 + 7] ^= 64  # in the second chunk: images 4 to 7
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"resid\.10/patches/c/0/0/0 .*checksum of its chunk 1.*saev store verify"):
        store.read(TEN, [5])
    assert (store.read(TEN, [0, 8]) == x[TEN][[0, 8], 2:].half().numpy()).all()


def test_damaged_array_description_is_one_line(two: tuple[ActivationStore, Any]):
    (Path(two[0].url) / "resid.10/patches/zarr.json").write_text("{}")
    with pytest.raises(StoreError, match=r"zarr\.json: not readable as a zarr array"):
        ActivationStore.open(two[0].url).read(TEN, [0])


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
def test_any_url_holds_a_store(tmp_path: Path, scheme: str):
    x = tokens()
    url = f"{scheme}{tmp_path}/s"
    store = store_of(url, {TEN: x}, n_prefix=2, label=np.arange(21), missing=np.arange(21) == 13)
    x[13] = 0
    again = ActivationStore.open(url)
    assert again.complete(TEN)
    assert again.sites == [TEN]
    assert (again.read(TEN, [20, 3, 13]) == x[[20, 3, 13], 2:].half().numpy()).all()
    assert again.labels[[12, 13]].tolist() == [12, -1]
    assert again.verify() == []
    local = store_of(tmp_path / "local", {TEN: x}, n_prefix=2, missing=np.arange(21) == 13)
    assert store.moments(TEN)[1].tobytes() == local.moments(TEN)[1].tobytes()


def test_url_without_a_store_or_driver_is_one_line():
    with pytest.raises(StoreError, match="is not an activation store"):
        ActivationStore.open("memory://nothing/here")
    with pytest.raises(StoreError, match="nosuch://a/b cannot be opened"):
        ActivationStore.open("nosuch://a/b")


def test_damaged_chunk_of_a_store_read_through_zarr_is_named(tmp_path: Path):
    import fsspec

    url = f"memory://{tmp_path}/s"
    store_of(url, {TEN: tokens()}, n_prefix=2)
    files = fsspec.filesystem("memory")
    name = f"{tmp_path}/s/resid.10/patches/c/1/0/0"
    data = bytearray(files.cat_file(name))
    data[10] ^= 1
    files.pipe_file(name, bytes(data))
    store = ActivationStore.open(url)
    with pytest.raises(StoreError, match=r"resid\.10/patches/c/1 \(images 8 to 11\)"):
        store.read(TEN, [9])
    assert len(store.verify()) == 1


def test_store_recompressed_by_another_program_still_reads(two: tuple[ActivationStore, dict[Site, torch.Tensor]]):
    store, x = two
    root = zarr.open(store.url, mode="r+")
    values = root["resid.10/patches"][:]
    root["resid.10"].create_array("patches", data=values, chunks=(4, 6, 8), compressors=[zarr.codecs.ZstdCodec()], overwrite=True)
    labels = root["label"][:]
    root.create_array("label", data=labels, chunks=(21,), overwrite=True)
    again = ActivationStore.open(store.url)
    assert (again.read(TEN, [19, 2]) == x[TEN][[19, 2], 2:].half().numpy()).all()
    assert (again.labels == labels).all()
    assert again.verify() == []
