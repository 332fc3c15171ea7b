"""Edits against their definition in float64, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from core.interventions.steered import PEAK, apply, busy, checkpoint, edit, fit, hooks, images, reference, tiny, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core import Edit, steering
from saev_core.config.stages import ReadConfig
from saev_core.errors import ModelError, SaevError, SteerError, UsageError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.edit import MODES

MODE = st.sampled_from(MODES)
STRENGTH = st.floats(-3, 3, allow_nan=False)
FEATURE = st.integers(0, 63)
PATCHES = st.one_of(st.none(), st.lists(st.integers(0, 143), max_size=8))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(FEATURE, STRENGTH, MODE, PATCHES), min_size=1, max_size=4))
def test_edits_are_what_their_definition_says(drawn: list[tuple[int, float, str, Any]]):
    x = tokens()[:, :20]
    edits = [edit(j, s, mode, None if where is None else [p % 19 for p in where]) for j, s, mode, where in drawn]
    torch.testing.assert_close(apply(x, edits).double(), reference(x, edits, checkpoint()), rtol=1e-5, atol=2e-5)


@given(FEATURE, PATCHES)
@settings(max_examples=25, deadline=None)
def test_an_edit_of_strength_zero_changes_nothing(feature: int, where: Any):
    x = tokens()
    assert apply(x, [edit(feature, 0.0, "add", where)]) is x
    assert apply(x, [edit(feature, -0.0, "add", where)]) is x
    assert apply(x, [edit(feature, 1.0, "scale", where)]) is x
    for mode in MODES:
        assert apply(x, [edit(feature, 0.7, mode, [])]) is x


@given(FEATURE, MODE, STRENGTH, PATCHES)
@settings(max_examples=40, deadline=None)
def test_what_is_not_chosen_and_where_nothing_changes_keeps_its_bits(feature: int, mode: str, strength: float, where: Any):
    x = tokens()
    out = apply(x, [edit(feature, strength, mode, where)])
    kept = torch.ones(144, dtype=torch.bool)
    kept[list(range(144)) if where is None else where] = False
    assert torch.equal(out[:, 1:][:, kept], x[:, 1:][:, kept])
    assert torch.equal(out[:, 0], x[:, 0])  # the prefix token too
    f = checkpoint().codes(x[:, 1:].reshape(-1, 128)).dense().view(2, 144, -1)[..., feature]
    if mode in ("scale", "ablate"):
        assert torch.equal(out[:, 1:][f == 0], x[:, 1:][f == 0])


@given(FEATURE, STRENGTH, STRENGTH)
@settings(max_examples=25, deadline=None)
def test_adding_is_linear_and_undone_by_its_opposite(feature: int, a: float, b: float):
    x = tokens()[:1, :10]
    one = apply(apply(x, [edit(feature, a)]), [edit(feature, b)])
    torch.testing.assert_close(one, apply(x, [edit(feature, a + b)]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(one, apply(x, [edit(feature, a), edit(feature, b)]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(apply(x, [edit(feature, a), edit(feature, -a)]), x, rtol=1e-5, atol=1e-5)


@given(FEATURE, STRENGTH)
@settings(max_examples=25, deadline=None)
def test_to_set_twice_is_to_set_once_and_the_last_of_two_counts(feature: int, strength: float):
    x = tokens()[:, :30]
    once = apply(x, [edit(feature, strength, "set")])
    assert torch.equal(apply(x, [edit(feature, strength, "set")] * 2), once)
    torch.testing.assert_close(
        apply(x, [edit(feature, 0.3, "add"), edit(feature, 2.0, "scale"), edit(feature, strength, "set")]), once, rtol=1e-5, atol=2e-5
    )


@given(FEATURE, PATCHES, STRENGTH)
@settings(max_examples=25, deadline=None)
def test_to_ablate_is_to_set_and_to_scale_to_zero(feature: int, where: Any, strength: float):
    x = tokens()
    gone = apply(x, [edit(feature, strength, "ablate", where)])
    assert torch.equal(gone, apply(x, [edit(feature, 0.0, "set", where)]))
    assert torch.equal(gone, apply(x, [edit(feature, 0.0, "scale", where)]))


@given(st.permutations(range(4)), st.lists(st.tuples(STRENGTH, MODE), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_the_order_of_edits_of_different_features_makes_no_difference(order: list[int], drawn: list[tuple[float, str]]):
    x = tokens()
    edits = [edit(j, s, mode) for j, (s, mode) in zip(busy(), drawn, strict=True)]
    assert torch.equal(apply(x, [edits[i] for i in order]), apply(x, edits))


def test_the_unit_is_the_largest_activation_and_the_norm_is_undone():
    made = checkpoint()
    assert made.norm.scale != 1
    j = busy(1)[0]
    x = tokens()
    peak = float(made.codes(x[:, 1:].reshape(-1, 128)).dense()[:, j].max())
    one = Edit.of(made, torch.full((64,), peak), j, 1.0)
    moved = apply_edits(x[:, 1:], [one], made) - x[:, 1:]
    want = peak * made.sae.frozen().W_dec[j] / made.norm.scale
    torch.testing.assert_close(moved, want.expand_as(moved), rtol=1e-4, atol=1e-4)


def test_ablating_every_feature_leaves_the_error_and_the_bias():
    made, x = checkpoint(), tokens()[:, 1:]
    flat = x.reshape(-1, 128)
    out = apply_edits(x, [Edit.of(made, 1.0, j, 0, "ablate") for j in range(64)], made)
    error = flat - made.reconstruct(flat)
    bias = made.norm.inverse(made.sae.frozen().b_dec)
    torch.testing.assert_close(out.reshape(-1, 128), error + bias, rtol=1e-4, atol=1e-4)


def test_known_codes_need_not_be_computed_again():
    x, j = tokens(), busy(1)[0]
    codes = checkpoint().codes(x.reshape(-1, 128))
    for mode in MODES:
        torch.testing.assert_close(apply(x, [edit(j, 0.4, mode)], codes=codes), apply(x, [edit(j, 0.4, mode)]), rtol=1e-6, atol=1e-6)
    with pytest.raises(SteerError, match="codes of 290 vectors for 288 tokens"):
        apply_edits(x[:, 1:], [edit(j, 0, "ablate")], checkpoint(), codes=codes)


def test_one_image_and_several_lists_of_edits_make_as_many_variants():
    x, j = tokens()[:1], busy(2)
    rows = [[edit(j[0], 0, "ablate")], [], [edit(j[1], 0.5, "set"), edit(j[0], 0.2)]]
    out = apply(x, rows)
    for i, row in enumerate(rows):
        assert torch.equal(out[i], apply(x, row)[0])
    assert torch.equal(apply(x, [[], [edit(3, 0.0)]]), x.expand(2, -1, -1))
    with pytest.raises(SteerError, match="edits for 3 images, the batch has 2"):
        apply(tokens(), rows)


def test_a_control_moves_as_far_along_another_direction():
    x, j = tokens(), busy(1)[0]
    one = edit(j, 0.0, "ablate")
    other = torch.randn(128, generator=torch.Generator().manual_seed(1))
    other *= one.direction.norm() / other.norm()
    moved, control = apply(x, [one]) - x, apply(x, [one.along(other)]) - x
    torch.testing.assert_close(control.norm(dim=-1), moved.norm(dim=-1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        control @ one.direction, moved.norm(dim=-1) * -(other @ one.direction) / one.direction.norm(), rtol=1e-2, atol=1e-2
    )


def test_gradients_go_through_as_if_activations_were_constant():
    x = tokens()[:1, :10].clone().requires_grad_()
    apply(x, [edit(busy(1)[0], 0, "ablate"), edit(5, 0.5)]).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


# What cannot be.


def refused() -> Iterator[tuple[str, Callable[[], Any], str]]:
    made, model = checkpoint(), tiny()

    def steer(edits: Any, checkpoints: Any = None) -> Any:
        with steering(model, edits, checkpoints):
            return model(images())

    nan = torch.full((1, 5, 128), torch.nan)
    yield "feature", lambda: edit(64), "feature 64: this SAE has features 0 to 63"
    yield "negative", lambda: edit(-1), "feature -1: this SAE has"
    yield "mode", lambda: edit(mode="multiply"), "unknown mode 'multiply'; use one of add, set, scale, ablate"
    yield "infinite", lambda: edit(strength=float("inf")), "finite"
    yield "nan direction", lambda: Edit("resid.2", torch.full((128,), torch.nan), 1), "finite"
    yield "no feature", lambda: Edit("resid.2", torch.ones(128), 1, "set"), "set needs the activation of a feature"
    yield "dead", lambda: Edit.of(made, torch.zeros(64), 3, 1.0), "feature 3 never fires"
    yield "index", lambda: Edit.of(made, torch.ones(65), 3, 1.0), "peak has 65 features, the SAE has 64"
    yield "patch", lambda: steer([edit(where=[144])]), "patch 144: there are 144 of them at resid.2"
    yield "patch below", lambda: edit(where=[-1]), "numbered from 0"
    yield "no SAE", lambda: steer([edit(mode="ablate")]), "pass checkpoints={'resid.2': checkpoint}"
    yield "no SAE to apply", lambda: apply_edits(tokens(), [edit(mode="ablate")]), "pass that site's checkpoint"
    yield "site", lambda: steer([replace(edit(mode="set"), site="resid.1")], made), "the edit is at resid.1, the SAE was trained at resid.2"
    yield "layer", lambda: steer([replace(edit(), site="resid.9")]), "blocks 0 to 3"
    yield "no site", lambda: steer([replace(edit(), site="nine")]), "is not a site"
    yield "width", lambda: steer([Edit("resid.2", torch.ones(64), 1)]), "64 wide, resid.2 is 128"
    yield "nan", lambda: apply_edits(nan, [edit()]), "the activations at resid.2 are not finite"
    yield (
        "other width",
        lambda: apply_edits(torch.ones(1, 4, 64), [Edit("resid.2", torch.ones(64), 1, "ablate", feature=1)], made),
        "takes 128",
    )


@pytest.mark.parametrize(("what", "act", "says"), list(refused()), ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_done_is_one_clear_line(what: str, act: Callable[[], Any], says: str):
    with pytest.raises((SteerError, ModelError, UsageError)) as caught:
        act()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hooks(tiny()) == 0


def test_an_sae_that_does_not_write_where_it_reads_is_refused():
    pytest.importorskip("saev_saes")
    joined = torch.cat([tokens(1), tokens(2)], -1).reshape(-1, 256)
    for sae, says in (("transcoder", "predicts one site from another"), ("crosscoder", "reads .* jointly"), ("topk", "reads .* jointly")):
        made = fit(joined, sae=sae, n_sites=2, options={"d_sae": 64, "k": 8} if sae != "crosscoder" else {"d_sae": 64})
        made = replace(made, site="resid.1+2", read=ReadConfig(layer=(1, 2)))
        with pytest.raises(SteerError, match=says):
            Edit.of(made, PEAK, 3)
    with pytest.raises(SteerError, match="mean over blocks"):
        Edit.of(replace(checkpoint(), read=ReadConfig(layer="mean")), PEAK, 3)


def test_an_sae_of_all_sites_is_steered_at_the_one_that_is_named():
    made = replace(checkpoint(), site="resid.all", read=ReadConfig(layer="all"))
    with pytest.raises(SteerError, match="select one, as in"):
        Edit.of(made, PEAK, 3)
    one = Edit.of(made, PEAK, busy(1)[0], 0, "ablate", site="resid.2")
    with steering(tiny(), [one], made):
        out = tiny()(images())
    assert not torch.equal(out, tiny()(images()))


@pytest.mark.parametrize("sae", ["relu", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_every_kind_of_sae_steers(sae: str):
    pytest.importorskip("saev_saes")
    x = tokens()[:, 1:]
    made = fit(x.reshape(-1, 128), sae=sae, options={"d_sae": 64})
    edits = [Edit.of(made, PEAK, j, 0.5, mode) for j, mode in zip(busy(4, made, x), MODES, strict=True)]
    out = apply_edits(x[:, :12], edits, made)
    torch.testing.assert_close(out.double(), reference(x[:, :12], edits, made, 0), rtol=1e-4, atol=1e-4)
    assert issubclass(SteerError, SaevError)
