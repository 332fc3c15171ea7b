"""`SAEContract`: tests that every SAE variant must pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saev_core.activations.sources.array import ArraySource
from saev_core.config.base import validate
from saev_core.config.stages import TrainConfig
from saev_core.errors import ShapeError
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.norm import Norm
from saev_core.sae.step import Progress
from saev_core.training.train import TrainSpec, train


def planted(n: int, d_in: int = 32, n_true: int = 64, n_active: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sparse sums of `n_true` random directions, with a little noise and an offset: (x `[n, d_in]`, directions)."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(n_true, d_in, generator=generator), dim=1)
    on = torch.rand(n, n_true, generator=generator) < n_active / n_true
    z = on * (0.5 + torch.rand(n, n_true, generator=generator))
    x = z @ directions + 0.01 * torch.randn(n, d_in, generator=generator)
    return 3 * x + torch.randn(d_in, generator=generator), directions


def recovery(sae: SAE, directions: Float[Tensor, "n_true d_in"]) -> float:
    """Mean over the true directions of the cosine to the nearest decoder row."""
    rows = F.normalize(sae.W_dec.detach(), dim=1)
    return float((directions.to(rows.dtype) @ rows.T).amax(1).mean())


class SAEContract:
    """Tests of an SAE variant. A complete plugin test: `class TestMine(SAEContract): sae = Mine`.

    Override `options` for the small SAE used by most tests, `planted_options` for the one that must recover a planted
    dictionary (3 of 64 directions active, 32 dimensions), and set `recovers` to None if the method cannot. A variant for
    joined sites sets `n_sites` in both, and overrides `problem` to return the directions its decoder rows must recover.
    """

    sae: ClassVar[type[SAE]]
    options: ClassVar[dict[str, Any]] = {"d_sae": 56}
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128}
    recovers: ClassVar[float | None] = 0.9
    """Minimum mean matched cosine."""
    lr: ClassVar[float] = 3e-3
    steps: ClassVar[int] = 1500

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        # Tiny matmuls: threads cost more than they gain.
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def make(self, seed: int = 0, **options: Any) -> SAE:
        """A small SAE for activations of width 24, with perturbed initial weights."""
        cfg = validate(self.sae.Config, {**self.options, **options}, where="options").sized(24)
        generator = torch.Generator().manual_seed(seed)
        sae = self.sae(cfg, generator)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            sae.after_step()
        return sae

    @staticmethod
    def vectors(n: int = 200, seed: int = 1) -> Tensor:
        return torch.randn(n, 24, generator=torch.Generator().manual_seed(seed))

    def progresses(self, sae: SAE) -> list[Progress]:
        """Points in training at which the gradient is checked: during warm-up, and later with dead features."""
        dead = torch.arange(sae.d_sae) % 3 == 0
        seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
        return [Progress(3, 1000, None, seeds[0]), Progress(700, 1000, dead, seeds[1])]

    def test_backward_agrees_with_autograd_in_float64(self) -> None:
        sae, x = self.make().double(), self.vectors().double()
        sae.after_step()  # also converts what a variant derives from its parameters to float64
        for fast, slow in zip(self.progresses(sae), self.progresses(sae), strict=True):
            step = sae.backward(x, fast)
            ours = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
            # Stale gradients must be overwritten, not added to.
            again = sae.backward(x, Progress(slow.step, slow.n_steps, slow.dead, torch.Generator().manual_seed(3)))
            for name, p in sae.named_parameters():
                assert p.grad is None or torch.equal(p.grad, ours[name]), f"{name}: a second backward differs"
            theirs = sae.backward_autograd(x, slow)
            torch.testing.assert_close(step.loss, theirs.loss, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(again.loss, theirs.loss, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(step.x_hat, theirs.x_hat, rtol=1e-9, atol=1e-12)
            assert torch.equal(step.counts(), theirs.counts())
            for name, p in sae.named_parameters():
                if p.grad is not None:
                    scale = float(p.grad.abs().max())
                    assert torch.allclose(ours[name], p.grad, rtol=1e-9, atol=1e-10 * max(scale, 1.0)), f"the gradient of {name} differs"

    def test_codes_are_encode_made_sparse(self) -> None:
        sae, x = self.make(), self.vectors()
        with torch.no_grad():
            dense, codes = sae.encode(x), sae.codes(x)
        torch.testing.assert_close(codes.dense(), dense, rtol=1e-5, atol=1e-6)
        assert bool((dense >= 0).all())
        torch.testing.assert_close(sae.decode(codes), sae.decode(dense), rtol=1e-4, atol=1e-5)

    def test_frozen_answers_each_vector_by_itself(self) -> None:
        frozen, x = self.make().frozen(), self.vectors(20)
        with torch.no_grad():
            together = frozen.codes(x).dense()
            apart = torch.cat([frozen.codes(row[None]).dense() for row in x])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(frozen.frozen().codes(x).dense(), together)

    def test_wrong_width_is_a_shape_error(self) -> None:
        for call in (self.make().encode, self.make().codes):
            with pytest.raises(ShapeError, match="width 25"):
                call(torch.zeros(3, 25))

    def test_checkpoint_round_trip_changes_no_bit(self, tmp_path: Path) -> None:
        sae, x = self.make(), self.vectors() * 7 + 2
        norm = Norm.of(x, sae.cfg.n_sites)
        saved = Checkpoint(sae, norm, ref_of(sae), "resid.0")
        saved.save(tmp_path / "sae")
        loaded = Checkpoint.load(tmp_path / "sae", kind=self.sae)
        before, after = saved.codes(x), loaded.codes(x)
        assert torch.equal(before.feature, after.feature)
        assert torch.equal(before.value, after.value)
        assert torch.equal(saved.decode(before), loaded.decode(after))
        assert torch.equal(saved.reconstruct(x), loaded.reconstruct(x))
        assert loaded.fingerprint == saved.fingerprint

    def problem(self) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n_true d_out"]]:
        """Raw training vectors, and the directions that decoder rows must recover."""
        return planted(20_000)

    def source(self, x: Float[Tensor, "n d_in"], options: dict[str, Any]) -> ArraySource:
        """Vectors as a source, with as many joined sites as in the options."""
        return ArraySource(x, n_sites=options.get("n_sites", 1))

    def _train(self, source: ArraySource, options: dict[str, Any], cfg: TrainConfig, out: Path | None = None, **more: Any) -> SAE:
        kind = validate(self.sae.Config, options, where="options").sized(source.d_model)
        trainee = TrainSpec("mine", self.sae(kind, torch.Generator().manual_seed(cfg.seed)))
        (checkpoint,) = train(source, [trainee], cfg, out=out, **more)
        return checkpoint.sae

    def test_training_repeats_to_the_last_bit_and_depends_on_the_seed(self) -> None:
        source = self.source(planted(2000, 24)[0], self.options)
        cfg = TrainConfig(batch_size=128, n_tokens=128 * 30, n_init=1000)
        one, two = (self._train(source, self.options, cfg) for _ in range(2))
        other = self._train(source, self.options, cfg.model_copy(update={"seed": 1}))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name
        assert not torch.equal(one.W_dec, other.W_dec)
        if one.cfg.normalize_w_dec:
            torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(one.d_sae), rtol=1e-5, atol=1e-5)

    def test_an_interrupted_training_ends_with_the_same_bits(self, tmp_path: Path) -> None:
        source = self.source(planted(2000, 24)[0], self.options)
        cfg = TrainConfig(batch_size=128, n_tokens=128 * 30, n_init=1000, checkpoint_every=7, log_every=1)
        whole = self._train(source, self.options, cfg, tmp_path / "whole")

        def interrupt(hook: str, *, step: int, **rest: Any) -> None:
            if hook == "stepped" and step == 18:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self._train(source, self.options, cfg, tmp_path / "cut", emit=interrupt)
        steps: list[int] = []
        resumed = self._train(source, self.options, cfg, tmp_path / "cut", emit=lambda hook, *, step, **rest: steps.append(step))
        assert steps[0] == 15
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name

    def test_it_finds_a_planted_dictionary(self) -> None:
        if self.recovers is None:
            pytest.skip("the variant does not claim recovery")
        x, directions = self.problem()
        cfg = TrainConfig(batch_size=256, n_tokens=256 * self.steps, lr=self.lr)
        sae = self._train(self.source(x, self.planted_options), self.planted_options, cfg)
        assert recovery(sae, directions) >= self.recovers
