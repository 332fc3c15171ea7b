"""`Checkpoint`: usable on raw activations, whole or not there, and refused where it does not fit."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from saev_core.activations.store.meta import StoreMeta
from saev_core.config.base import PluginRef
from saev_core.config.stages import ReadConfig
from saev_core.errors import CheckpointError, ShapeError
from saev_core.plugins.registry import installed
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.norm import Norm
from saev_core.sae.topk import TopK, TopKConfig

STORE = {"model": {"name": "tiny", "n_blocks": 4}, "dataset": {"name": "shapes"}, "transform": "resize"}
SHAPE: dict[str, Any] = {"rows": 2, "cols": 2, "patch_px": 8, "d_model": 8, "n_images": 4}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def meta(**changed: Any) -> StoreMeta:
    return StoreMeta.model_validate({**STORE, **SHAPE, **changed})


def checkpoint(**changed: Any) -> Checkpoint:
    sae = TopK(TopKConfig(d_in=8, d_sae=20, k=3), torch.Generator().manual_seed(0))
    norm = Norm(torch.arange(8.0), 0.37)
    store = {"fingerprint": meta().fingerprint, **meta().model_dump(mode="json", exclude={"versions"})}
    made = Checkpoint(sae, norm, ref_of(sae), "resid.2", ReadConfig(layer=2, heldout=0.25), store, {"lr": 1e-3})
    return replace(made, **changed)


def test_it_takes_and_gives_raw_activations() -> None:
    made, x = checkpoint(), torch.randn(30, 8) * 5 + 3
    codes = made.codes(x)
    assert torch.equal(codes.dense(), made.sae.codes((x - torch.arange(8.0)) * 0.37).dense())
    torch.testing.assert_close(made.decode(codes), made.sae.decode(codes) / 0.37 + torch.arange(8.0))
    with pytest.raises(ShapeError):
        made.codes(torch.zeros(3, 9))


def test_everything_comes_back(tmp_path: Path) -> None:
    made = checkpoint().with_card({"nmse": 0.25})
    made.save(tmp_path / "a")
    loaded = Checkpoint.load(tmp_path / "a")
    for name in ("ref", "site", "read", "store", "train", "card"):
        assert getattr(loaded, name) == getattr(made, name)
    assert isinstance(loaded.sae, TopK)
    assert loaded.sae.cfg == made.sae.cfg
    assert loaded.norm.scale == made.norm.scale
    assert torch.equal(loaded.norm.mean, made.norm.mean)
    x = torch.randn(30, 8)
    assert torch.equal(loaded.codes(x).dense(), made.codes(x).dense())
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["checkpoint.json", "sae.safetensors"]


def test_how_fast_it_was_read_is_not_part_of_the_fingerprint() -> None:
    made = checkpoint()
    assert replace(made, read=ReadConfig(layer=2, heldout=0.25, n_threads=7)).fingerprint == made.fingerprint
    # The buffer decides the order of the vectors, and so the SAE.
    assert replace(made, read=ReadConfig(layer=2, heldout=0.25, buffer_mb=64)).fingerprint != made.fingerprint


OLD_CHECKPOINT = json.loads("""
{"saev_checkpoint": 1, "ref": {"name": "topk", "dist": "saev-core", "version": "0.1.0"}, "sae": {"d_in": 2, "n_sites": 1,
"d_sae": 3, "expansion": 16, "data_init": true, "normalize_w_dec": true, "remove_parallel_grads": true, "ghost": 0.0,
"resample_every": 0, "warmup_shape": "linear", "k": 1, "auxk": 0.03125, "k_aux": 0, "k_warmup": 0, "n_k_warmup": 1000},
"norm_scale": 0.5, "site": "resid.4", "read": {"layer": -2, "stream": "resid", "tokens": "patches", "clamp": null,
"labels": null, "heldout": 0.1, "split_seed": 0, "buffer_mb": 1024, "n_threads": 2}, "store": {"fingerprint": "ab"},
"train": {"config": {"n_tokens": 0, "batch_size": 4096, "lr": 0.0, "optimizer": "adam", "n_lr_warmup": 500,
"lr_decay": null, "decay": "linear", "clip_grad": 0.0, "ema": 0.0, "precision": "float32", "compile": false,
"dead_after": 10000000, "n_init": 65536, "seed": 0, "live": false, "checkpoint_every": 1000, "log_every": 25,
"evaluate_every": 0, "evaluate_vectors": 16384, "memory_gb": 0.0}, "lr": 0.002, "seed": 0}, "card": {}}
""")
"""`checkpoint.json` as it was written when 0 stood for automatic and for none."""


def test_a_checkpoint_written_with_zeros_for_auto_and_none_opens_with_its_fingerprint(tmp_path: Path) -> None:
    shapes = {"W_dec": (3, 2), "W_enc": (2, 3), "b_enc": (3,), "b_dec": (2,)}
    tensors = {name: torch.arange(math.prod(shape)).view(shape).float() + i for i, (name, shape) in enumerate(shapes.items())}
    save_file({**tensors, "norm.mean": torch.tensor([1.0, 2.0])}, tmp_path / "sae.safetensors")
    digest = hashlib.sha256((tmp_path / "sae.safetensors").read_bytes()).hexdigest()
    (tmp_path / "checkpoint.json").write_text(json.dumps({**OLD_CHECKPOINT, "sha256": digest}))
    made = Checkpoint.load(tmp_path)
    assert made.fingerprint == "2df7c30e33f7a22d99c888ddab3d669cebca0db61fc3e1b4e10c79cade92f8a6"
    assert (made.sae.cfg.d_sae, made.sae.cfg.resample_every) == (3, None)
    assert isinstance(made.sae, TopK)
    assert (made.sae.k, made.sae.cfg.k_aux, made.sae.cfg.k_warmup) == (1, "auto", None)


def test_other_programs_read_it_without_us(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "sae.safetensors")
    assert {"W_enc", "W_dec", "b_enc", "b_dec", "norm.mean"} == tensors.keys()
    np.testing.assert_allclose(np.linalg.norm(tensors["W_dec"], axis=1), 1, rtol=1e-5)


def test_the_card_is_not_part_of_the_fingerprint_and_the_weights_are() -> None:
    made = checkpoint()
    assert made.with_card({"nmse": 1.0}).fingerprint == made.fingerprint
    before = made.fingerprint
    with torch.no_grad():
        made.sae.b_dec += 1e-3
    assert made.fingerprint != before
    assert checkpoint(norm=Norm(torch.zeros(8), 0.37)).fingerprint != before
    assert checkpoint(site="resid.1").fingerprint != before


def test_a_new_card_leaves_the_weights_file_alone(tmp_path: Path) -> None:
    made = checkpoint()
    made.save(tmp_path / "a")
    before = (tmp_path / "a" / "sae.safetensors").stat()
    made.with_card({"nmse": 0.5}).save(tmp_path / "a")
    after = (tmp_path / "a" / "sae.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert Checkpoint.load(tmp_path / "a").card == {"nmse": 0.5}


def test_saving_over_another_replaces_it(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "a")
    other = checkpoint(norm=Norm(torch.ones(8), 2.0))
    other.save(tmp_path / "a")
    assert Checkpoint.load(tmp_path / "a").norm.scale == 2.0
    assert names(tmp_path) == ["a"]


def test_a_replacement_cut_off_between_its_renames_is_put_back(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "a")
    (tmp_path / ".incomplete").mkdir()
    (tmp_path / "a").rename(tmp_path / ".incomplete" / "a.old")
    assert not list(tmp_path.glob("*/checkpoint.json"))
    assert Checkpoint.load(tmp_path / "a").norm.scale == 0.37


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="contains files that are not a checkpoint"):
        checkpoint().save(tmp_path / "a")
    assert names(tmp_path / "a") == ["thesis.tex"]


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        checkpoint().with_card({"nmse": float("nan")}).save(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint().save(tmp_path / "file" / "a")
    assert names(tmp_path) == ["file"]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        saved = json.loads((folder / "checkpoint.json").read_text())
        change(saved)
        (folder / "checkpoint.json").write_text(json.dumps(saved))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "sae.safetensors").unlink(), "is not a checkpoint"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "is not a checkpoint"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"a": '), "is damaged"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "has checkpoint format None"),
        (lambda folder: os.truncate(folder / "sae.safetensors", 100), "checksum mismatch"),
        (edit(lambda saved: saved.update(saev_checkpoint=99)), "format 99, this version reads 1"),
        (edit(lambda saved: saved["ref"].update(name="topkk", dist="")), "cannot be built: no sae plugin named 'topkk'"),
        (edit(lambda saved: saved["sae"].update(k="many")), "sae.options.k"),
        (edit(lambda saved: saved["sae"].update(d_sae=21)), "does not match its SAE"),
        (edit(lambda saved: saved.pop("norm_scale")), "does not match its SAE"),
    ],
)
def test_a_damaged_or_foreign_one_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    checkpoint().save(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoint.load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def store(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(meta=meta(**changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {"name": "clip"}}, "trained on model tiny.*has clip"),
        ({"model": {"name": "tiny", "n_blocks": 6}}, "trained on model"),
        ({"transform": "crop"}, "trained on transform"),
        ({"dataset": {"name": "photos"}}, "trained on dataset shapes.*has photos"),
        ({"d_model": 9}, "of width 8, the store has 9"),
        ({"n_images": 5}, "another store"),
    ],
)
def test_a_store_it_was_not_trained_on_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        checkpoint().check(store(**changed))


def test_its_own_store_and_other_images_of_the_same_model_are_let_in() -> None:
    checkpoint().check(store())
    checkpoint().check(store(dataset={"name": "photos"}, n_images=9), same_data=False)
    with pytest.raises(CheckpointError, match="trained on model"):
        checkpoint().check(store(model={"name": "clip"}), same_data=False)


def test_an_option_that_a_later_version_adds_leaves_the_fingerprint() -> None:
    class Later(TopKConfig):
        added: int = 3

    sae = TopK(TopKConfig(d_in=4, d_sae=8, k=2))
    old = Checkpoint(sae, Norm.identity(4), {"name": "topk"}, "resid.0", ReadConfig())
    before = old.fingerprint
    sae.cfg = Later(d_in=4, d_sae=8, k=2)
    assert old.fingerprint == before
    sae.cfg = Later(d_in=4, d_sae=8, k=2, added=4)
    assert old.fingerprint != before


# What every installed variant keeps, on raw activations.

VARIANTS = [plugin.name for plugin in installed("sae")]


def raw(name: str, clamp: float | None = None) -> tuple[Checkpoint, torch.Tensor]:
    """A checkpoint of a variant, of two joined sites, and raw vectors `[2, 3, 5, 24]`, far wider than a clamp of 1."""
    sae = make_sae(PluginRef(name=name, options={"d_sae": 40}), 24, n_sites=2)
    x = 5 * torch.randn(2, 3, 5, 24, generator=torch.Generator().manual_seed(1))
    norm = Norm.of(x.clamp(-1, 1).view(-1, 24), n_sites=2)
    return Checkpoint(sae, norm, ref_of(sae), "resid.1+2", ReadConfig(layer=(1, 2), clamp=clamp)), x


@pytest.mark.parametrize("name", VARIANTS)
def test_codes_and_reconstructions_are_of_clamped_vectors_as_in_training(name: str) -> None:
    made, x = raw(name, clamp=1.0)
    free, bounded = replace(made, read=ReadConfig(layer=(1, 2))), x.view(-1, 24).clamp(-1, 1)
    assert torch.equal(made.codes(x.view(-1, 24)).dense(), free.codes(bounded).dense())
    assert torch.equal(made.reconstruct(x.view(-1, 24)), free.reconstruct(bounded))
    assert not torch.equal(free.codes(x.view(-1, 24)).dense(), free.codes(bounded).dense())
    assert float(x.abs().max()) > 1  # not clamped in place


@pytest.mark.parametrize("name", VARIANTS)
def test_leading_axes_are_rows_in_order(name: str) -> None:
    made, x = raw(name)
    flat = x.view(-1, 24)
    codes, wanted = made.codes(x), made.codes(flat)
    assert len(codes) == 30
    assert torch.equal(codes.dense(), wanted.dense())
    assert torch.equal(made.reconstruct(x), made.reconstruct(flat).view(2, 3, 5, -1))
    dense = wanted.dense()
    torch.testing.assert_close(made.decode(dense), made.decode(wanted), rtol=1e-4, atol=1e-4)
    assert torch.equal(made.decode(dense.view(2, 3, 5, -1)), made.decode(dense).view(2, 3, 5, -1))
    assert torch.equal(made.reconstruct(flat[0]), made.reconstruct(flat[:1])[0])
    assert len(made.codes(x[:0])) == 0
    assert made.reconstruct(x[:0]).shape == (0, 3, 5, made.sae.d_out)


@pytest.mark.parametrize("name", VARIANTS)
def test_another_width_is_a_shape_error(name: str) -> None:
    made, _ = raw(name)
    for wrong in (torch.zeros(2, 3, 25), torch.zeros(25), torch.zeros(0, 12)):
        for call in (made.codes, made.reconstruct):
            with pytest.raises(ShapeError, match=r"activations have width \d+, this SAE takes 24"):
                call(wrong)
    with pytest.raises(ShapeError, match="this SAE has 40 features"):
        made.decode(torch.zeros(2, 3, 41))
