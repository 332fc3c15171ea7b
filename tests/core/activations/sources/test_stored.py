"""Shuffled and ordered reading: nothing lost, nothing held out, the same bits whatever the threads."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.common import batch_entropy
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.shuffle import WindowStream
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig
from saev_core.errors import StoreError
from saev_core.testing import store_of
from saev_core.types import Site

TEN, ELEVEN = Site(10), Site(11)
N, P, D = 45, 6, 8
MISSING = (7, 20)


def numbered(n: int = N, site: int = 0) -> torch.Tensor:
    """Tokens whose vectors say where they come from: (image, token - 1, site, ...); token 0 is CLS, at -1."""
    x = torch.zeros(n, P + 1, D)
    x[..., 0] = torch.arange(n)[:, None]
    x[..., 1] = torch.arange(-1, P)
    x[..., 2] = site
    x[..., 3:] = torch.randn(n, P + 1, D - 3, generator=torch.Generator().manual_seed(site))
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    tokens = {TEN: numbered(), ELEVEN: numbered(site=1)}
    url = tmp_path_factory.mktemp("store") / "s"
    return store_of(url, tokens, n_prefix=1, label=np.arange(N) % 3, missing=np.isin(np.arange(N), MISSING))


def tight(source: StoreSource, chunks: int) -> StoreSource:
    """The source with a buffer of only so many chunks, far less than a megabyte."""
    source.buffer_bytes = chunks * 4 * (1 if source.read.tokens == "cls" else P) * D * 2
    return source


def take(stream: WindowStream, n: int) -> list[torch.Tensor]:
    return [next(stream).clone() for _ in range(n)]


def keys(x: torch.Tensor) -> list[tuple[int, ...]]:
    """(image, token, site) of each vector."""
    return [tuple(row) for row in x[:, :3].round().int().tolist()]


@pytest.mark.parametrize("chunks", [1000, 6, 2, 1])
def test_each_pass_yields_every_training_vector_once(store: ActivationStore, chunks: int):
    source = StoreSource(store, ReadConfig(heldout=0.2))
    tight(source, chunks)
    training = [i for i in range(N) if i not in MISSING and not source.heldout[i]]
    assert source.n_vectors == len(training) * P
    expected = Counter((i, t, 0) for i in training for t in range(P))
    stream = source.batches(13, seed=3)
    seen = [key for _ in range(source.n_vectors) for key in keys(next(stream))]  # 13 passes, exactly
    stream.close()
    for epoch in range(13):
        assert Counter(seen[epoch * source.n_vectors : (epoch + 1) * source.n_vectors]) == expected
    assert seen[: source.n_vectors] != seen[source.n_vectors : 2 * source.n_vectors]


@pytest.mark.parametrize("chunks", [1000, 6])
def test_order_does_not_depend_on_threads_but_on_the_seed(store: ActivationStore, chunks: int):
    def run(n_threads: int, seed: int) -> torch.Tensor:
        source = StoreSource(store, ReadConfig(n_threads=n_threads))
        tight(source, chunks)
        stream = source.batches(16, seed)
        batches = take(stream, 60)
        stream.close()
        return torch.stack(batches)

    one = run(1, 0)
    assert torch.equal(one, run(4, 0))
    assert torch.equal(one, run(1, 0))
    assert not torch.equal(one, run(1, 1))


@pytest.mark.parametrize("chunks", [1000, 6])
@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_resumes_with_the_very_next_batch(store: ActivationStore, chunks: int, after: int):
    source = StoreSource(store, ReadConfig())
    tight(source, chunks)
    stream = source.batches(19, seed=0)
    take(stream, after)
    state = json.loads(json.dumps(stream.state()))
    wanted = take(stream, 40)
    stream.close()
    stream.close()
    again = source.batches(19, seed=0, state=state)
    assert all(torch.equal(a, b) for a, b in zip(wanted, take(again, 40), strict=True))
    again.close()


def test_state_of_another_reading_is_refused(store: ActivationStore):
    stream = StoreSource(store, ReadConfig()).batches(8, 0)
    state = stream.state()
    stream.close()
    for read, seed in ((ReadConfig(heldout=0.3), 0), (ReadConfig(labels=(1,)), 0), (ReadConfig(layer=11), 0), (ReadConfig(), 1)):
        with pytest.raises(StoreError, match="cannot resume from the training state"):
            StoreSource(store, read).batches(8, seed, state)
    StoreSource(store, ReadConfig(n_threads=3)).batches(8, 0, state).close()


def test_batch_tells_its_images(store: ActivationStore):
    source = StoreSource(store, ReadConfig())
    tight(source, 4)
    stream = source.batches(16, 0)
    for _ in range(40):
        assert next(stream)[:, 0].tolist() == stream.image.tolist()
    stream.close()


@pytest.mark.parametrize("tokens", ["patches", "cls", "mean"])
@pytest.mark.parametrize("layer", [-2, "all", "mean"])
def test_policies_give_the_vectors_they_name(store: ActivationStore, tokens: str, layer: Any):
    read = ReadConfig.model_validate({"layer": layer, "tokens": tokens, "heldout": 0.2})
    source = StoreSource(store, read)
    x = torch.stack([numbered().half(), numbered(site=1).half()]).float()  # [sites, n, tokens, d]
    x = {"patches": x[:, :, 1:], "cls": x[:, :, :1], "mean": x[:, :, 1:].mean(2, keepdim=True)}[tokens]
    x = {-2: x[:1], "all": x, "mean": x.mean(0, keepdim=True)}[layer]
    training = ~source.heldout & ~np.isin(np.arange(N), MISSING)
    expected = x[:, training].reshape(-1, D)
    assert source.n_vectors == len(expected)
    stream = source.batches(source.n_vectors, 0)
    got = next(stream).clone()
    stream.close()

    def arranged(vectors: torch.Tensor) -> np.ndarray:
        values = vectors.double().numpy()
        return values[np.lexsort(values.T)]

    np.testing.assert_allclose(arranged(got), arranged(expected), rtol=1e-6, atol=1e-6)
    centred = source.norm(got)
    if layer != "mean":  # streamed moments are over all images, held-out ones too
        centred = source.norm(x[:, ~np.isin(np.arange(N), MISSING)].reshape(-1, D))
    assert float(centred.mean(0).abs().max()) < 1e-5
    assert float(centred.square().sum(1).mean()) == pytest.approx(D, rel=1e-4)
    batches = list(StoredVectors(store, read).in_order(np.arange(N), 10))
    by_site = [torch.cat([b for k, (_, b, _) in enumerate(batches) if k % len(x) == s]) for s in range(len(x))]
    np.testing.assert_allclose(torch.stack(by_site), x[:, ~np.isin(np.arange(N), MISSING)], rtol=1e-6, atol=1e-6)


def test_label_filter_keeps_only_those_images(store: ActivationStore):
    source = StoreSource(store, ReadConfig(labels=(1, 2), heldout=0))
    stream = source.batches(source.n_vectors, 0)
    images = {key[0] for key in keys(next(stream))}
    stream.close()
    assert images == {i for i in range(N) if i % 3 in (1, 2) and i not in MISSING}
    index = np.concatenate([index for index, _, _ in source.in_order(np.arange(N), 8)])
    assert set(index.tolist()) == images
    with pytest.raises(StoreError, match=r"no image has a label of read\.labels=\[9\]"):
        StoreSource(store, ReadConfig(labels=(9,)))


def test_clamp_bounds_batches_samples_ordered_reading_and_the_norm(store: ActivationStore):
    source = StoreSource(store, ReadConfig(clamp=2.0))
    stream = source.batches(64, 0)
    assert float(next(stream).abs().max()) == 2
    stream.close()
    assert float(source.sample(100, 0).abs().max()) == 2
    assert float(next(source.in_order(np.arange(N), 4)).x.abs().max()) == 2
    whole = source.sample(10**6, 0)
    assert source.norm(whole).square().sum(1).mean() == pytest.approx(D, rel=1e-4)


def test_sample_is_of_distinct_training_vectors_and_follows_its_seed(store: ActivationStore):
    source = StoreSource(store, ReadConfig(heldout=0.3))
    sample = source.sample(50, 0)
    assert sample.shape == (50, D)
    assert len(set(keys(sample))) == 50
    assert not source.heldout[[key[0] for key in keys(sample)]].any()
    assert torch.equal(sample, source.sample(50, 0))
    assert not torch.equal(sample, source.sample(50, 1))
    everything = source.sample(10**6, 0)
    assert len(set(keys(everything))) == len(everything) == source.n_vectors


def test_source_shorter_than_a_batch_or_without_cls_is_one_line(store: ActivationStore, tmp_path: Path):
    with pytest.raises(StoreError, match=r"fewer than one batch of 4096; record more images or lower train\.batch_size"):
        StoreSource(store, ReadConfig()).batches(4096, 0)
    bare = store_of(tmp_path / "s", {TEN: numbered()})
    with pytest.raises(StoreError, match=r"no CLS token; set read\.tokens to patches or mean"):
        StoreSource(bare, ReadConfig(tokens="cls"))
    with pytest.raises(StoreError, match=r"not resid\.3"):
        StoreSource(store, ReadConfig(layer=3))
    with pytest.raises(StoreError, match="none of stream mlp"):
        StoreSource(store, ReadConfig(layer="all", stream="mlp"))


def test_store_without_a_readable_image_is_one_line(tmp_path: Path):
    with pytest.raises(StoreError, match="no training images left"):
        StoreSource(store_of(tmp_path / "s", {TEN: numbered(6)}, missing=np.ones(6, bool)), ReadConfig())


def test_unfinished_store_is_read_as_far_as_it_goes_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = store_of(tmp_path / "s", {TEN: numbered()}, n_prefix=1)
    part = ActivationStore.create(tmp_path / "part", whole.meta)
    part.add_site(TEN)
    with part.write_shard([TEN], 2) as writer:
        writer.append({TEN: numbered()[16:24]}, range(16, 24))
    with caplog.at_level(logging.WARNING):
        source = StoreSource(part, ReadConfig(heldout=0))
    assert "incomplete: 8 of 45 images" in caplog.text
    stream = source.batches(48, 0)
    assert {key[0] for key in keys(next(stream))} == set(range(16, 24))
    stream.close()


def damage(store: ActivationStore) -> Path:
    path = Path(store.url) / "resid.10/patches/c/3/0/0"
    data = bytearray(path.read_bytes())
    data[11] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("chunks", [1000, 2])
def test_damaged_chunk_stops_the_stream_and_names_its_file(tmp_path: Path, chunks: int):
    store = store_of(tmp_path / "s", {TEN: numbered()}, n_prefix=1)
    path = damage(store)
    source = StoreSource(store, ReadConfig(heldout=0))
    tight(source, chunks)
    with pytest.raises(StoreError, match="does not match the checksum") as error:
        take(source.batches(8, 0), 40)
    assert str(path) in str(error.value)
    with pytest.raises(StoreError, match="does not match the checksum"):
        list(source.in_order(np.arange(N), 8))


def test_memory_stays_within_the_buffer(store: ActivationStore):
    source = StoreSource(store, ReadConfig(heldout=0))
    tight(source, 6)
    stream = source.batches(8, 0)
    assert sum(buffer.nbytes for buffer in stream._buffers) <= 6 * 4 * P * D * 2
    stream.close()


def test_windows_are_of_equal_size(store: ActivationStore):
    from saev_core.activations.sources.shuffle import ReadOrder

    source = StoreSource(store, ReadConfig(heldout=0))
    tight(source, 8)  # 12 chunks, 4 a window
    order = ReadOrder.of(source.feed, source._training, 0, source.buffer_bytes)
    assert [len(order.units(0, window)) for window in range(order.n_windows)] == [4, 4, 4]
    assert sorted(np.concatenate([order.units(5, window) for window in range(3)])) == list(range(12))


@settings(max_examples=30, deadline=None)
@given(
    images=st.lists(st.integers(0, N - 1), max_size=30),
    batch=st.integers(1, 20),
    n_threads=st.integers(1, 3),
)
def test_in_order_yields_what_is_asked_in_that_order(store: ActivationStore, images: list[int], batch: int, n_threads: int):
    read = ReadConfig(n_threads=n_threads)
    got = list(StoredVectors(store, read).in_order(np.array(images, int), batch))
    index = [int(i) for numbers, _, _ in got for i in numbers]
    assert index == [i for i in images if i not in MISSING]
    assert all(len(numbers) == len(x) <= batch for numbers, x, _ in got)
    if got:
        assert torch.equal(torch.cat([x for _, x, _ in got]), numbered()[index, 1:].half().float())


def test_in_order_reads_each_chunk_once_and_can_be_left_early(store: ActivationStore, monkeypatch: pytest.MonkeyPatch):
    from saev_core.activations.store.shard_file import ShardReader

    read_chunks: list[int] = []
    real = ShardReader.read

    def counting(self: ShardReader, chunk: int, out: np.ndarray) -> None:
        read_chunks.append(chunk)
        real(self, chunk, out)

    monkeypatch.setattr(ShardReader, "read", counting)
    assert len(list(StoredVectors(store, ReadConfig()).in_order(np.arange(N), 3))) == 15
    assert sorted(read_chunks) == list(range(12))
    some: Iterator[Any] = StoredVectors(store, ReadConfig()).in_order(np.arange(N), 3)
    next(some)
    some.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", ["memory://"])
def test_store_read_through_zarr_gives_the_same_batches(store: ActivationStore, tmp_path: Path, scheme: str):
    tokens = {TEN: numbered(), ELEVEN: numbered(site=1)}
    missing = np.isin(np.arange(N), MISSING)
    remote = store_of(f"{scheme}{tmp_path}/s", tokens, n_prefix=1, label=np.arange(N) % 3, missing=missing)
    for tokens_read in ("patches", "cls"):
        read = ReadConfig.model_validate({"tokens": tokens_read, "layer": "all"})
        a, b = StoreSource(store, read).batches(16, 0), StoreSource(remote, read).batches(16, 0)
        assert all(torch.equal(x, y) for x, y in zip(take(a, 20), take(b, 20), strict=True))
        a.close()
        b.close()


def test_describe_is_json_and_holds_what_a_checkpoint_needs(store: ActivationStore):
    described = StoreSource(store, ReadConfig(layer="all")).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["site"] == "resid.all"
    assert described["sites"] == ["resid.10", "resid.11"]
    assert described["store"]["fingerprint"] == store.meta.fingerprint
    assert ReadConfig.model_validate(described["read"]).layer == "all"


@given(n=st.integers(1, 300), share=st.floats(0, 0.99), seed=st.integers(-5, 2**40))
def test_split_holds_out_the_share_and_leaves_both_sides_something(n: int, share: float, seed: int):
    held = heldout_mask(n, share, seed)
    assert (held == heldout_mask(n, share, seed)).all()
    if share == 0 or n == 1:
        assert not held.any()
    else:
        assert 1 <= held.sum() <= n - 1
        assert abs(held.sum() - share * n) <= 1


def test_split_is_pinned_and_nested():
    assert np.flatnonzero(heldout_mask(20, 0.2, 0)).tolist() == PINNED
    assert (heldout_mask(500, 0.1, 7) <= heldout_mask(500, 0.3, 7)).all()
    assert (heldout_mask(500, 0.1, 7) != heldout_mask(500, 0.1, 8)).any()


PINNED = [1, 8, 18, 19]


def test_batch_entropy_is_one_for_distinct_images_and_zero_for_one():
    assert batch_entropy(np.arange(64), 1000) == pytest.approx(1)
    assert batch_entropy(np.arange(64) % 4, 4) == pytest.approx(1)
    assert batch_entropy(np.zeros(64, int), 1000) == 0
    assert 0 < batch_entropy(np.arange(64) // 8, 1000) < 1


def test_larger_buffer_mixes_better(store: ActivationStore):
    def entropy(chunks: int) -> float:
        source = StoreSource(store, ReadConfig())
        tight(source, chunks)
        stream = source.batches(16, 0)
        values = []
        for _ in range(30):
            next(stream)
            values.append(batch_entropy(stream.image, N))
        stream.close()
        return float(np.mean(values))

    assert entropy(2) < entropy(6) < entropy(1000)
