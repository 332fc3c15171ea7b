"""The plan: what it says of disk and memory is what a recording takes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saev_core.activations.recording.plan import bytes_free, part, plan, spans
from saev_core.activations.store.meta import StoreMeta
from saev_core.config.stages import RecordConfig
from saev_core.errors import DatasetError, StoreError

spec = importlib.util.spec_from_file_location("recorder", Path(__file__).parents[1] / "recorder.py")
assert spec is not None
assert spec.loader is not None
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
Pictures, Toy, run = recorder.Pictures, recorder.Toy, recorder.run
SMALL = {"shard_images": 8, "chunk_images": 4, "batch_size": 5}


def size(folder: Path) -> int:
    """Bytes of a folder's files, whole pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("config", [{"layers": (1, 2)}, {"dtype": "float32"}, {"shard_images": 32, "chunk_images": 16}, {"n_images": 19}])
def test_the_disk_it_says_is_the_disk_it_takes(tmp_path: Path, config: dict[str, object]) -> None:
    model = Toy(d_model=256)
    said = plan(model, Pictures(), tmp_path / "s", RecordConfig.model_validate({**SMALL, **config}))
    run(tmp_path / "s", model, **config)
    assert size(tmp_path / "s") == pytest.approx(said.bytes_disk, rel=0.25)
    assert said.n_images == config.get("n_images", 40)


def test_it_writes_nothing(tmp_path: Path) -> None:
    plan(Toy(), Pictures(), tmp_path / "s", RecordConfig())
    assert list(tmp_path.iterdir()) == []


def test_it_counts_only_what_is_left(tmp_path: Path) -> None:
    run(tmp_path / "s", layers=(1,), part="1/2")
    cfg = RecordConfig(layers=(1,), **SMALL)
    assert plan(Toy(), Pictures(), tmp_path / "s", cfg).n_images == 24
    both = plan(Toy(), Pictures(), tmp_path / "s", RecordConfig(layers=(1, 2), **SMALL))
    assert both.n_images == 40
    run(tmp_path / "s", layers=(1,))
    nothing = plan(Toy(), Pictures(), tmp_path / "s", cfg)
    assert (nothing.n_images, nothing.bytes_disk, nothing.seconds) == (0, 0, 0)


def test_it_refuses_what_recording_would_refuse(tmp_path: Path) -> None:
    run(tmp_path / "s")
    with pytest.raises(StoreError, match="n_images 40 there, 41 here"):
        plan(Toy(), Pictures(41), tmp_path / "s", RecordConfig(**SMALL))
    with pytest.raises(DatasetError, match=r"none of the first \d+ images can be read"):
        plan(Toy(), Pictures(bad=tuple(range(40))), tmp_path / "t", RecordConfig(**SMALL))


def test_it_refuses_a_disk_that_is_too_small(tmp_path: Path) -> None:
    class Vast(Pictures):  # type: ignore[misc,valid-type]
        def __len__(self) -> int:
            return 10**13

    with pytest.raises(StoreError, match="the disk has"):
        plan(Toy(), Vast(), tmp_path / "s", RecordConfig(shard_images=2**36, chunk_images=2**36))


def test_time_and_rate_belong_together(tmp_path: Path) -> None:
    said = plan(Toy(), Pictures(pause=0.01), tmp_path / "s", RecordConfig(n_workers=1, **SMALL))
    assert said.seconds == pytest.approx(40 / said.rate)
    assert said.seconds > 40 * 0.01
    assert said.bytes_ram > 10**7


def test_free_space_is_that_of_the_disk_that_will_hold_it(tmp_path: Path) -> None:
    free = bytes_free(tmp_path / "not" / "there" / "yet")
    assert free is not None
    assert free > 0
    assert bytes_free("s3://bucket/store") is None


@given(st.integers(0, 200), st.integers(1, 50))
def test_parts_are_disjoint_and_cover_every_shard(n_shards: int, n: int) -> None:
    shards = [shard for i in range(1, n + 1) for shard in part(RecordConfig(part=f"{i}/{n}"), n_shards)]
    assert shards == list(range(n_shards))


def test_neighbouring_shards_are_one_span() -> None:
    meta = StoreMeta(model={}, dataset={}, rows=1, cols=1, patch_px=1, d_model=1, n_images=37, chunk_images=4, shard_images=8)
    assert spans(meta, [(0, []), (1, []), (3, []), (4, [])]) == [(0, 16), (24, 37)]
