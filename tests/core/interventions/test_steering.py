"""Edits in a model that runs: what comes after sees them, and nothing stays behind."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from core.interventions.steered import PEAK, apply, busy, checkpoint, edit, fit, hooks, images, reference, tiny, tokens
from torch import Tensor, nn

from saev_core import Edit, steering
from saev_core.config.stages import ReadConfig
from saev_core.errors import ModelError, SteerError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.downstream import Downstream
from saev_core.interventions.edit import MODES
from saev_core.models.base import VisionModel
from saev_core.models.tiny import Tiny
from saev_core.types import Grid


@pytest.mark.parametrize("mode", MODES)
def test_the_rest_of_the_model_sees_the_edit(mode: str):
    model, j = tiny(), busy(1)[0]
    one = edit(j, 0.5, mode)
    with steering(model, [one], {"resid.2": checkpoint()}):
        seen = model.record(images(), [model.site(1), model.site(2), model.site(3)])
        out = model(images())
    assert torch.equal(seen[model.site(1)], tokens(1))
    want = apply(tokens(), [one])
    assert torch.equal(seen[model.site(2)], want)
    assert torch.equal(seen[model.site(3)], model.blocks[3](want))
    assert torch.equal(out, seen[model.site(3)])
    assert not torch.equal(out, model(images()))
    assert hooks(model) == 0


def test_what_changes_nothing_puts_no_hook_and_gives_the_same_bits():
    model = tiny()
    with steering(model, [edit(3, 0.0), edit(4, 1.0, "scale"), edit(5, 1.0, "set", [])], checkpoint()):
        assert hooks(model) == 0
        assert torch.equal(model(images()), model(images()))
    silent = Edit.of(checkpoint(), PEAK, 3, 0.5, "ablate", [0])
    f = checkpoint().codes(tokens()[:, 1].reshape(-1, 128)).dense()
    feature = int((f == 0).all(0).nonzero()[0])
    base = model(images())
    with steering(model, [replace(silent, feature=feature)], checkpoint()):
        assert torch.equal(model(images()), base)


def test_no_hook_stays_also_after_an_exception():
    model = tiny()
    with steering(model, [edit()]):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), steering(model, [edit()]):
        model(images()[:, :2])  # two channels
    assert hooks(model) == 0
    with pytest.raises(SteerError), steering(model, [edit(), edit(99, where=[999])]):
        pass
    assert hooks(model) == 0
    downstream = Downstream.of(model, images(), "resid.2")
    with pytest.raises(SteerError):
        downstream([edit(3, 0, "ablate")])  # no checkpoint
    assert hooks(model) == 0


def test_a_later_site_s_features_are_those_of_what_arrives_there():
    model, late = tiny(), checkpoint(3)
    first, second = edit(busy(1)[0], 1.0), Edit.of(late, PEAK, busy(1, late, tokens(3)[:, 1:])[0], 0, "ablate")
    with steering(model, [second, first], {"resid.2": checkpoint(), "resid.3": late}):
        out = model(images())
    arrives = model.blocks[3](apply(tokens(), [first]))
    want = apply_edits(arrives, [second], late, n_prefix=1)
    assert torch.equal(out, want)
    assert not torch.equal(want, arrives)


def test_each_image_of_a_batch_can_have_its_own_edits():
    model, j = tiny(), busy(3)
    rows = [[edit(j[0], 0.5, "ablate")], [edit(j[1], 0.5, "set"), edit(j[2], 0.2, where=[3, 4])], []]
    batch = torch.cat([images(), images()[:1]])
    with steering(model, rows, checkpoint()):
        out = model(batch)
    for i, row in enumerate(rows):
        with steering(model, row, checkpoint()):
            torch.testing.assert_close(out[i : i + 1], model(batch[i : i + 1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(out[2], model(batch)[2])
    with pytest.raises(SteerError, match="edits for 3 images, the batch has 2"), steering(model, rows, checkpoint()):
        model(images())
    with pytest.raises(SteerError, match="not both"), steering(model, [rows[0], edit()], checkpoint()):
        pass


def test_edits_inside_edits_both_count():
    model = tiny()
    with steering(model, [edit(3, 0.5)]), steering(model, [edit(3, -0.5)]):
        torch.testing.assert_close(model(images()), tokens(3), rtol=1e-4, atol=1e-4)
    assert hooks(model) == 0


def test_another_thread_that_shares_the_model_is_not_steered():
    model = tiny()
    base, found = model(images()), []
    with steering(model, [edit(3, 2.0)]):
        thread = threading.Thread(target=lambda: found.append(model(images())))
        thread.start()
        thread.join()
        mine = model(images())
    assert torch.equal(found[0], base)
    assert not torch.equal(mine, base)


def test_prefix_tokens_are_changed_where_that_is_asked():
    x = tokens()
    out = apply(x, [edit(3, 0.5, where=[], prefix=True)])
    assert not torch.equal(out[:, 0], x[:, 0])
    assert torch.equal(out[:, 1:], x[:, 1:])
    with pytest.raises(SteerError, match="prefix token 1: there are 1"):
        apply(x, [edit(3, 0.5, prefix=[1])])
    cls = replace(checkpoint(), read=ReadConfig(layer=2, tokens="cls"))
    assert torch.equal(apply_edits(x, [Edit.of(cls, PEAK, 3, 0.5)], cls, n_prefix=1), out)


def test_a_mean_s_feature_is_moved_on_every_patch_alike():
    x, made = tokens(), fit(tokens()[:, 1:].reshape(-1, 128), tokens="mean")
    mean = x[:, 1:].mean(1)
    j = busy(1, made, mean)[0]
    out = apply_edits(x, [Edit.of(made, PEAK, j, 0, "ablate")], made, n_prefix=1)
    want = apply_edits(mean[:, None], [Edit.of(made, PEAK, j, 0, "ablate")], replace(made, read=ReadConfig(layer=2)))
    torch.testing.assert_close(out[:, 1:].mean(1), want[:, 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(SteerError, match="omit where"):
        apply_edits(x, [Edit.of(made, PEAK, j, 0, "ablate", [3])], made, n_prefix=1)


def test_activations_are_clamped_as_in_training():
    x, j = tokens(), busy(1)[0]
    made = fit(x[:, 1:].reshape(-1, 128).clamp(-0.5, 0.5), clamp=0.5)
    out = apply_edits(x, [Edit.of(made, PEAK, j, 0, "ablate")], made)
    f = made.codes(x.reshape(-1, 128).clamp(-0.5, 0.5)).dense()[:, j]
    want = x.reshape(-1, 128) - f[:, None] * made.sae.frozen().W_dec[j] / made.norm.factor
    torch.testing.assert_close(out.reshape(-1, 128), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_works_under_autocast(dtype: torch.dtype):
    model, j = tiny(), busy(1)[0]
    edits = [edit(j, 0.5, "set"), edit(5, 0.3)]
    with torch.autocast("cpu", dtype):
        base = model.record(images(), [model.site(2)])[model.site(2)]
        with steering(model, edits, checkpoint()):
            seen = model.record(images(), [model.site(2)])[model.site(2)]
            out = model(images())
    assert seen.dtype == base.dtype
    assert out.isfinite().all()
    torch.testing.assert_close(seen, apply(base, edits), rtol=0, atol=0)
    # The edit itself is in float32, however the model computes.
    torch.testing.assert_close(seen.double(), reference(base.float(), edits, checkpoint()), rtol=1e-2, atol=1e-3)


def test_half_precision_activations_stay_in_it():
    x, j = tokens().bfloat16(), busy(1)[0]
    out = apply(x, [edit(j, 0.5, "set", [3])])
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[:, [0, *range(1, 4), *range(5, 145)]], x[:, [0, *range(1, 4), *range(5, 145)]])


def _wrap(model: Tiny) -> Any:
    return torch.compile(model, backend="eager")


def _whole(model: Tiny) -> Any:
    model.compile(backend="eager")
    return model


def _each_block(model: Tiny) -> Any:
    for block in model.blocks:
        block.compile(backend="eager")
    return model


def _each_block_wrapped(model: Tiny) -> Any:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="eager")  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("compiled", [_wrap, _whole, _each_block, _each_block_wrapped])
def test_it_works_on_what_was_compiled_and_has_run(compiled: Callable[[Tiny], Any]):
    """A compiled graph does not look for hooks that came after it: the edit would be passed by in silence."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own future
        model = Tiny().eval().requires_grad_(False)
        call, edits = compiled(model), [edit(busy(1)[0], 0.5, "set")]
        base = call(images())
        with steering(tiny(), edits, checkpoint()):
            want = tiny()(images())
        before = hooks(model)
        for _ in range(2):
            with steering(call, edits, checkpoint()):
                assert torch.equal(call(images()), want)
            assert torch.equal(call(images()), base)
        assert torch.equal(Downstream.of(model, images(), "resid.2")(edits, checkpoint()), want)
        assert hooks(model) == before
    torch._dynamo.reset()


# Other forms of output.


class Maps(VisionModel):
    """A network whose blocks give maps or tuples, as told."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.grid, self.d_model, self.form = Grid(4, 4, 2), 6, form
        self.channels_last = form == "bhwc"
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.blocks = nn.ModuleList(_Block(form) for _ in range(3))
        self.transform = lambda image: torch.zeros(3, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        x: Any = self.stem(images)
        x = {"bchw": x, "bhwc": x.permute(0, 2, 3, 1), "bchw strided": x.contiguous(memory_format=torch.channels_last)}.get(self.form, x)
        for block in self.blocks:
            x = block(x)
            while isinstance(x, tuple):
                assert x[1] == "more"
                x = x[0]
        return x  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.linear = form, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        y = x + (self.linear(x) if self.form == "bhwc" else self.linear(x.movedim(1, -1)).movedim(-1, 1)).tanh()
        return {"tuple": (y, "more"), "nested": ((y, "more"), "more")}.get(self.form, y)


@pytest.mark.parametrize("form", ["bchw", "bchw strided", "bhwc", "tuple", "nested"])
def test_maps_and_tuples_are_written_back_in_their_own_form(form: str):
    model = Maps(form).eval().requires_grad_(False)
    pixels, site = torch.randn(2, 3, 8, 8), model.site(1)
    x, base = model.record(pixels, [site])[site], model(pixels)
    made = fit(x.reshape(-1, 6), 1, options={"d_sae": 16, "k": 3})
    edits = [Edit.of(made, PEAK, busy(1, made, x)[0], 0.5, "set", [0, 5])]
    with steering(model, edits, made):
        seen, out = model.record(pixels, [site])[site], model(pixels)
    assert torch.equal(seen, apply_edits(x, edits, made))
    raw = model.put_tokens(base, seen) if form == "bhwc" else seen.transpose(1, 2).reshape(2, 6, 4, 4)
    want = model.blocks[2](raw)
    while isinstance(want, tuple):
        want = want[0]
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    assert out.stride() == base.stride()
    assert torch.equal(Downstream.of(model, pixels, site)(edits, made), out)
    with steering(model, [replace(edits[0], strength=0.0, mode="add")], made):
        assert torch.equal(model(pixels), base)


def test_a_model_that_reads_tokens_its_own_way_must_say_how_to_write_them():
    class Own(Maps):
        def tokens(self, output: Any) -> Tensor:
            return super().tokens(output).flip(1)

    class Both(Own):
        def put_tokens(self, output: Any, tokens: Tensor) -> Any:
            return super().put_tokens(output, tokens.flip(1))

    move = Edit("resid.1", torch.ones(6), 1.0)
    own = Own("bchw")
    with pytest.raises(ModelError, match="to steer it, override `put_tokens` too"), steering(own, [move]):
        own(torch.randn(1, 3, 8, 8))
    model = Both("bchw").eval()
    pixels = torch.randn(1, 3, 8, 8)
    with torch.no_grad(), steering(model, [replace(move, where=[2])]):
        seen = model.record(pixels, [model.site(1)])[model.site(1)]
    base = model.record(pixels, [model.site(1)])[model.site(1)]
    assert ((seen - base) != 0).any(-1).nonzero()[:, 1].tolist() == [2]


def test_a_site_that_does_not_run_is_told():
    class Idle(Maps):
        def forward(self, images: Tensor) -> Tensor:
            return self.blocks[0](self.stem(images))  # type: ignore[no-any-return]

    model = Idle("bchw")
    with pytest.raises(ModelError, match=r"resid\.1 did not run"), steering(model, [Edit("resid.1", torch.ones(6), 1.0)]):
        model(torch.randn(1, 3, 8, 8))
    with pytest.raises(ModelError, match="not every block up to it ran"):
        Downstream.of(model, torch.randn(1, 3, 8, 8), "resid.1")
