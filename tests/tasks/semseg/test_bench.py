"""Known features: feature c indicates class c; a fifth one is uninformative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig
from saev_core.errors import SteerError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.edit import Edit
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.tasks.probe import Probe
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Site
from saev_tasks.semseg.bench import PatchBench
from saev_tasks.semseg.control import Sight, choose_by_patches, control_pixels
from saev_tasks.semseg.propose import propose, scores
from saev_tasks.shared.control_experiment import along
from saev_tasks.shared.patch_vectors import Classes, stored
from saev_tasks.shared.readout import Readout

SITE = Site(0)


N_CLASSES = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, Checkpoint, Probe, np.ndarray]:
    """24 images of 6 patches, 5 wide: axis c is class c. The SAE is the identity, one feature per axis."""
    rng = np.random.RandomState(0)
    labels = rng.randint(0, N_CLASSES, (24, 6))
    x = np.abs(rng.standard_normal((24, 6, 5))) * [0, 0, 0, 0, 1]
    np.put_along_axis(x, labels[..., None], rng.uniform(2, 4, (24, 6, 1)), 2)
    store = store_of(
        tmp_path_factory.mktemp("world") / "store", {SITE: torch.from_numpy(x).float()}, rows=2, cols=3, patch_px=2, dtype="float32",
        mask=labels.astype(np.uint16),
    )  # fmt: skip
    sae = ReLU(ReLUConfig(d_in=5, d_sae=5), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in sae.named_parameters():
            value.copy_(torch.eye(5) if value.ndim == 2 else torch.zeros(5))
            assert name
    made = Checkpoint(sae, Norm.identity(5), {"name": "relu", "dist": "saev-core", "version": "0"}, str(SITE), ReadConfig(layer=0), {})
    weight = torch.cat([torch.eye(N_CLASSES), torch.zeros(N_CLASSES, 1)], 1)
    probe = Probe(weight, torch.zeros(N_CLASSES), [f"c{i}" for i in range(N_CLASSES)], str(SITE))
    return store, made, probe, labels


def test_every_class_gets_its_own_feature_and_not_that_of_the_smallest_label(world: Any) -> None:
    store, made, probe, labels = world
    bench, classes = PatchBench(Readout(probe, made, store), np.arange(16)), Classes(probe.classes)
    for by in ("attribution", "difference"):
        found = propose(bench, labels[:16].reshape(-1), classes, 3, by)
        assert [found[c][0].feature for c in range(N_CLASSES)] == list(range(N_CLASSES))
        assert all(found[c][0].auroc == found[c][0].f1 == found[c][0].precision == found[c][0].recall == 1 for c in range(N_CLASSES))


def test_attribution_is_the_margin_that_ablation_takes(world: Any) -> None:
    store, made, probe, labels = world
    bench, truth = PatchBench(Readout(probe, made, store), np.arange(16)), labels[:16].reshape(-1)
    table = scores(bench, truth, Classes(probe.classes))
    logits = bench.before.view(-1, N_CLASSES).double().numpy()
    for c in range(N_CLASSES):
        mine = logits[truth == c]
        # All other logits are 0, so the margin is the logit itself, and comes entirely from the feature.
        assert table[c, c] == pytest.approx(mine[:, c].mean(), rel=1e-5)


def test_an_ignored_class_and_one_without_patches_have_no_proposals(world: Any) -> None:
    store, made, probe, labels = world
    bench = PatchBench(Readout(probe, made, store), np.arange(16))
    truth = np.where(labels[:16] == 2, -1, labels[:16]).reshape(-1)
    assert sorted(propose(bench, truth, Classes(probe.classes), 2)) == [0, 1, 3]
    assert sorted(propose(bench, truth, Classes(probe.classes, frozenset({1, 2})), 2)) == [0, 3]


def test_a_change_is_that_of_the_core(world: Any) -> None:
    store, made, probe, _ = world
    bench = PatchBench(Readout(probe, made, store), np.arange(24))
    x = torch.cat([x for _, x in stored(store, SITE, np.arange(24))])
    for features, strength in (([1], 0.0), ([0, 3], -2.0), ([4], 1.0)):
        edits = [Edit.of(made, 1.0, f, strength, "scale") for f in features]
        want = probe(apply_edits(x, edits, made))
        place, logits = bench.after(bench.scaled(features, strength))
        have = bench.before.clone()
        have[torch.from_numpy(place)] = logits
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)
        row, some = bench.patches_after(bench.scaled(features, strength))
        torch.testing.assert_close(some, want.view(-1, N_CLASSES)[torch.from_numpy(row)], atol=1e-5, rtol=1e-5)


def test_a_random_direction_has_the_same_length_on_the_same_patches(world: Any) -> None:
    store, made, probe, _ = world
    change = PatchBench(Readout(probe, made, store), np.arange(24)).scaled([0, 4], -1.0)
    other = along(change, torch.tensor([0.0, 3, 4, 0, 0]))
    assert (other.row == change.row).all()
    torch.testing.assert_close(other.delta.norm(dim=1), change.delta.norm(dim=1))


def test_suppressing_a_class_flips_it_all_and_nothing_else(world: Any) -> None:
    store, made, probe, labels = world
    classes = Classes(probe.classes)
    tried, bench = PatchBench(Readout(probe, made, store), np.arange(16)), PatchBench(Readout(probe, made, store), np.arange(16, 24))
    found = {c: [c, 4] for c in range(N_CLASSES)}
    sight = Sight(bench, labels[16:], classes, "patches")
    assert sight.counts.miou == 1
    rows = control_pixels(tried, labels[:16].reshape(-1), sight, found, sizes=(1, 2), strengths=(0.0, -1.0), draws=2)
    for row in rows:
        out = row.suppressed
        # At strength 0 all logits are equal and the first class wins; the first class itself needs a negative strength.
        assert (row.choice.features, row.choice.strength) == ([row.number], -1.0 if row.number == 0 else 0.0)
        assert (out.flipped, out.others_lost, out.iou, row.iou) == (1, 0, 0, 1)
        assert out.flipped_interval == (1, 1)
        assert row.random_features.flipped < 1
        assert row.passes


def test_where_no_set_is_good_enough_the_best_trade_is_taken(world: Any) -> None:
    store, made, probe, labels = world
    bench, classes = PatchBench(Readout(probe, made, store), np.arange(16)), Classes(probe.classes)
    truth = labels[:16].reshape(-1)
    chosen = choose_by_patches(bench, truth, 1, [4, 1], classes=classes, sizes=(1, 2), strengths=(0.5, 0.0), target=0.9, harm=0.0)
    assert (chosen.features, chosen.strength, chosen.flipped) == ([4, 1], 0.0, 1.0)
    hopeless = choose_by_patches(bench, truth, 1, [4], classes=classes, sizes=(1, 2), strengths=(0.0,), target=0.9, harm=0.0)
    assert hopeless.flipped == 0


def test_an_sae_after_the_probe_or_of_other_tokens_is_refused(world: Any) -> None:
    store, made, probe, _ = world
    later = Checkpoint(made.sae, made.norm, made.ref, "resid.3", made.read)
    with pytest.raises(SteerError, match=r"the probe reads resid\.0, before the SAE's resid\.3"):
        PatchBench(Readout(probe, later, store), np.arange(2))
    pooled = Checkpoint(made.sae, made.norm, made.ref, made.site, ReadConfig(layer=0, tokens="mean"))
    with pytest.raises(SteerError, match="an SAE of patches"):
        PatchBench(Readout(probe, pooled, store), np.arange(2))
    elsewhere = Probe(probe.weight, probe.bias, probe.classes, "resid.1")
    with pytest.raises(SteerError, match="the rest of the model must run"):
        PatchBench(Readout(elsewhere, made, store), np.arange(2))


def test_an_sae_of_all_sites_edits_the_one_that_the_probe_reads(world: Any) -> None:
    store, made, probe, _ = world
    joint = Checkpoint(made.sae, made.norm, made.ref, "resid.all", ReadConfig(layer="all"))
    benches = [PatchBench(Readout(probe, each, store), np.arange(24)) for each in (made, joint)]
    assert benches[1].readout.site == SITE
    (place, want), (same, have) = (bench.after(bench.scaled([1], 0.0)) for bench in benches)
    assert np.array_equal(place, same)
    assert torch.equal(have, want)
    edit = benches[1].readout.edit(1.0, 1, 0.0, "scale")
    assert torch.allclose(benches[1].readout.under(int(place[0]), [edit])[1], want[0], atol=1e-5)
