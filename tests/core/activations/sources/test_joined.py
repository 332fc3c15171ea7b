"""Vectors joined from several sites: the same token at each, one scale a site, the same bits whatever the threads."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.common import batch_entropy

from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.cli.options import Flags
from saev_core.config.base import PluginRef, validate
from saev_core.config.stages import EvaluateConfig, ReadConfig, TrainConfig
from saev_core.errors import ConfigError, StoreError, TrainError
from saev_core.evaluation.measure import Tally, measure
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.config import SAEConfig
from saev_core.sae.norm import Norm
from saev_core.testing import ArraySource, store_of
from saev_core.training.train import TrainSpec, train
from saev_core.types import Site

SIX, TEN = Site(6), Site(10)
N, P, D = 45, 6, 8
MISSING = (7, 20)


def numbered(site: int, n: int = N) -> torch.Tensor:
    """Tokens whose vectors begin with (image, token - 1, block); token 0 is CLS, at -1; those of a later block are longer."""
    x = torch.zeros(n, P + 1, D)
    x[..., 0] = torch.arange(n)[:, None]
    x[..., 1] = torch.arange(-1, P)
    x[..., 2] = site
    x[..., 3:] = site * torch.randn(n, P + 1, D - 3, generator=torch.Generator().manual_seed(site))
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    tokens = {SIX: numbered(6), TEN: numbered(10)}
    url = tmp_path_factory.mktemp("store") / "s"
    return store_of(url, tokens, n_prefix=1, label=np.arange(N) % 3, missing=np.isin(np.arange(N), MISSING))


def joined(tokens: str = "patches") -> torch.Tensor:
    """What joined reading gives: [n, tokens, 2 d]."""
    each = [numbered(site).half().float() for site in (6, 10)]
    x = torch.cat(each, 2)
    return {"patches": x[:, 1:], "cls": x[:, :1], "mean": x[:, 1:].mean(1, keepdim=True)}[tokens]


@pytest.mark.parametrize("tokens", ["patches", "cls", "mean"])
@pytest.mark.parametrize("layer", [(6, 10), (-2, 6)])
def test_a_vector_is_the_same_token_at_every_block_in_their_order(store: ActivationStore, tokens: str, layer: Any) -> None:
    read = ReadConfig.model_validate({"layer": layer, "tokens": tokens, "heldout": 0.2})
    source = StoreSource(store, read)
    assert (source.site, source.d_model, source.n_sites) == ("resid.6+10", 2 * D, 2)
    x = joined(tokens)
    training = ~source.heldout & ~np.isin(np.arange(N), MISSING)
    assert source.n_vectors == training.sum() * x.shape[1]
    stream = source.batches(source.n_vectors, 0)
    got = next(stream).clone()
    images = stream.image.copy()
    stream.close()
    assert got.dtype == torch.float32
    assert got[:, 0].tolist() == images.tolist()
    torch.testing.assert_close(got[:, :2], got[:, D : D + 2])
    lookup = {(int(v[0]), round(float(v[1]), 3)): v for v in x.reshape(-1, 2 * D)}
    for v in got:
        torch.testing.assert_close(v, lookup[int(v[0]), round(float(v[1]), 3)])
    batches = list(StoredVectors(store, read).in_order(np.arange(N), 10))
    torch.testing.assert_close(torch.cat([batch.x for batch in batches]), x[~np.isin(np.arange(N), MISSING)])
    sample = source.sample(30, 1)
    torch.testing.assert_close(sample[:, :2], sample[:, D : D + 2])


def test_each_block_has_mean_zero_and_mean_squared_length_d(store: ActivationStore) -> None:
    whole = joined()[~np.isin(np.arange(N), MISSING)].reshape(-1, 2 * D)
    for read in (ReadConfig(layer=(6, 10), heldout=0), ReadConfig(layer=(6, 10), heldout=0, clamp=1e4)):
        norm = StoreSource(store, read).norm
        assert isinstance(norm.scale, tuple)
        assert len(norm.scale) == 2
        assert norm.scale[0] > norm.scale[1]
        x = norm(whole)
        assert float(x.mean(0).abs().max()) < 1e-4
        for block in x.chunk(2, dim=1):
            assert float(block.square().sum(1).mean()) == pytest.approx(D, rel=1e-3)
        torch.testing.assert_close(norm.inverse(x), whole, rtol=1e-4, atol=1e-3)
        late = norm.inverse(x[:, D:], lambda each: each[..., D:])
        torch.testing.assert_close(late, whole[:, D:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("chunks", [1000, 6, 1])
def test_order_depends_on_the_seed_alone_and_goes_on_where_it_stopped(store: ActivationStore, chunks: int) -> None:
    def of(n_threads: int) -> StoreSource:
        source = StoreSource(store, ReadConfig(layer=(6, 10), heldout=0, n_threads=n_threads))
        source.buffer_bytes = chunks * 4 * P * 2 * D * 2
        return source

    first = of(1).batches(16, 3)
    wanted = [next(first).clone() for _ in range(40)]
    second = of(3).batches(16, 3)
    for batch in wanted[:21]:
        assert torch.equal(next(second), batch)
    state = json.loads(json.dumps(second.state()))
    second.close()
    resumed = of(2).batches(16, 3, state)
    for batch in wanted[21:]:
        assert torch.equal(next(resumed), batch)
    other = of(2).batches(16, 4)
    assert not torch.equal(next(other), wanted[0])
    for stream in (first, resumed, other):
        stream.close()
    n = 43 * P  # of one pass: each vector once
    everything = torch.cat(wanted)[:n]
    assert max(Counter(map(tuple, everything[:, :2].tolist())).values()) == 1


def test_the_buffer_counts_all_blocks_and_mixes_like_a_single_sites(store: ActivationStore) -> None:
    source = StoreSource(store, ReadConfig(layer=(6, 10), heldout=0))
    source.buffer_bytes = 6 * 4 * P * 2 * D * 2
    stream = source.batches(8, 0)
    assert sum(buffer.nbytes for buffer in stream._buffers) <= source.buffer_bytes
    assert np.mean([batch_entropy(stream.image, 43) for _ in itertools.islice(stream, 60)]) > 0.8
    stream.close()


def test_only_images_that_every_site_has_are_read(store: ActivationStore, tmp_path: Path) -> None:
    part = ActivationStore.create(tmp_path / "part", store.meta)
    for site, shards in ((SIX, (0, 1, 2)), (TEN, (1, 2, 3))):
        part.add_site(site)
        for shard in shards:
            at = slice(8 * shard, 8 * shard + 8)
            with part.write_shard([site], shard) as writer:
                writer.append({site: numbered(site.layer)[at]}, range(at.start, at.stop))
    source = StoreSource(part, ReadConfig(layer=(6, 10), heldout=0))
    assert source.n_vectors == 16 * P
    seen = torch.cat([batch.x for batch in source.in_order(np.arange(N), 5)])
    assert seen[:, 0, 0].tolist() == list(range(8, 24))
    # The sites' streamed moments are over more than that, so that the norm comes from a sample.
    x = source.norm(seen.reshape(-1, 2 * D))
    assert float(x.mean(0).abs().max()) < 1e-4


def test_a_block_that_is_not_recorded_and_one_named_twice_are_one_line(store: ActivationStore) -> None:
    with pytest.raises(StoreError, match=r"holds resid.6, resid.10, not resid.8; .*saev record --record-layers 8"):
        StoreSource(store, ReadConfig(layer=(6, 8)))
    with pytest.raises(ConfigError, match=r"lists a block twice \(resid.10, resid.10\)"):
        StoreSource(store, ReadConfig(layer=(10, -2)))


@pytest.mark.parametrize("text", ["6,10", "6, 10", "-6,-2"])
def test_blocks_are_typed_with_a_comma(text: str) -> None:
    wanted = tuple(int(part) for part in text.split(","))
    assert Flags({"--layer": text}).config().read.layer == wanted
    assert Flags({"--set": [f"read.layer={text}"]}).config().read.layer == wanted
    assert Flags({"--set": [f"read.layer=[{text}]"]}).config().read.layer == wanted
    assert Flags({"--record-layers": [6, 10], "--layer": text}).config().read.layer == wanted
    assert Flags({"--layer": "all"}).config().read.layer == "all"
    assert Flags({"--layer": "-2"}).config().read.layer == -2
    again = ReadConfig.model_validate(json.loads(json.dumps(ReadConfig(layer=wanted).model_dump(mode="json"))))
    assert again.layer == wanted
    assert again.n_sites == 2
    with pytest.raises(ConfigError, match=r"read\.layer"):
        validate(ReadConfig, {"layer": "6;10"}, where="read")


def test_any_sae_trains_on_joined_vectors_and_its_error_is_told_by_site(store: ActivationStore, tmp_path: Path) -> None:
    source = StoreSource(store, ReadConfig(layer=(6, 10), heldout=0.2))
    sae = make_sae("topk:4", source.d_model, n_sites=source.n_sites)
    assert sae.d_sae == 16 * D, "features per dimension of one site"
    cfg = TrainConfig(batch_size=32, n_tokens=32 * 40)
    (trained,) = train(source, [TrainSpec("mine", sae)], cfg, out=tmp_path)
    loaded = Checkpoint.load(tmp_path / "mine")
    assert loaded.site == "resid.6+10"
    assert loaded.norm.scale == source.norm.scale
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.read.layer == (6, 10)
    loaded.check(store)
    card = measure(loaded, StoredVectors(store, loaded.read), EvaluateConfig()).card
    assert len(card["nmse_by_site"]) == 2
    assert min(card["nmse_by_site"]) <= card["nmse"] <= max(card["nmse_by_site"])
    single = store_of(tmp_path / "single", {SIX: numbered(6)}, n_prefix=1, label=np.arange(N) % 3, missing=np.isin(np.arange(N), MISSING))
    with pytest.raises(StoreError, match=r"holds resid.6, not resid.10"):
        measure(loaded, StoredVectors(single, loaded.read), EvaluateConfig())


def test_errors_by_site_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    sae = make_sae("topk:3", 12, n_sites=3)
    x = torch.randn(100, 12, generator=generator)
    tally = Tally.of(sae)
    for part in torch.split(x, 33):
        tally.answer(sae, part)
    card = tally.result(EvaluateConfig()).card
    x_hat = sae(x).detach()
    for s, found in enumerate(card["nmse_by_site"]):
        a, b = (v[:, 4 * s : 4 * s + 4].double() for v in (x, x_hat))
        assert found == pytest.approx(float((a - b).square().sum() / (a - a.mean(0)).square().sum()))


def test_a_number_of_sites_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"sae.n_sites is 5, but the activations have width 12"):
        SAEConfig(n_sites=5).sized(12)
    with pytest.raises(ConfigError, match=r"sae.n_sites is 3, but read.layer joins 2"):
        make_sae(PluginRef(name="topk", options={"n_sites": 3}), 12, n_sites=2)
    sae = make_sae("topk:3", 12, n_sites=3)
    with pytest.raises(TrainError, match="takes 3 joined sites, the source has 2"):
        train(ArraySource(torch.randn(300, 12), n_sites=2), [TrainSpec("mine", sae)], TrainConfig(batch_size=64, n_tokens=640))


def test_joining_norms_of_one_site_is_that_site() -> None:
    x = torch.randn(50, 6) * 3
    assert Norm.of(x).scale == Norm.join([Norm.of(x)]).scale
    assert isinstance(Norm.of(x).scale, float)
    assert len(Norm.of(x, 3).factor) == 6  # type: ignore[arg-type]
