"""`Probe` and `fit_probes`: as torch's own AdamW trains them one by one, on raw activations, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from killed import killed_before_rename

from saev_core.activations.store.meta import StoreMeta
from saev_core.errors import ProbeError
from saev_core.tasks.fit_probes import ProbeSetting, Scaling, fit_probes, predictions, shuffled, train_test_indices
from saev_core.tasks.probe import Probe

POINTS = [ProbeSetting(1e-2, 0.0), ProbeSetting(3e-2, 0.1), ProbeSetting(1e-1, 1.0)]
STORE = {"model": {"name": "tiny", "n_blocks": 4}, "dataset": {"name": "shapes"}, "transform": "resize"}


def meta(**changed: Any) -> Any:
    shape = {"rows": 2, "cols": 2, "patch_px": 8, "d_model": 6, "n_images": 4}
    return SimpleNamespace(meta=StoreMeta.model_validate({**STORE, **shape, **changed}))


def data(n: int = 90, d: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centre = 2 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    # One dimension far away and one that never changes: standardising must cope.
    x = (centre[y] + torch.randn(n, d, generator=generator, dtype=torch.float64)) * torch.tensor([1, 100, 1e-2, 1, 1, 0]) + 7
    return x, y


def probe(**changed: Any) -> Probe:
    made: dict[str, Any] = {"weight": torch.arange(18.0).reshape(3, 6), "bias": torch.tensor([1.0, 2.0, 3.0]), "classes": ["a", "b", "c"]}
    return Probe(**{**made, "site": "resid.2", "tokens": "cls", "store": STORE, "card": {"accuracy": 0.5}, **changed})


def by_torch(
    batches: Any, scaling: Scaling, point: ProbeSetting, epochs: int, anneal: bool, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    weight = torch.zeros(classes, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [weight], "weight_decay": point.weight_decay}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=point.lr)
    curve = []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = point.lr * (0.5 * (1 + np.cos(np.pi * epoch / epochs)) if anneal else 1.0)
        losses, n = 0.0, 0
        for x, y in batches(epoch):
            logits = (x - scaling.mean) * scaling.scale @ weight.T + bias
            loss = torch.nn.functional.cross_entropy(logits, y, ignore_index=-1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            kept = int((y >= 0).sum())
            losses, n = losses + float(loss.detach()) * kept, n + kept
        curve.append(losses / n)
    weight, bias = weight.detach(), bias.detach()
    raw = weight * scaling.scale
    return raw, bias - raw @ scaling.mean, curve


@pytest.mark.parametrize("anneal", [True, False])
def test_all_points_in_one_pass_are_what_torch_trains_one_by_one(anneal: bool) -> None:
    x, y = data()
    y[::7] = -1
    batches = shuffled(x, y, 16, seed=3)
    fitted = fit_probes(batches, 6, 3, POINTS, epochs=4, anneal=anneal, dtype=torch.float64)
    scaling = Scaling.of([x[y >= 0]])
    for each, point in zip(fitted, POINTS, strict=True):
        weight, bias, curve = by_torch(batches, scaling, point, 4, anneal)
        assert each.point == point
        torch.testing.assert_close(each.weight, weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(each.bias, bias, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(each.curve, curve, rtol=1e-9)


def test_a_point_does_not_depend_on_its_neighbours() -> None:
    x, y = data()
    together = fit_probes(shuffled(x, y, 16, 0), 6, 3, POINTS, epochs=2, dtype=torch.float64)
    (alone,) = fit_probes(shuffled(x, y, 16, 0), 6, 3, POINTS[1:2], epochs=2, dtype=torch.float64)
    torch.testing.assert_close(together[1].weight, alone.weight, rtol=1e-9, atol=1e-12)


def test_shares_that_are_all_one_class_are_labels() -> None:
    x, y = data()
    hard = fit_probes(shuffled(x, y, 16, 0), 6, 3, POINTS, epochs=2, dtype=torch.float64)
    soft = fit_probes(shuffled(x, torch.nn.functional.one_hot(y).double(), 16, 0), 6, 3, POINTS, epochs=2, dtype=torch.float64)
    for a, b in zip(hard, soft, strict=True):
        assert torch.equal(a.weight, b.weight)


def test_shares_train_towards_the_mixture() -> None:
    """A vector that is always half one class and half another ends at one half each."""
    x, shares = torch.randn(64, 6), torch.tensor([0.5, 0.5, 0.0]).repeat(64, 1)
    shares[::2] *= 0.5  # says half as much, of the same
    (fitted,) = fit_probes(shuffled(x, shares, 16, 0), 6, 3, [ProbeSetting(0.3, 0.0)], epochs=30)
    p = (x @ fitted.weight.T + fitted.bias).softmax(-1).mean(0)
    torch.testing.assert_close(p, torch.tensor([0.5, 0.5, 0.0]), atol=0.02, rtol=0)


def test_an_ignored_label_really_is_ignored() -> None:
    x, y = data()
    y[::5] = -1
    all_of_it = fit_probes(lambda epoch: [(x, y)], 6, 3, POINTS, epochs=3)
    x[y < 0] = torch.nan  # not even read
    for a, b in zip(all_of_it, fit_probes(lambda epoch: [(x, y)], 6, 3, POINTS, epochs=3), strict=True):
        assert torch.equal(a.weight, b.weight)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    x, y = data()

    def weight(seed: int) -> torch.Tensor:
        return fit_probes(shuffled(x, y, 16, seed), 6, 3, POINTS, epochs=2)[0].weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_it_learns_on_raw_activations() -> None:
    x, y = data(600)
    fitted = fit_probes(shuffled(x[:400].float(), y[:400], 64, 0), 6, 3, POINTS, epochs=20)
    said = predictions(fitted, x[400:].float())
    assert said.shape == (3, 200)
    assert float((said == y[400:]).double().mean(1).max()) > 0.9
    made = Probe(fitted[1].weight, fitted[1].bias, ["a", "b", "c"], "resid.2")
    assert torch.equal(made(x[400:]).argmax(-1), said[1])


def test_streamed_moments_are_those_of_all_at_once() -> None:
    x, _ = data()
    scaling = Scaling.of(torch.split(x.float(), 7))
    torch.testing.assert_close(scaling.mean, x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(1 / scaling.scale[:2], x.std(0, correction=0)[:2], rtol=1e-5, atol=0)
    assert torch.isfinite(scaling.scale).all()


def test_split_is_by_class_and_always_the_same() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] + [-1] * 9)
    train, val = train_test_indices(labels, 0.2, 0)
    assert np.bincount(labels[val]).tolist() == [10, 2]
    assert 60 in train  # the class with a single image is trained on
    assert sorted([*train, *val]) == list(range(61))
    assert np.array_equal(val, train_test_indices(labels, 0.2, 0)[1])
    assert not np.array_equal(val, train_test_indices(labels, 0.2, 1)[1])
    train, val = train_test_indices(20, 0.25, 0)
    assert len(val) == 5
    assert not set(train) & set(val)


def test_everything_comes_back(tmp_path: Path) -> None:
    made = probe()
    made.save(tmp_path / "probe")
    loaded = Probe.load(tmp_path / "probe")
    assert torch.equal(loaded.weight, made.weight)
    assert torch.equal(loaded.bias, made.bias)
    for name in ("classes", "site", "tokens", "store", "card"):
        assert getattr(loaded, name) == getattr(made, name)
    probe(bias=torch.zeros(3)).save(tmp_path / "probe")
    assert not Probe.load(tmp_path / "probe").bias.any()
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def test_a_replacement_killed_between_its_renames_is_put_back(tmp_path: Path) -> None:
    probe().save(tmp_path / "a")
    killed_before_rename(
        2,
        f"""
from saev_core.tasks.probe import Probe
found = Probe.load({str(tmp_path / "a")!r})
found.card["accuracy"] = 0.75
found.save({str(tmp_path / "a")!r})
""",
    )
    assert not (tmp_path / "a").exists()
    assert Probe.load(tmp_path / "a").card == {"accuracy": 0.5}
    probe(card={"accuracy": 0.9}).save(tmp_path / "a")
    assert Probe.load(tmp_path / "a").card == {"accuracy": 0.9}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_an_earlier_version_was_replacing_when_it_was_killed_is_put_back(tmp_path: Path) -> None:
    probe().save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.4711.old")
    assert Probe.load(tmp_path / "a").card == {"accuracy": 0.5}


def test_damage_and_strangers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="not a probe"):
        Probe.load(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ProbeError, match="something other than a probe"):
        probe().save(tmp_path / "other")
    folder = probe().save(tmp_path / "probe")
    weights = bytearray((folder / "probe.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "probe.safetensors").write_bytes(weights)
    with pytest.raises(ProbeError, match="checksum"):
        Probe.load(folder)
    saved = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps({**saved, "saev_probe": 9}))
    with pytest.raises(ProbeError, match="format 9"):
        Probe.load(folder)
    (folder / "probe.json").write_text("{")
    with pytest.raises(ProbeError, match="damaged"):
        Probe.load(folder)
    with pytest.raises(ProbeError, match="not JSON"):
        probe(card={"accuracy": float("nan")}).save(tmp_path / "probe")


def test_check_refuses_what_does_not_fit() -> None:
    probe().check(meta(), site="resid.2", classes=["a", "b", "c"])
    probe().check(meta(dataset={"name": "other"}))  # other images are welcome
    for store, asked, says in (
        (meta(model={"name": "clip"}), {}, "model tiny.*clip"),
        (meta(transform="crop"), {}, "transform"),
        (meta(d_model=8), {}, "6 wide"),
        (meta(), {"site": "resid.3"}, "resid.2, not resid.3"),
        (meta(), {"classes": ["a", "c", "b"]}, "3 classes"),
    ):
        with pytest.raises(ProbeError, match=says):
            probe().check(store, **asked)
    with pytest.raises(ProbeError, match="6 wide"):
        probe()(torch.zeros(2, 7))
    with pytest.raises(ProbeError, match="3 classes"):
        probe(bias=torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "n_classes", "says"),
    [
        (lambda x, y: x.__setitem__(3, torch.nan), 3, "not finite"),
        (lambda x, y: x.__setitem__((3, 0), torch.inf), 3, "not finite"),
        (lambda x, y: y.__setitem__(0, 3), 3, "label 3 is outside the 3 classes"),
        (lambda x, y: y.__setitem__(0, -2), 3, "label -2 is outside"),
        (lambda x, y: y.fill_(-1), 3, "no vector has a label"),
        (lambda x, y: y.fill_(0), 1, "use a data set with two"),
    ],
)
def test_bad_input_is_one_clear_line(change: Any, n_classes: int, says: str) -> None:
    x, y = data()
    change(x, y)
    with pytest.raises(ProbeError, match=says) as caught:
        fit_probes(shuffled(x, y, 16, 0), 6, n_classes, POINTS, epochs=1)
    assert "\n" not in str(caught.value)
    if "finite" in says:
        scaling = Scaling(torch.zeros(6), torch.ones(6))
        with pytest.raises(ProbeError, match=says):
            fit_probes(shuffled(x, y, 16, 0), 6, n_classes, POINTS, epochs=1, scaling=scaling)


def test_split_without_labels_or_with_a_share_of_all_is_refused() -> None:
    with pytest.raises(ProbeError, match="no image has a label"):
        train_test_indices(np.full(9, -1), 0.2, 0)
    with pytest.raises(ProbeError, match="--val-share"):
        train_test_indices(np.zeros(9, int), 0.0, 0)
    with pytest.raises(ProbeError, match="--val-share"):
        train_test_indices(np.arange(9), 0.2, 0)
