"""`LiveSource`: what a recording would have given, with nothing on disk."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.common import batch_entropy

from saev_core.activations.sources.live import LiveSource
from saev_core.activations.sources.shuffle import WindowStream
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import EvaluateConfig, ReadConfig, RecordConfig, TrainConfig
from saev_core.errors import BadImageError, DatasetError, ModelError, StoreError, TrainError
from saev_core.evaluation.measure import measure
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.training.train import TrainSpec, train

SCRIPT = Path(__file__).parents[1] / "recorder.py"
spec = importlib.util.spec_from_file_location("recorder", SCRIPT)
assert spec is not None
assert spec.loader is not None
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
Pictures, Stream, Toy, run = recorder.Pictures, recorder.Stream, recorder.Toy, recorder.run

N, P, D = 40, 15, 16
BAD = (7, 20)
RECORD = RecordConfig(layers=(-2,), shard_images=8, chunk_images=4, batch_size=5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def live(read: ReadConfig | None = None, dataset: Any = None, model: Any = None, **config: Any) -> LiveSource:
    return LiveSource(
        model or Toy(),
        dataset or Pictures(N, bad=BAD),
        RECORD.model_copy(update=config),
        read or ReadConfig(),
        model_ref=recorder.MODEL_REF,
        dataset_ref=recorder.DATASET_REF,
    )


def tight(source: Any, images: int) -> Any:
    """The source with a buffer of only so many images, far less than a megabyte."""
    feed = source.feed
    source.buffer_bytes = images * feed.n_tokens * feed.d_model * feed.dtype.itemsize
    return source


def take(stream: WindowStream, n: int) -> list[torch.Tensor]:
    return [next(stream).clone() for _ in range(n)]


def one_pass(source: Any, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Every vector of the first pass, and its image."""
    stream = source.batches(source.feed.n_tokens, seed)
    n = len(source._training.nonzero()[-1]) - (sum(not source.heldout[i] for i in BAD) if isinstance(source, LiveSource) else 0)
    found = [(next(stream).clone(), stream.image.copy()) for _ in range(n)]
    stream.close()
    return torch.cat([x for x, _ in found]), np.concatenate([image for _, image in found])


def same_vectors(a: torch.Tensor, b: torch.Tensor) -> None:
    """Each of `a` is one of `b`, in whatever order, but for the last bits: another batch of images may round otherwise."""
    near = torch.cdist(a.double(), b.double(), p=float("inf")).min(1)
    assert float(near.values.max()) < 2e-3
    assert sorted(near.indices.tolist()) == list(range(len(b)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    done = run(tmp_path_factory.mktemp("live") / "s", Toy(), Pictures(N, bad=BAD), layers=(-2, -1))
    return done.store  # type: ignore[no-any-return]


@pytest.mark.parametrize("tokens", ["patches", "cls", "mean"])
@pytest.mark.parametrize("layer", [-2, "all", "mean", (-1, 2)])
@pytest.mark.parametrize("images", [1000, 10])
def test_a_pass_gives_the_vectors_that_a_store_gives(store: ActivationStore, tokens: str, layer: Any, images: int) -> None:
    read = ReadConfig.model_validate({"layer": layer, "tokens": tokens, "heldout": 0.2, "clamp": 1.5})
    source = tight(live(read, layers=(-2, -1)), images)
    x, image = one_pass(source)
    wanted = StoreSource(store, read)
    everything = wanted.sample(10**6, 0)
    same_vectors(x, everything)
    training = [i for i in range(N) if i not in BAD and not source.heldout[i]]
    assert Counter(image.tolist()) == dict.fromkeys(training, source.feed.n_tokens)
    assert np.array_equal(source.heldout, wanted.heldout)
    assert (source.site, source.d_model) == (wanted.site, wanted.d_model)
    assert source.describe().keys() > {"store", "site", "sites", "read", "n_vectors", "n_images"}


@pytest.mark.parametrize("images", [1000, 12, 1])
@pytest.mark.parametrize("after", [0, 1, 7, 60])
def test_resumes_with_the_very_next_batch(images: int, after: int) -> None:
    stream = tight(live(), images).batches(19, seed=0)
    take(stream, after)
    state = json.loads(json.dumps(stream.state()))
    wanted = take(stream, 45)
    stream.close()
    stream.close()
    again = tight(live(), images).batches(19, seed=0, state=state)
    assert all(torch.equal(a, b) for a, b in zip(wanted, take(again, 45), strict=True))
    again.close()


def test_order_and_bits_follow_the_seed_and_not_the_loading_threads() -> None:
    def batches(seed: int, n_workers: int) -> torch.Tensor:
        stream = tight(live(n_workers=n_workers), 12).batches(16, seed)
        x = torch.stack(take(stream, 60))
        stream.close()
        return x

    one = batches(0, 1)
    assert torch.equal(one, batches(0, 0))
    assert torch.equal(one, batches(0, 4))
    assert not torch.equal(one, batches(1, 1))


def test_state_of_another_source_is_refused() -> None:
    stream = live().batches(8, 0)
    state = stream.state()
    stream.close()
    for source, seed in ((live(ReadConfig(heldout=0.3)), 0), (live(batch_size=6), 0), (live(ReadConfig(layer=1)), 0), (live(), 1)):
        with pytest.raises(StoreError, match="toy on pictures: cannot resume from the training state"):
            source.batches(8, seed, state)


def test_each_image_is_run_once_where_all_fit_into_the_buffer() -> None:
    pictures = Pictures(N)
    source = live(dataset=pictures)
    stream = source.batches(source.n_vectors // 2, 0)
    take(stream, 6)
    stream.close()
    assert sorted(pictures.read) == np.flatnonzero(~source.heldout).tolist()


def test_unreadable_images_are_left_out_and_listed(caplog: pytest.LogCaptureFixture) -> None:
    source = tight(live(ReadConfig(heldout=0)), 12)
    _, image = one_pass(source)
    assert not set(BAD) & set(image.tolist())
    assert source.missing == [(i, f"pictures/{i:03}.png", "it was made so") for i in BAD]
    with pytest.raises(BadImageError, match="made so"):
        live(ReadConfig(heldout=0), on_bad_image="stop").batches(8, 0)
    with pytest.raises(DatasetError, match=r"none of 36 images can be read.*check that the data set still exists"):
        live(dataset=Pictures(N, bad=tuple(range(N)))).batches(8, 0)


def test_a_forward_pass_that_fails_reaches_the_trainer_from_the_window_ahead() -> None:
    stream = tight(live(ReadConfig(heldout=0), on_bad_image="stop"), 12).batches(8, 3)
    with pytest.raises(BadImageError, match="made so"):
        take(stream, 200)
    stream.close()


def test_labels_choose_images() -> None:
    source = live(ReadConfig(labels=(1, 2), heldout=0))
    _, image = one_pass(source)
    assert set(image.tolist()) == {i for i in range(N) if i % 7 in (1, 2) and i not in BAD}
    index = np.concatenate([batch.image for batch in source.in_order(np.arange(N), 4)])
    assert set(index.tolist()) == set(image.tolist())
    with pytest.raises(StoreError, match=r"no image has a label of read\.labels=\[9\]"):
        live(ReadConfig(labels=(9,)))


def test_in_order_gives_what_is_asked_in_that_order(store: ActivationStore) -> None:
    for read in (ReadConfig(), ReadConfig(layer="all"), ReadConfig(tokens="mean", layer="mean"), ReadConfig(layer=(2, 3))):
        images = np.array([3, 39, 7, 0, 1, 2, 20, 21, 22, 8])
        got = list(live(read, layers=(-2, -1)).in_order(images, 3))
        n_sites = 2 if read.layer == "all" else 1
        assert [i for index, _, _ in got[::n_sites] for i in index] == [3, 39, 0, 1, 2, 21, 22, 8]
        assert all(len(index) == len(x) <= 3 for index, x, _ in got)
        wanted = list(StoreSource(store, read).in_order(images, 10))
        for site in range(n_sites):
            x = torch.cat([x for _, x, _ in got[site::n_sites]])
            np.testing.assert_allclose(x, wanted[site][1], atol=2e-3)


def test_every_batch_knows_what_the_model_saw_also_when_later_ones_came(store: ActivationStore) -> None:
    images = np.array([3, 39, 0, 1, 2, 21, 22, 8, 5, 11])
    for read in (ReadConfig(), ReadConfig(layer="all")):
        for vectors in (live(read, layers=(-2, -1)), StoredVectors(store, read)):
            batches = list(vectors.in_order(images, 3))
            crops = {int(i): batch.crop(int(i)) for batch in batches for i in batch.image}
            assert crops.keys() == set(images.tolist())
            for i, crop in crops.items():
                np.testing.assert_allclose(crop, store.crop(i), rtol=1e-6)


def test_in_order_may_be_read_while_a_window_fills() -> None:
    source = tight(live(), 8)
    alone = torch.cat([x for _, x, _ in source.in_order(np.arange(10), 5)])
    stream = source.batches(8, 0)
    before = take(tight(live(), 8).batches(8, 0), 60)
    for batch in before:
        assert torch.equal(next(stream), batch)
        assert torch.equal(torch.cat([x for _, x, _ in source.in_order(np.arange(10), 5)]), alone)
    stream.close()


def test_closing_does_not_wait_for_the_window() -> None:
    stream = tight(live(dataset=Pictures(4000, pause=0.01)), 100).batches(8, 0)
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("saev-live", "saev-load", "saev-ahead"))]


def test_numbers_are_rounded_as_a_store_would_and_what_does_not_fit_is_refused() -> None:
    x, _ = one_pass(live(ReadConfig(heldout=0)))
    assert torch.equal(x, x.half().float())
    full, _ = one_pass(live(ReadConfig(heldout=0), dtype="float32"))
    assert not torch.equal(full, full.half().float())
    assert torch.equal(x, full.half().float())
    with pytest.raises(StoreError, match=r"image \d+: an activation of .* does not fit float16"):
        live(model=Toy(gain=1e5)).batches(8, 0)
    with pytest.raises(StoreError, match="the model produced NaN"):
        live(model=Toy(gain=float("nan")), dtype="float32").batches(8, 0)


def test_norm_comes_from_training_images_in_float64() -> None:
    source = live(ReadConfig(clamp=1.0))
    x, _ = one_pass(source)
    normed = source.norm(x)
    assert float(normed.mean(0).abs().max()) < 1e-5
    assert float(normed.square().sum(1).mean()) == pytest.approx(D, rel=1e-5)
    assert source.describe()["n_norm"] == source.n_vectors
    sample = source.sample(50, 3)
    assert sample.shape == (50, D)
    assert float(sample.abs().max()) == 1
    assert torch.equal(sample, live(ReadConfig(clamp=1.0)).sample(50, 3))
    assert not torch.equal(sample, source.sample(50, 4))


def test_what_cannot_be_run_is_one_line() -> None:
    with pytest.raises(DatasetError, match=r"supports only sequential reading.*record it first"):
        live(dataset=Stream(N))
    with pytest.raises(StoreError, match=r"no CLS token; set read\.tokens to patches or mean"):
        live(ReadConfig(tokens="cls"), model=Toy(n_prefix=0))
    with pytest.raises(ModelError, match="layer 9"):
        live(ReadConfig(layer=9))
    with pytest.raises(StoreError, match=r"fewer than one batch of 4096; use more images or lower train\.batch_size"):
        live().batches(4096, 0)


def test_memory_stays_within_the_buffer() -> None:
    stream = tight(live(), 12).batches(8, 0)
    assert sum(buffer.nbytes for buffer in stream._buffers) <= 12 * P * D * 2
    stream.close()


@pytest.mark.parametrize("images", [64, 128, 1000])
def test_batches_mix_images_as_well_as_a_stores(tmp_path: Path, images: int) -> None:
    # Smaller windows mix a little worse in a store, whose chunks hold the rows of held-out images too.
    pictures = Pictures(160)
    done = run(tmp_path / "s", dataset=pictures)
    found = []
    for source in (StoreSource(done.store, ReadConfig()), live(dataset=pictures)):
        stream = tight(source, images).batches(64, 0)
        found.append(np.mean([batch_entropy(stream.image, 144) for _ in zip(range(300), stream, strict=False)]))
        stream.close()
    assert found[0] == pytest.approx(found[1], abs=0.01)


CFG = TrainConfig(batch_size=32, n_tokens=32 * 40, checkpoint_every=5, log_every=10, lr=1e-3)


def trained(source: Any, **kwargs: Any) -> Checkpoint:
    return train(source, [TrainSpec("topk", TopK(TopKConfig(d_in=D, d_sae=32, k=4)))], kwargs.pop("cfg", CFG), **kwargs)[0]


def test_an_sae_trained_live_fits_the_store_that_is_recorded_later(tmp_path: Path) -> None:
    checkpoint = trained(live(), out=tmp_path)
    store = run(tmp_path / "store", dataset=Pictures(N, bad=BAD), model=Toy()).store
    checkpoint.check(store)
    assert Checkpoint.load(tmp_path / "topk").store["fingerprint"] == store.meta.fingerprint
    assert checkpoint.train["source"] == {"kind": "live", "n_vectors": 540, "n_images": 36, "n_norm": 540}
    mine = measure(checkpoint, live(), EvaluateConfig()).card
    stored = measure(checkpoint, StoredVectors(store, checkpoint.read), EvaluateConfig()).card
    assert mine["n_vectors"] == stored["n_vectors"] == 3 * P  # one of the four is unreadable
    assert mine["nmse"] == pytest.approx(stored["nmse"], rel=1e-3)
    other = run(tmp_path / "other", model=Toy(d_model=8)).store
    with pytest.raises(Exception, match="takes activations of width 16"):
        checkpoint.check(other)


def test_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = trained(tight(live(), 12))

    class Stop(Exception):
        pass

    def stopping(hook: str, *, step: int, **rest: Any) -> None:
        if hook == "checkpointed" and step == 25:
            raise Stop

    with pytest.raises(Stop):
        trained(tight(live(), 12), out=tmp_path, emit=stopping)
    with pytest.raises(TrainError, match=r"a different configuration: source\.forward_images was 5, now 6"):
        trained(tight(live(batch_size=6), 12), out=tmp_path)
    resumed = trained(tight(live(), 12), out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.sae.state_dict().values(), resumed.sae.state_dict().values(), strict=True))
