"""`batchtopk`: against float64, against its contract, and its inference threshold."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from saev_core.config.stages import TrainConfig
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.step import Progress
from saev_core.testing.sae_contract import ArraySource, SAEContract, planted
from saev_core.training.train import TrainSpec, train
from saev_saes.batchtopk import BatchTopK, BatchTopKConfig
from saev_saes.thresholds import encode_batch_top_k, largest


class TestBatchTopK(SAEContract):
    sae = BatchTopK
    options: ClassVar[dict[str, Any]] = {"d_sae": 56, "k": 5}
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128, "k": 4}


def small(d_sae: int = 56, seed: int = 0, **options: object) -> BatchTopK:
    cfg = BatchTopKConfig.model_validate({"d_in": 24, "d_sae": d_sae, "k": 5, **options})
    return BatchTopK(cfg, torch.Generator().manual_seed(seed))


def vectors(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(seed))


def test_loss_and_gradient_are_those_of_the_paper_in_float64() -> None:
    sae, x = small(auxk=0).double(), vectors(100).double()
    step = sae.backward(x, Progress(10, 100))
    W_enc, b_enc, W_dec, b_dec = (p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    f = torch.relu(x @ W_enc + b_enc)
    cut = f.detach().flatten().sort(descending=True).values[5 * 100 - 1]
    f = torch.where(f >= cut, f, 0)
    assert int((f > 0).sum()) == 500
    loss = (x - f @ W_dec - b_dec).square().sum() / 100
    loss.backward()
    torch.testing.assert_close(step.loss, loss.detach())
    for name, theirs in {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}.items():
        torch.testing.assert_close(getattr(sae, name).grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("d_sae", [64, 56, 57])
@pytest.mark.parametrize("guess", [0.0, 1e-9, 0.5, 3.0, 1e9])
def test_the_selection_is_exact_whatever_the_filter(d_sae: int, guess: float) -> None:
    sae, x = small(d_sae), vectors(2300)  # three chunks
    codes = encode_batch_top_k(sae, x, 5, guess)
    dense = sae.encode(x)
    assert len(codes.feature) == 5 * 2300
    torch.testing.assert_close(codes.dense(), dense, rtol=1e-5, atol=1e-6)
    assert torch.equal(encode_batch_top_k(sae, x, 5, 0.7).value, codes.value)


def test_too_few_positive_values_are_all_kept_and_none_at_all_is_no_error() -> None:
    sae, x = small(), vectors(50)
    with torch.no_grad():
        sae.b_enc.fill_(-2.0)
    dense = torch.relu(sae.pre(x))
    assert 0 < int((dense > 0).sum()) < 250
    torch.testing.assert_close(sae.codes(x).dense(), dense)
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    assert len(sae.codes(x).feature) == 0
    step = sae.backward(x, Progress(0, 10))
    assert bool(torch.isfinite(step.loss))


def test_of_equal_values_the_first_are_kept() -> None:
    value = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 3.0])
    assert largest(value, 4).tolist() == [True, True, True, False, False, True]
    assert largest(value, 100).tolist() == [True, True, True, False, True, True]


def trained() -> Checkpoint:
    source = ArraySource(planted(4000)[0])
    cfg = TrainConfig(batch_size=256, n_tokens=256 * 300, lr=3e-3, n_init=2000)
    sae = BatchTopK(BatchTopKConfig(d_in=32, d_sae=96, k=4), torch.Generator().manual_seed(0))
    (checkpoint,) = train(source, [TrainSpec("mine", sae)], cfg)
    return checkpoint


def test_inference_keeps_k_features_on_average_and_survives_saving(tmp_path: Path) -> None:
    checkpoint, x = trained(), planted(4000)[0]
    sae = checkpoint.sae
    assert isinstance(sae, BatchTopK)
    codes = checkpoint.codes(x)
    assert float(codes.counts().sum()) / len(x) == pytest.approx(4, rel=0.15)
    h = sae.pre(checkpoint.norm(x)).detach()
    clear = (h - sae.threshold).abs() > 1e-4
    wanted = torch.where(h > sae.threshold, h, 0)
    torch.testing.assert_close(codes.dense()[clear], wanted[clear], rtol=1e-4, atol=1e-4)

    frozen = Checkpoint(sae.frozen(), checkpoint.norm, ref_of(sae.frozen()), checkpoint.site)
    assert frozen.ref["name"] == "jumprelu"
    for saved in (checkpoint, frozen):
        saved.save(tmp_path / saved.ref["name"])
        loaded = Checkpoint.load(tmp_path / saved.ref["name"])
        assert type(loaded.sae) is type(saved.sae)
        again = loaded.codes(x)
        assert torch.equal(again.feature, codes.feature)
        assert torch.equal(again.value, codes.value)
        assert torch.equal(loaded.decode(again), checkpoint.decode(codes))


def test_the_threshold_starts_as_the_last_batchs_and_is_then_averaged() -> None:
    sae = small()
    one, two = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([3.0])
    sae.follow(one, Progress(3, 20_000))
    sae.follow(two, Progress(1000, 20_000))
    assert float(sae.threshold) == 3
    sae.follow(one, Progress(1001, 20_000))
    assert float(sae.threshold) == pytest.approx(3 - 2e-3)
    sae.follow(torch.zeros(3), Progress(1002, 20_000))
    assert float(sae.threshold) == pytest.approx(3 - 2e-3)
