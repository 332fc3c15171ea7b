"""`tiny`: weights we trained, small enough to ship, as good as stated, and made by the script in the repository."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saev_core.config.base import PluginRef
from saev_core.data.shapes import VALUES
from saev_core.errors import ModelError
from saev_core.models import tiny
from saev_core.models.base import load_model
from saev_core.models.tiny import FACTORS, Tiny, TinyConfig
from saev_core.types import Box

WEIGHTS = Path(tiny.__file__).with_name("tiny.safetensors")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/train_tiny.py as a module."""
    path = Path(__file__).parents[3] / "scripts" / "train_tiny.py"
    spec = importlib.util.spec_from_file_location("train_tiny", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tiny"] = module
    spec.loader.exec_module(module)
    return module


def test_weights_are_float16_and_at_most_8_mb() -> None:
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} == {torch.float16}
    model = Tiny()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) < 2_000_000


def test_its_factors_are_those_of_shapes() -> None:
    assert {factor: len(values) for factor, values in VALUES.items()} == FACTORS


def test_it_is_the_plugin_called_tiny() -> None:
    model = load_model("tiny", device="cpu")
    assert isinstance(model, Tiny)
    assert (model.grid.rows, model.grid.cols, model.grid.n_prefix, model.d_model) == (12, 12, 1, 128)
    assert str(model.site(-2)) == "resid.2"
    assert not any(p.requires_grad for p in model.parameters())


def test_random_weights_come_from_their_seed() -> None:
    first, again, other = (Tiny(TinyConfig(pretrained=False, seed=seed)).position for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"not weights")
    for wrong in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(ModelError, match=r"does not hold weights of tiny .* omit model.options.checkpoint"):
            load_model(PluginRef(name="tiny", options={"checkpoint": str(tmp_path / wrong)}), device="cpu")


def test_the_picture_s_middle_square_is_what_it_sees() -> None:
    assert Tiny(TinyConfig(pretrained=False)).crop(300, 200) == pytest.approx(Box(50, 0, 250, 200), abs=1.5)


@pytest.mark.slow
def test_shipped_weights_are_as_good_as_stated(script: ModuleType) -> None:
    """On scenes of a seed that neither training nor the default data set uses."""
    found = script.accuracy(Tiny().eval(), script.scenes(script.TEST_SEED, 60, 1))
    for name, stated in script.STATED.items():
        assert found[name] >= stated - 0.04, f"{name}: {found[name]:.3f}, stated {stated}"


@pytest.mark.slow
def test_a_few_steps_of_the_script_give_the_same_twice_and_learn(script: ModuleType) -> None:
    data = script.scenes(script.TRAIN_SEED, 48, 1)
    losses: list[float] = []
    with torch.random.fork_rng():
        first, again = (script.train(data, n_steps=8, batch_size=16, lr=2.5e-3, seed=0) for _ in range(2))
        for model in (Tiny(TinyConfig(pretrained=False, seed=0)), first):
            pixels, targets, labels = data
            with torch.no_grad():
                losses.append(float(script.loss_of(model, script.to_input(pixels), targets, labels)))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert losses[1] < 0.9 * losses[0]


def test_drawing_in_parallel_gives_the_same_scenes(script: ModuleType) -> None:
    pixels, targets, labels = script.scenes(script.TEST_SEED, 6, 1)
    one = script.draw((script.TEST_SEED, 4, 5))
    assert np.array_equal(one[0][0], pixels[4])
    assert np.array_equal(one[1][0], targets[4])
    assert one[2][0] == labels[4]


def test_targets_name_the_factor_values_of_each_patch(script: ModuleType) -> None:
    scenes = script.Shapes(script.ShapesConfig(n=3))
    rows = scenes.patch_factors(1, Tiny(TinyConfig(pretrained=False)).grid, Box(0, 0, 192, 192))
    targets = script.target(rows)
    first = 0
    for row, (factor, values) in zip(targets, VALUES.items(), strict=True):
        for token in range(rows.shape[1]):
            told = rows[first : first + len(values), token]
            want = -1 if told[0] < 0 else int(told.argmax()) if told.any() else len(values)
            assert row[token] == want, factor
        first += len(values)
