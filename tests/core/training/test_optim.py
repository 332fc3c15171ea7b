"""Optimisers: each against a plain float64 rewrite, resumed to the last bit, and unmoved by neighbours of another kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saev_core.config.base import validate
from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError, TrainError
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.optim import Adam, Average, Muon, Optimizer, ScheduleFree, make_optimizer
from saev_core.training.optim.muon import QUINTIC, orthogonal
from saev_core.training.sae_trainer import SAETrainer, TrainSpec
from saev_core.training.schedule import Schedule, base_lr
from saev_core.training.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STEPS = 30
SHAPES = {"W_enc": (6, 20), "W_dec": (20, 6), "b_enc": (20,), "scale": ()}
AXES = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "scale": None}


def weights() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def rate(step: int) -> float:
    return 0.01 * min(1.0, (step + 1) / 5)


def moved(
    make: Callable[[dict[str, nn.Parameter]], Optimizer], restore: Callable[[dict[str, nn.Parameter]], None]
) -> tuple[Optimizer, dict[str, nn.Parameter]]:
    """The optimiser, and what it moved, after `STEPS` steps, each followed by `restore`, as the trainer takes them."""
    parameters = weights()
    optimizer = make(parameters)
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            parameters[name].grad = gradient.clone()
        optimizer.step(rate(step))
        restore(parameters)
        if optimizer.average_step():
            restore(parameters)
    return optimizer, parameters


def unit_rows(parameters: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        parameters["W_dec"].copy_(F.normalize(parameters["W_dec"], dim=1))


def close(found: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].detach().double(), tensor, rtol=1e-4, atol=1e-5)


def plain_adam(w: Tensor, name: str, rates: Callable[[int], float]) -> Tensor:
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradients(t - 1)[name].double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - rates(t - 1) * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 6.25e-10)
    return w


def test_adam_is_its_equations() -> None:
    _, found = moved(lambda p: Adam(p.items()), lambda p: None)
    close(found, {name: plain_adam(p.detach().double(), name, rate) for name, p in weights().items()})


def plain_orthogonal(u: Tensor) -> Tensor:
    """The iteration as published, on the wide matrix itself."""
    a, b, c = QUINTIC
    if flip := u.shape[0] > u.shape[1]:
        u = u.T
    x = u / u.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.T if flip else x
    return found


@pytest.mark.parametrize("shape", [(24, 200), (200, 24), (30, 30), (1, 40)])
def test_orthogonal_brings_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    """Jordan et al. call 0.7 to 1.2 what the coefficients give, for singular values that are not tiny."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=generator) * (1 + 5 * torch.rand(shape[0], 1, generator=generator))
    U, S, V = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = orthogonal(matrix)
    values = (U.T @ found.double() @ V.T).diagonal()
    big = S / S.norm() > 0.02
    assert float(values[big].min()) > 0.67
    assert float(values[big].max()) < 1.21
    # Nothing leaves the space it came from: U^T O V is diagonal.
    assert float((found.double() - U @ values.diag() @ V).norm() / found.norm()) < 1e-4
    torch.testing.assert_close(found.double(), plain_orthogonal(matrix.double()), rtol=1e-3, atol=1e-4)


def test_orthogonal_survives_zero_and_badly_conditioned_matrices() -> None:
    assert not orthogonal(torch.zeros(5, 30)).any()
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(n, 16, generator=generator))[0] for n in (16, 300))
    matrix = left @ torch.logspace(0, -7, 16).diag() @ right.T
    found = orthogonal(matrix)
    assert bool(torch.isfinite(found).all())
    assert float(torch.linalg.matrix_norm(found, 2)) < 1.3
    torch.testing.assert_close(found.double(), plain_orthogonal(matrix.double()), rtol=0, atol=0.02)


def test_muon_is_its_equations() -> None:
    def plain(w: Tensor, name: str) -> Tensor:
        if w.ndim != 2:
            return plain_adam(w, name, lambda step: rate(step) / 10)
        memory = torch.zeros_like(w)
        for t in range(STEPS):
            g = gradients(t)[name].double()
            memory = 0.95 * memory + g
            # Rows are features: 20 of them in six dimensions, whichever way they are stored.
            w = w - rate(t) * math.sqrt(20 / 6) * plain_orthogonal(g + 0.95 * memory)
            w = F.normalize(w, dim=1) if name == "W_dec" else w
        return w

    _, found = moved(lambda p: Muon(p.items()), unit_rows)
    close(found, {name: plain(p.detach().double(), name) for name, p in weights().items()})


def test_schedule_free_is_its_equations() -> None:
    def plain(w: Tensor, name: str) -> tuple[Tensor, Tensor]:
        z, x, v, total = w, w, torch.zeros_like(w), 0.0
        restored = (lambda u: F.normalize(u, dim=1)) if name == "W_dec" else (lambda u: u)
        for t in range(1, STEPS + 1):
            g = gradients(t - 1)[name].double()
            v = 0.99 * v + 0.01 * g**2
            r = rate(t - 1) * math.sqrt(1 - 0.99**t)
            z = restored(z - r * g / (v.sqrt() + 1e-12))
            total += r**2
            x = (1 - r**2 / total) * x + r**2 / total * z
        return x, restored(0.1 * z + 0.9 * x)

    optimizer, found = moved(lambda p: ScheduleFree(p.items(), beta2=0.99), unit_rows)
    close(optimizer.averaged_weights(), {name: plain(p.detach().double(), name)[0] for name, p in weights().items()})
    close(found, {name: plain(p.detach().double(), name)[1] for name, p in weights().items()})


def test_the_average_has_no_memory_of_its_start() -> None:
    parameters = weights()
    average, seen = Average(parameters.items(), 0.9), []
    assert average.averaged_weights() == {}
    for step in range(STEPS):
        with torch.no_grad():
            parameters["W_dec"].add_(gradients(step)["W_dec"])
        average.update()
        seen.append(parameters["W_dec"].detach().double().clone())
    shares = torch.tensor([0.9 ** (STEPS - 1 - s) for s in range(STEPS)], dtype=torch.float64)
    wanted = torch.einsum("s,sij->ij", shares / shares.sum(), torch.stack(seen))
    torch.testing.assert_close(average.averaged_weights()["W_dec"].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "muon", "schedule-free"])
def test_features_that_start_anew_are_forgotten_and_no_others(name: Any) -> None:
    found, parameters = moved(lambda p: make_optimizer(name, p.items(), (0.9, 0.999)), unit_rows)
    with torch.no_grad():
        parameters["W_dec"][3], parameters["W_enc"][:, 3], parameters["b_enc"][3] = 1.0, 2.0, 3.0
    before = {key: tensor.clone() for key, tensor in found.tensors().items()}
    found.reset_features(torch.tensor([3]), AXES)
    for key, tensor in found.tensors().items():
        kind, _, of = key.partition(".")
        if of not in ("W_enc", "W_dec", "b_enc") or kind == "count":
            assert torch.equal(tensor, before[key])
            continue
        now, was = (t.T if of == "W_enc" else t for t in (tensor, before[key]))
        new = {"W_enc": 2.0, "W_dec": 1.0, "b_enc": 3.0}[of] if kind in ("x", "z") else 0.0
        assert bool((now[3] == new).all()), key
        assert torch.equal(now[torch.arange(20) != 3], was[torch.arange(20) != 3]), key


def test_a_parameter_without_features_is_left_alone_however_long_it_is() -> None:
    class Skipping(TopK):
        def __init__(self, cfg: TopKConfig, generator: torch.Generator | None = None) -> None:
            super().__init__(cfg, generator)
            self.skip, self.gate = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))

        def feature_axes(self) -> dict[str, int | None]:
            return super().feature_axes() | {"skip": None}

    sae = Skipping(TopKConfig(d_in=8, d_sae=8, k=2))
    assert sae.feature_axes() == {"W_enc": 1, "b_enc": 0, "W_dec": 0, "b_dec": None, "skip": None, "gate": 0}
    adam = Adam(sae.named_parameters())
    for p in sae.parameters():
        p.grad = torch.ones_like(p)
    adam.step(0.1)
    adam.reset_features(torch.tensor([1, 5]), sae.feature_axes())
    state = adam.tensors()
    assert bool((state["mean.skip"] > 0).all())
    assert (state["mean.gate"] == 0).nonzero().view(-1).tolist() == [1, 5]


# In training.

CFG = TrainConfig(batch_size=64, n_tokens=64 * 40, n_init=500, checkpoint_every=6, log_every=5)
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "muon": {"optimizer": "muon"},
    "free": {"optimizer": "schedule-free"},
    "ema": {"ema": 0.9},
    "muon-ema": {"optimizer": "muon", "ema": 0.9, "decay": "cosine", "lr_decay": 1.0},
}


def changed(**update: Any) -> TrainConfig:
    return validate(TrainConfig, {**CFG.model_dump(), **update})


def source() -> ArraySource:
    return ArraySource(planted(700, 16)[0])


def trainee(name: str, **options: Any) -> TrainSpec:
    sae: SAE
    if name == "relu":
        sae = ReLU(ReLUConfig.model_validate({"d_in": 16, "d_sae": 40, **options}), torch.Generator().manual_seed(0))
        return TrainSpec(name, sae, changed(optimizer="muon"))
    sae = TopK(TopKConfig.model_validate({"d_in": 16, "d_sae": 40, "k": 4, **options}), torch.Generator().manual_seed(0))
    return TrainSpec(name, sae, changed(**OPTIONS[name]))


def same(one: SAE, two: SAE) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_mixed_group_trains_each_as_if_alone() -> None:
    names = [*OPTIONS, "relu"]
    alone = [train(source(), [trainee(name)], CFG)[0].sae for name in names]
    together = [checkpoint.sae for checkpoint in train(source(), [trainee(name) for name in names], CFG)]
    assert all(same(one, two) for one, two in zip(alone, together, strict=True))
    assert not any(same(together[0], other) for other in together[1:5])


def test_a_mixed_group_is_resumed_to_the_last_bit(tmp_path: Path) -> None:
    """Every tenth feature begins dead, so that optimisers also forget."""

    def group() -> list[TrainSpec]:
        made = [trainee(name, resample_every=8, auxk=0, data_init=False) for name in OPTIONS]
        for one in made:
            one.cfg = (one.cfg or CFG).model_copy(update={"dead_after": 128})
            with torch.no_grad():
                one.sae.W_enc[:, ::10] *= 0.02
        return made

    def interrupt(hook: str, *, step: int, **rest: Any) -> None:
        if hook == "stepped" and step == 25:
            raise KeyboardInterrupt

    whole = train(source(), group(), CFG, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(source(), group(), CFG, out=tmp_path / "cut", emit=interrupt)
    steps: list[int] = []
    resumed = train(source(), group(), CFG, out=tmp_path / "cut", emit=lambda hook, *, step, **rest: steps.append(step))
    assert min(steps) == 25
    assert all(same(one.sae, two.sae) for one, two in zip(whole, resumed, strict=True))
    for name in OPTIONS:
        one, two = (tmp_path / run / name / "sae.safetensors" for run in ("whole", "cut"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["free", "ema"])
def test_the_checkpoint_holds_the_averaged_weights_with_rows_of_length_one(name: str) -> None:
    one = trainee(name)
    (checkpoint,) = train(source(), [one], CFG)
    assert not same(checkpoint.sae, one.sae)
    torch.testing.assert_close(checkpoint.sae.W_dec.norm(dim=1), torch.ones(40), rtol=1e-5, atol=1e-5)
    two = trainee(name)
    assert two.cfg is not None
    job = SAETrainer(two, two.cfg, Schedule.of(two.cfg, 700), torch.device("cpu"))
    assert job.trained_sae() is job.sae  # nothing is averaged before the first step
    data = source()
    x = data.norm(data.x)
    job.sae.initialise(x[:500], job.generator)
    seen = []
    for step in range(3):
        job.step(x[:64], step)
        seen.append(job.sae.b_enc.detach().clone())
    if name == "ema":
        wanted = (0.81 * seen[0] + 0.9 * seen[1] + seen[2]) / 2.71
        torch.testing.assert_close(job.trained_sae().b_enc.detach(), wanted, rtol=1e-5, atol=1e-6)
    before = {key: tensor.clone() for key, tensor in job.sae.state_dict().items()}
    job.trained_sae()
    assert all(torch.equal(tensor, before[key]) for key, tensor in job.sae.state_dict().items())


def test_every_optimizer_learns(tmp_path: Path) -> None:
    data = source()
    spread = float((data.x - data.x.mean(0)).square().sum())
    cfg = {"n_tokens": 64 * 400}
    made = [TrainSpec(name, trainee(name).sae, changed(**cfg, **options)) for name, options in OPTIONS.items()]
    for checkpoint in train(data, made, changed(**cfg)):
        x_hat = checkpoint.decode(checkpoint.codes(data.x))
        assert float((x_hat - data.x).square().sum()) / spread < 0.25, checkpoint.train["config"]
        rate = {"muon": Muon.rate, "schedule-free": ScheduleFree.rate}.get(checkpoint.train["config"]["optimizer"])
        own = base_lr(40) * (rate or TopK.training_defaults.lr)
        assert checkpoint.train["lr"] == pytest.approx(own)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"optimizer": "muon"}, "train.optimizer was 'adam', now 'muon'"),
        ({"ema": 0.9}, {"ema": 0.99}, "train.ema was 0.9, now 0.99"),
        ({}, {"decay": "cosine"}, "train.decay was 'linear', now 'cosine'"),
    ],
)
def test_resuming_with_other_options_names_them(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], said: str) -> None:
    def run(options: dict[str, Any], **more: Any) -> list[Checkpoint]:
        # The group's configuration is the same: it is the SAE's own that differs.
        return train(source(), [TrainSpec("topk", trainee("adam").sae, changed(**options))], CFG, out=tmp_path, **more)

    def interrupt(hook: str, *, step: int, **rest: Any) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(before, emit=interrupt)
    with pytest.raises(TrainError, match=said):
        run(after)


def test_muon_without_a_matrix_is_refused() -> None:
    class Scaled(TopK):
        """Trains its biases alone."""

        def __init__(self, cfg: TopKConfig, generator: torch.Generator | None = None) -> None:
            super().__init__(cfg, generator)
            self.W_enc.requires_grad_(False)
            W_enc, W_dec = self.W_enc.detach(), self.W_dec.detach()
            del self.W_enc, self.W_dec
            self.register_buffer("W_enc", W_enc)
            self.register_buffer("W_dec", W_dec)

    sae = Scaled(TopKConfig(d_in=16, d_sae=40, k=4))
    with pytest.raises(TrainError, match=r"mine: muon needs matrices, but this SAE trains none; set train.optimizer to adam"):
        train(source(), [TrainSpec("mine", sae, changed(optimizer="muon"))], CFG)


def test_two_averages_are_refused() -> None:
    with pytest.raises(ConfigError, match="schedule-free already averages weights, so ema cannot be combined with it"):
        changed(ema=0.9, optimizer="schedule-free")
