"""Recording: what is in the store is what the model gave, whatever happened on the way."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import validate
from saev_core.config.stages import RecordConfig
from saev_core.data.dataset import ImageDataset
from saev_core.errors import BadImageError, ConfigError, DatasetError, ModelError, StoreError
from saev_core.models.crop import patch_labels
from saev_core.support.progress import Meter
from saev_core.types import Example, Site

SCRIPT = Path(__file__).parents[1] / "recorder.py"
spec = importlib.util.spec_from_file_location("recorder", SCRIPT)
assert spec is not None
assert spec.loader is not None
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
Pictures, Stream, Toy, run = recorder.Pictures, recorder.Stream, recorder.Toy, recorder.run


def tree(folder: Path) -> dict[str, str]:
    """Every file of a store and its digest."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def start(url: Path, **told: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps({"url": str(url), **told})], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def alone(model: Any, dataset: Any, site: Site, indices: list[int]) -> Tensor:
    """What the model gives at a site, batched as the recorder batches."""
    return model.record(torch.stack([model.transform(dataset[i].image) for i in indices]), [site])[site]


def test_what_is_recorded_is_what_the_model_gives(tmp_path: Path) -> None:
    model, pictures = Toy(), Pictures()
    done = run(tmp_path / "s", model, pictures, layers=(0, 3), dtype="float32")
    for site in (Site(0), Site(3)):
        for first, last in ((0, 5), (5, 8), (8, 13), (35, 37), (37, 40)):
            wanted = alone(model, pictures, site, list(range(first, last)))
            got = [torch.from_numpy(done.store.read(site, slice(first, last), part)) for part in ("prefix", "patches")]
            assert torch.allclose(torch.cat(got, 1), wanted, atol=1e-6)
    assert done.store.complete(Site(0))
    assert (done.n_images, done.n_new, done.missing) == (40, 40, [])
    assert done.store.verify() == []


def test_float16_is_the_rounded_float32(tmp_path: Path) -> None:
    half, full = (run(tmp_path / dtype, dtype=dtype).store.read(Site(2), slice(None)) for dtype in ("float16", "float32"))
    assert half.dtype == np.float16
    assert np.array_equal(half, full.astype(np.float16))


def test_a_model_without_prefix_tokens_has_patches_alone(tmp_path: Path) -> None:
    model, pictures = Toy(n_prefix=0), Pictures()
    store = run(tmp_path / "s", model, pictures, dtype="float32").store
    assert not (tmp_path / "s" / "resid.2" / "prefix").exists()
    assert np.allclose(store.read(Site(2), [7]), alone(model, pictures, Site(2), [5, 6, 7])[2:].numpy(), atol=1e-6)


def test_negative_and_positive_layers_give_the_same_bytes(tmp_path: Path) -> None:
    a = run(tmp_path / "a", layers=(-1, -2))
    b = run(tmp_path / "b", layers=(2, 3))
    assert a.sites == b.sites == [Site(2), Site(3)]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_order_and_repetition_of_layers_do_not_matter(tmp_path: Path) -> None:
    run(tmp_path / "a", layers=(1, 3))
    run(tmp_path / "b", layers=(3, -1, 1))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_label_size_crop_and_mask_are_recorded_beside(tmp_path: Path) -> None:
    model, pictures = Toy(), Pictures()
    store = run(tmp_path / "s", model, pictures).store
    mask = store.mask
    assert mask is not None
    for index in (0, 1, 2, 3, 17, 39):
        example = pictures[index]
        crop = model.crop(*example.image.size)
        assert store.labels[index] == example.label
        assert tuple(store.sizes[index]) == example.image.size
        assert np.allclose(store.crop(index), crop, rtol=1e-6)
        assert np.array_equal(mask[index], patch_labels(example.mask, crop, model.grid))


def test_a_data_set_without_labels_or_masks_records_neither(tmp_path: Path) -> None:
    class Plain(Pictures):  # type: ignore[misc,valid-type]
        mask_classes = None

        def __getitem__(self, index: int) -> Example:
            return Example(index, super().__getitem__(index).image)

    store = run(tmp_path / "s", dataset=Plain()).store
    assert store.mask is None
    assert (store.labels == -1).all()


def test_batch_size_and_threads_change_nothing_but_rounding(tmp_path: Path) -> None:
    reads = []
    for n, (batch, workers) in enumerate(((5, 2), (3, 0), (64, 1))):
        store = run(tmp_path / str(n), batch_size=batch, n_workers=workers, dtype="float32").store
        reads.append(store.read(Site(2), slice(None)))
    assert np.allclose(reads[0], reads[1], atol=1e-6)
    assert np.allclose(reads[0], reads[2], atol=1e-6)


def test_an_unreadable_image_is_missing_and_shifts_nothing(tmp_path: Path) -> None:
    clean = run(tmp_path / "clean").store
    done = run(tmp_path / "s", dataset=Pictures(bad=(0, 11, 12, 39)))
    assert done.missing == [(i, f"pictures/{i:03}.png", "it was made so") for i in (0, 11, 12, 39)]
    assert done.n_images == 40
    good = np.setdiff1d(np.arange(40), [0, 11, 12, 39])
    assert np.array_equal(done.store.done(Site(2)), np.where(np.isin(np.arange(40), good), 1, 2))
    assert np.array_equal(done.store.read(Site(2), good), clean.read(Site(2), good))
    assert not done.store.read(Site(2), [0, 11, 12, 39]).any()
    assert np.array_equal(done.store.labels[good], clean.labels[good])
    assert done.store.moments(Site(2))[0] == len(good) * 15


def test_missing_images_are_listed_again_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    run(tmp_path / "s", dataset=Pictures(bad=(11,)))
    again = run(tmp_path / "s", dataset=Pictures(bad=(11,)))
    assert again.n_new == 0
    assert [index for index, _, _ in again.missing] == [11]


def test_a_bad_image_stops_the_recording_where_it_should(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"^pictures/020\.png is not a readable image \(it was made so\)[^\n]*$"):
        run(tmp_path / "s", dataset=Pictures(bad=(20,)), on_bad_image="stop")
    store = ActivationStore.open(tmp_path / "s")
    assert store.shards_done(Site(2)).tolist() == [True, True, False, False, False]
    assert not list((tmp_path / "s").rglob("*.tmp"))
    assert run(tmp_path / "s", dataset=Pictures(bad=(20,))).missing[0][0] == 20


class Files(ImageDataset):
    """Picture files, opened lazily, with Pillow's own errors."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return Example(index, Image.open(self.paths[index]))

    def name(self, index: int) -> str:
        return str(self.paths[index])


def test_damaged_files_of_every_kind_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    Image.new("RGB", (500, 500)).save(folder / "3.jpg")  # a bomb, by the limit below
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "4.jpg").write_bytes(b"")
    (folder / "5.jpg").write_text("not a picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    done = run(tmp_path / "s", dataset=Files(folder))
    assert [index for index, _, _ in done.missing] == [1, 3, 4, 5]
    assert [Path(name).name for _, name, _ in done.missing] == ["1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert "truncated" in done.missing[0][2]
    assert "decompression bomb" in done.missing[1][2]


def test_a_data_set_that_went_away_is_an_error_and_not_a_store_of_missing_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none of images 0 to 39 can be read, starting with pictures/000\.png"):
        run(tmp_path / "s", dataset=Pictures(bad=tuple(range(40))), shard_images=64)
    with pytest.raises(DatasetError, match=r"none of images 16 to 31"):
        run(tmp_path / "t", dataset=Pictures(bad=tuple(range(16, 32))), shard_images=16)
    assert ActivationStore.open(tmp_path / "t").shards_done(Site(2)).tolist() == [True, False, False]


def test_a_last_shard_of_nothing_but_bad_images_is_just_missing(tmp_path: Path) -> None:
    assert len(run(tmp_path / "s", dataset=Pictures(33, bad=(32,)), shard_images=16).missing) == 1


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(undisturbed, layers=(1, 2))
    process = start(killed, pause=0.03, config={"layers": [1, 2], "n_workers": 1})
    while process.poll() is None and not list(killed.glob("resid.2/patches/c/1/0/0")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = ActivationStore.open(killed).shards_done(Site(2))
    assert 0 < done.sum() < len(done)
    pictures = Pictures()
    again = run(killed, dataset=pictures, layers=(1, 2))
    assert min(pictures.read) == 8 * int(done.sum())
    assert again.n_new == 40 - 8 * int(done.sum())
    assert tree(killed) == tree(undisturbed)


@pytest.mark.slow
def test_two_recorders_at_once_write_what_one_writes(tmp_path: Path) -> None:
    run(tmp_path / "one", layers=(1, 2))
    both = [start(tmp_path / "two", pause=0.02, config={"layers": [1, 2], "part": f"{i}/2", "n_workers": 1}) for i in (1, 2)]
    for process in both:
        finish(process)
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    config = {"layers": [0, 1, 2, 3], "dtype": "float32", "shard_images": 64, "chunk_images": 16, "batch_size": 16}
    running = [start(tmp_path / str(n), n=n, d_model=1024, config=config) for n in (128, 512)]
    peaks = [int(finish(process)) for process in running]
    written = 384 * 16 * 1024 * 4 * 4  # bytes that the second writes beyond the first: 101 MB
    assert peaks[1] - peaks[0] < written / 4  # a batch of tokens is 4 MB, and how many wait differs from run to run


def test_a_layer_added_later_leaves_what_is_there_untouched(tmp_path: Path) -> None:
    run(tmp_path / "both", layers=(1, 2))
    run(tmp_path / "s", layers=(1,))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "s").rglob("*") if path.is_file()}
    pictures = Pictures()
    run(tmp_path / "s", dataset=pictures, layers=(1, 2))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert tree(tmp_path / "s") == tree(tmp_path / "both")


def test_a_complete_store_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "s")
    before = tree(tmp_path / "s")
    pictures = Pictures()
    assert run(tmp_path / "s", dataset=pictures).n_new == 0
    assert pictures.read == []
    assert tree(tmp_path / "s") == before


def test_a_stream_gives_the_same_store(tmp_path: Path) -> None:
    run(tmp_path / "random", dataset=Pictures(bad=(9,)))
    stream = Stream(bad=(9,))
    run(tmp_path / "stream", dataset=stream)
    assert stream.opened == [(0, 40)]
    assert tree(tmp_path / "stream") == tree(tmp_path / "random")


def test_a_stream_resumes_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(BadImageError):
        run(tmp_path / "s", dataset=Stream(bad=(20,)), on_bad_image="stop")
    stream = Stream(bad=(20,))
    run(tmp_path / "s", dataset=stream)
    assert stream.opened == [(16, 40)]


class Interrupting(Meter):
    """Ctrl-C after a while."""

    def __init__(self, after: int) -> None:
        self.left = after

    def update(self, n: int = 1, **facts: float) -> None:
        self.left -= n
        if self.left <= 0:
            raise KeyboardInterrupt


def test_interrupted_it_leaves_no_thread_and_can_go_on(tmp_path: Path) -> None:
    run(tmp_path / "undisturbed")
    n_threads = torch.get_num_threads()
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s", track=lambda *_: Interrupting(20))
    assert threading.active_count() == before
    assert torch.get_num_threads() == n_threads
    assert not list((tmp_path / "s").rglob("*.tmp"))
    assert run(tmp_path / "s").n_new == 24
    assert tree(tmp_path / "s") == tree(tmp_path / "undisturbed")


def test_progress_adds_up(tmp_path: Path) -> None:
    class Counting(Meter):
        n = 0
        missing = 0.0

        def update(self, n: int = 1, **facts: float) -> None:
            self.n += n
            self.missing = facts["missing"]

    meter, began = Counting(), []
    run(tmp_path / "s", dataset=Pictures(bad=(3, 30)), track=lambda *job: began.append(job) or meter)
    assert began == [("record", 40, "images")]
    assert (meter.n, meter.missing) == (40, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_ref": {**recorder.MODEL_REF, "name": "other"}}, "model.name toy there, other here"),
        ({"dataset_ref": {**recorder.DATASET_REF, "name": "other"}}, "dataset.name pictures there, other here"),
        ({"dataset": Pictures(41)}, "n_images 40 there, 41 here"),
        ({"model": Toy(n_prefix=2)}, "n_prefix 1 there, 2 here"),
        ({"model": Toy(d_model=24)}, "d_model 16 there, 24 here"),
        ({"dtype": "float32"}, "dtype float16 there, float32 here"),
    ],
)
def test_a_store_of_something_else_is_refused_and_untouched(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    run(tmp_path / "s")
    before = tree(tmp_path / "s")
    with pytest.raises(StoreError) as error:
        run(tmp_path / "s", **change)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(tmp_path / "s") == before


def test_sites_of_different_shapes_are_refused_with_advice(tmp_path: Path) -> None:
    model = Toy()
    model.blocks[3].mlp = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    model.blocks[3].mlp[0].out_features, model.blocks[2].mlp = 32, nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(ModelError, match=r"mlp\.0\.2 16 tokens of width 16; mlp\.0\.3 16 tokens of width 32.*each in a separate store"):
        run(tmp_path / "s", model, layers=(2, 3), stream="mlp.0")
    assert not (tmp_path / "s").exists()


def test_a_stream_of_another_width_has_a_store_of_its_own(tmp_path: Path) -> None:
    model = Toy()
    for block in model.blocks:
        block.mlp = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    store = run(tmp_path / "s", model, layers=(1, 3), stream="mlp.0").store
    assert store.meta.d_model == 32
    assert store.sites == [Site(1, "mlp.0"), Site(3, "mlp.0")]


def test_a_grid_that_does_not_fit_the_tokens_is_refused(tmp_path: Path) -> None:
    model = Toy()
    model.grid = type(model.grid)(3, 5, 4, n_prefix=3)
    with pytest.raises(ModelError, match=r"gives 16 tokens.*the model's grid has 18"):
        run(tmp_path / "s", model)


def test_no_layer_and_no_such_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layers"):
        validate(RecordConfig, {"layers": []})
    with pytest.raises(ModelError, match="blocks 0 to 3"):
        run(tmp_path / "s", layers=(4,))
    assert not (tmp_path / "s").exists()


class Spoilt(Toy):  # type: ignore[misc,valid-type]
    """A toy whose second image of every batch gives `value`."""

    value = float("nan")

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone()
        if len(images) > 1:
            images[1] = self.value
        return super().forward(images)


def test_values_beyond_float16_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"resid\.2, image 0: an activation of [\d.e+-]+ does not fit float16.*--dtype float32"):
        run(tmp_path / "s", Toy(gain=1e5))
    assert not ActivationStore.open(tmp_path / "s").shards_done(Site(2)).any()
    assert run(tmp_path / "full", Toy(gain=1e5), dtype="float32").store.complete(Site(2))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_model_that_gives_nan_is_refused_and_the_image_named(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(StoreError, match=r"resid\.2, image 1: the model produced NaN or infinity"):
        run(tmp_path / "s", Spoilt(), dtype=dtype)
    assert not list((tmp_path / "s").rglob("*.tmp"))


def test_a_model_in_bfloat16_can_be_recorded(tmp_path: Path) -> None:
    model = Toy().to(torch.bfloat16)
    store = run(tmp_path / "s", model).store
    assert store.meta.dtype == "float16"
    assert np.isfinite(store.read(Site(2), slice(None))).all()


def test_images_that_the_transform_leaves_in_different_sizes_are_refused(tmp_path: Path) -> None:
    class Loose(Toy):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            strict = self.transform
            self.transform = lambda image: strict(image) if image.size != (33, 57) else strict(image)[:, :, :-4]

    with pytest.raises(ModelError, match=r"\(3, 12, 16\) for image 1 and \(3, 12, 20\) for another"):
        run(tmp_path / "s", Loose())


@pytest.mark.parametrize("folder", ["a-file/store", "/proc/store"])
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(StoreError, match=r"^[^\n]*(cannot create a store|is not an activation store)[^\n]*$"):
        run(tmp_path / folder)


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Vast(Pictures):  # type: ignore[misc,valid-type]
        def __len__(self) -> int:
            return 10**13

    with pytest.raises(StoreError, match=r"the recording needs [\d.,e+]+ GB and the disk has"):
        run(tmp_path / "s", dataset=Vast(), shard_images=2**36, chunk_images=2**36)
    assert list(tmp_path.iterdir()) == []


def test_the_first_so_many_images(tmp_path: Path) -> None:
    pictures = Pictures()
    assert run(tmp_path / "s", dataset=pictures, n_images=11).store.n_images == 11
    assert set(pictures.read) == set(range(11))
    assert run(tmp_path / "t", n_images=1000).store.n_images == 40


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/0", "half"])
def test_a_part_that_is_none_is_refused(part: str) -> None:
    with pytest.raises(ConfigError, match=r"part|pattern"):
        validate(RecordConfig, {"part": part})


def test_more_parts_than_shards_still_cover_everything(tmp_path: Path) -> None:
    for i in range(1, 8):
        done = run(tmp_path / "s", part=f"{i}/7")
    assert done.store.complete(Site(2))


def test_where_the_data_lie_is_not_in_the_store(tmp_path: Path) -> None:
    run(tmp_path / "here")
    run(tmp_path / "there" / "deep")
    assert tree(tmp_path / "here") == tree(tmp_path / "there" / "deep")
    assert str(tmp_path) not in (tmp_path / "here" / "zarr.json").read_text()


def test_versions_of_what_recorded_are_written_down(tmp_path: Path) -> None:
    meta = run(tmp_path / "s").store.meta
    assert set(meta.versions) == {"saev-core", "torch"}
    assert meta.model["n_blocks"] == 4
    assert meta.dataset["identity"] == Pictures().identity()
    assert "ResizeCrop(resize=20" in meta.transform
