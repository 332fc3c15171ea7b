"""`matryoshka`: its cumulative decoding against all prefixes at once in float64, its contract under each activation."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.step import Progress, Step
from saev_core.testing.sae_contract import ArraySource, SAEContract, planted
from saev_core.training.train import TrainSpec, train
from saev_saes.jumprelu import JumpReLU
from saev_saes.matryoshka import Matryoshka, MatryoshkaConfig


class TestBatchTopK(SAEContract):
    sae = Matryoshka
    options: ClassVar[dict[str, Any]] = {"d_sae": 56, "k": 5, "n_groups": 3}
    steps = 700
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128, "k": 4, "n_groups": 3}


class TestTopK(SAEContract):
    sae = Matryoshka
    options: ClassVar[dict[str, Any]] = {"d_sae": 56, "k": 5, "activation": "topk", "groups": "sampled"}
    steps = 700
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128, "k": 4, "activation": "topk", "groups": "sampled"}


class TestReLU(SAEContract):
    sae = Matryoshka
    options: ClassVar[dict[str, Any]] = {"d_sae": 56, "activation": "relu"}
    steps = 700
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128, "activation": "relu", "n_groups": 3, "sparsity_coeff": 0.3}


def small(**options: object) -> Matryoshka:
    cfg = MatryoshkaConfig.model_validate({"d_in": 24, "d_sae": 56, "k": 5, **options})
    return Matryoshka(cfg, torch.Generator().manual_seed(0))


def vectors(n: int = 100) -> torch.Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "sparse relu"])
@pytest.mark.parametrize("full_weight", [0.2, 1.0])
def test_loss_and_gradient_are_those_of_all_prefixes_at_once_in_float64(activation: str, full_weight: float) -> None:
    sae, x = small(activation=activation.rsplit(maxsplit=1)[-1], full_weight=full_weight, n_groups=4).double(), vectors()
    if activation == "sparse relu":
        with torch.no_grad():
            sae.b_enc.fill_(-1.7)
    step = sae.backward(x, Progress(10, 100))
    W_enc, b_enc, W_dec, b_dec = (p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    f = torch.relu(x @ W_enc + b_enc)
    penalty = torch.zeros(())
    if activation.endswith("relu"):
        penalty = 0.1 * 24**0.5 * f.sum(1).mean()
        assert (float((f > 0).double().mean()) < 0.1) == (activation == "sparse relu")
    elif activation == "topk":
        f = torch.where(f >= f.detach().sort(1, descending=True).values[:, 4:5], f, 0)
    else:
        f = torch.where(f >= f.detach().flatten().sort(descending=True).values[499], f, 0)
    sizes = [7, 14, 28, 56]
    masks = torch.stack([torch.arange(56) < size for size in sizes])  # [prefixes, d_sae]
    x_hat = (f * masks[:, None]) @ W_dec + b_dec  # [prefixes, n, d_in]
    errors = (x - x_hat).square().sum(-1).mean(-1)
    weights = torch.tensor([(1 - full_weight) / 3] * 3 + [full_weight], dtype=torch.float64)
    loss = errors @ weights + penalty
    loss.backward()
    wanted = {"W_enc": W_enc.grad, "b_enc": b_enc.grad, "W_dec": W_dec.grad, "b_dec": b_dec.grad}

    def check(found: Step) -> None:
        torch.testing.assert_close(found.loss, loss.detach())
        torch.testing.assert_close(found.x_hat, x_hat[-1].detach())
        assert found.metrics["mse"] == pytest.approx(errors[-1].item())
        for name, gradient in wanted.items():
            torch.testing.assert_close(getattr(sae, name).grad, gradient, rtol=1e-9, atol=1e-11)

    check(step)
    check(sae.backward_autograd(x, Progress(10, 100)))


def test_prefixes_are_geometric_or_drawn_log_uniformly_and_always_end_with_all() -> None:
    fixed = small(d_sae=64, n_groups=4).prefixes(Progress(0, 10))
    assert fixed.sizes == [8, 16, 32, 64]
    assert sum(fixed.weights) == pytest.approx(1)
    assert fixed.weights[-1] == 0.5
    assert small(n_groups=1).prefixes(Progress(0, 10)).weights == [1.0]

    sae, generator = small(d_sae=4096, n_groups=5, groups="sampled"), torch.Generator().manual_seed(0)
    drawn = [sae.prefixes(Progress(step, 500, None, generator)) for step in range(500)]
    assert all(p.sizes[-1] == 4096 and sorted(set(p.sizes)) == p.sizes and sum(p.weights) == pytest.approx(1) for p in drawn)
    logs = torch.tensor([size for p in drawn for size in p.sizes[:-1]], dtype=torch.float64).log2()
    assert 8 <= float(logs.min()) < 8.1
    assert 11.9 < float(logs.max()) < 12
    # Uniform in the logarithm: a quarter in every octave.
    assert all(float(((logs >= a) & (logs < a + 1)).double().mean()) == pytest.approx(0.25, abs=0.03) for a in (8, 9, 10, 11))


def test_too_many_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower n_groups"):
        small(n_groups=9)


def test_the_first_prefix_reconstructs_better_than_without_nesting() -> None:
    x = planted(4000)[0]
    shared = {"d_in": 32, "d_sae": 96, "k": 4, "n_groups": 3}
    trainees = [
        TrainSpec(f"{full}", Matryoshka(MatryoshkaConfig.model_validate({**shared, "full_weight": full}), torch.Generator().manual_seed(0)))
        for full in (0.5, 1.0)
    ]
    errors = []
    for checkpoint in train(ArraySource(x), trainees, TrainConfig(batch_size=256, n_tokens=256 * 300, lr=3e-3, n_init=2000)):
        sae, inputs = checkpoint.sae, checkpoint.norm(x)
        with torch.no_grad():
            first = sae.encode(inputs)[:, :24] @ sae.W_dec[:24] + sae.b_dec
        errors.append(float((inputs - first).square().sum(-1).mean()))
    assert errors[0] < 0.8 * errors[1]


def test_inference_with_batchtopk_is_by_threshold_and_can_be_saved(tmp_path: Path) -> None:
    sae, x = small(), vectors(300).float()
    for step in range(5):
        sae.backward(x, Progress(step, 10))
    frozen = sae.frozen()
    assert isinstance(frozen, JumpReLU)
    norm = ArraySource(x).norm
    checkpoint = Checkpoint(frozen, norm, ref_of(frozen), "resid.0")
    checkpoint.save(tmp_path / "frozen")
    wanted = Checkpoint(sae, norm, ref_of(sae), "resid.0").codes(x)
    assert torch.equal(Checkpoint.load(tmp_path / "frozen").codes(x).value, wanted.value)
    assert float((frozen.codes(x).counts().sum()) / 300) == pytest.approx(5, abs=0.01)
