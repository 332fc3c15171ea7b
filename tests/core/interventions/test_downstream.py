"""`Downstream` gives the bits of the whole pass."""

from __future__ import annotations

import pytest
import torch
from core.interventions.steered import PEAK, busy, checkpoint, edit, hooks, images, tiny, tokens

from saev_core import Edit, steering
from saev_core.errors import ModelError, ShapeError
from saev_core.interventions.apply import N_CODES_KEPT
from saev_core.interventions.downstream import Downstream, resume_from
from saev_core.interventions.edit import MODES


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_rest_gives_the_bits_of_the_whole_pass(layer: int):
    model = tiny()
    downstream = Downstream.of(model, images(), model.site(layer))
    assert torch.equal(downstream.tokens, tokens(layer))
    assert torch.equal(downstream(), model(images()))
    made = checkpoint(layer)
    for mode in MODES:
        edits = [Edit.of(made, PEAK, j, 0.5, mode) for j in busy(2, made, tokens(layer)[:, 1:])]
        with steering(model, edits, made):
            want = model(images())
        assert torch.equal(downstream(edits, made), want)
        last = model.site(3)
        assert torch.equal(downstream.record([last], edits, made)[last], want)
    assert torch.equal(downstream(), model(images()))  # nothing was changed in what is remembered
    assert hooks(model) == 0


def test_the_first_blocks_do_not_run_again():
    model = tiny()
    downstream, ran = Downstream.of(model, images(), "resid.1"), []
    handles = [block.attn.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(model.blocks)]
    try:
        downstream([edit()])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [2, 3]
    with pytest.raises(ModelError, match=r"resid\.0 is before resid\.1"):
        downstream.record([model.site(0)])
    with pytest.raises(ModelError, match=r"resid\.2 is before resid\.3"):
        Downstream.of(model, images(), "resid.3")([edit()])


def test_recorded_tokens_go_on_through_the_rest():
    model = tiny()
    base = model(images())
    assert torch.equal(resume_from(model, "resid.2", tokens()), base)
    assert torch.equal(resume_from(model, "resid.2", tokens(), images()), base)
    torch.testing.assert_close(resume_from(model, "resid.2", tokens().half()), base, rtol=1e-2, atol=5e-2)
    with pytest.raises(ShapeError, match=r"not \[144, 128\]"):
        resume_from(model, "resid.2", tokens()[:, 1:])


def test_variants_of_one_image_run_in_one_batch():
    model, features = tiny(), busy(4)
    downstream = Downstream.of(model, images(), "resid.2").first(1)
    variants = [[edit(j, 0.8, "set")] for j in features] + [[]]
    out = downstream(variants, checkpoint())
    assert out.shape == (5, 145, 128)
    for i, one in enumerate(variants):
        torch.testing.assert_close(out[i], downstream(one, checkpoint())[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="choose one with first"):
        Downstream.of(model, images(), "resid.2").times(3)


def test_a_slider_encodes_the_site_s_tokens_once():
    downstream, j = Downstream.of(tiny(), images()[:1], "resid.2"), busy(2)
    for strength in (0.1, 0.5, 0.9):
        downstream([edit(j[0], strength, "set"), edit(j[1], 0, "ablate")], checkpoint())
    downstream([[edit(j[0], 0.2, "set")], [edit(j[1], 0, "ablate")]], checkpoint())
    (codes,) = downstream.known.values()
    assert len(codes) == 144
    downstream([edit(j[0], 0.5, "set", [3, 4])], checkpoint())
    assert len(downstream.known) == 2
    assert not downstream.on(downstream.tokens + 1).known
    for i in range(40):  # what is kept does not grow for ever
        downstream([edit(j[0], 0.5, "set", [i])], checkpoint())
    assert len(downstream.known) <= N_CODES_KEPT
