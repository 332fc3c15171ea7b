"""Fidelity: against hooks placed by hand, against scikit-learn, and in cases with a known result."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from saev_core.activations.sources.heldout import heldout_mask
from saev_core.cli import main
from saev_core.config.stages import ReadConfig
from saev_core.errors import CheckpointError, ModelError, SteerError, StoreError
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.norm import Norm
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.tasks.context import TaskContext
from saev_tasks.fidelity import HEADER, VARIANTS, Fidelity, FidelityConfig, errors, knn, linear, recovered, row_of_hits, spliced, zero_shot

SMALL = ["train.n_tokens=20000", "train.n_init=1024", "train.batch_size=512", "sae.options.d_sae=128", "sae.options.k=8"]


def make(folder: Path, *words: str, settings: tuple[str, ...] = ()) -> Run:
    assert main(["record", "--out", str(folder), *words, "--set", *SMALL, *settings]) == 0
    assert main(["train", str(folder)]) == 0
    return Run.open(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("fidelity") / "run", "--model", "tiny", "--dataset", "shapes:160", settings=("read.heldout=0.3",))


def measure(run: Run, **options: Any) -> dict[str, Any]:
    return Fidelity().call(TaskContext(run, "fidelity", device="cpu"), "measure", FidelityConfig.model_validate(options))


def by_hand(cx: TaskContext, ask: Any, images: np.ndarray) -> dict[str, Tensor]:
    """The result of `ask(pixels)` with the patches replaced by a hook."""
    model, made = cx.model(), cx.checkpoint()
    pixels = torch.stack([model.transform(cx.dataset()[int(i)].image) for i in images])
    new = {
        "original": lambda x: x,
        "sae": lambda x: made.reconstruct(x.reshape(-1, x.shape[-1])).view(x.shape),
        "zero": torch.zeros_like,
        "mean": made.norm.mean.expand_as,
    }
    found = {}
    for variant in VARIANTS:

        def hook(module: Any, args: Any, output: Tensor, variant: str = variant) -> Tensor:
            return torch.cat([output[:, :1], new[variant](output[:, 1:])], 1)

        handle = model.blocks[int(made.site.split(".")[1])].register_forward_hook(hook)
        try:
            with torch.no_grad():
                found[variant] = ask(pixels)
        finally:
            handle.remove()
    return found


def heldout(run: Run, cx: TaskContext) -> np.ndarray:
    read = cx.checkpoint().read
    return heldout_mask(cx.store().n_images, read.heldout, read.split_seed).nonzero()[0]


@pytest.mark.parametrize("from_images", [True, False])
def test_errors_are_those_of_hooks_placed_by_hand(run: Run, from_images: bool):
    cx = TaskContext(run, "fidelity", device="cpu")
    found = measure(run, from_images=from_images)
    tokens = by_hand(cx, cx.model(), heldout(run, cx))  # tiny outputs its last block's tokens
    for pool, pick in (("cls", lambda x: x[:, 0]), ("mean", lambda x: x[:, 1:].mean(1))):
        want = pick(tokens["original"]).double()
        spread = (want - want.mean(0)).square().sum()
        for variant in VARIANTS:
            fvu = float((pick(tokens[variant]).double() - want).square().sum() / spread)
            # Recorded activations are in half precision.
            assert found["outputs"][pool]["fvu"][variant] == pytest.approx(fvu, rel=2e-2 if not from_images else 1e-3, abs=1e-5)
    mean = found["outputs"]["mean"]
    assert mean["fvu"]["sae"] < mean["fvu"]["mean"] < mean["fvu"]["zero"]
    assert mean["fvu"]["recovered"]["zero"] > 0.9
    assert mean["cosine"]["original"] == pytest.approx(1)


def test_the_table_the_csv_and_the_results_say_the_same(run: Run):
    said: list[Any] = []
    cx = TaskContext(run, "fidelity", device="cpu", table=lambda rows, header: said.append((header, rows)))
    found = Fidelity().call(cx, "measure", FidelityConfig())
    ((header, rows),) = said
    assert header == HEADER
    with (run.path / "tasks" / "fidelity" / "fidelity.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [list(header), *rows]
    assert json.loads(run.results_path("fidelity").read_text()) == found
    assert [row[:2] for row in rows[:4]] == [["cls", name] for name in ("fvu", "cosine", "10-NN accuracy", "linear accuracy")]
    assert found["features"] == "cls"
    assert found["n_test"] == 48
    assert found["outputs"]["mean"]["linear accuracy"]["original"] > 0.8
    assert found["outputs"]["mean"]["linear accuracy"]["mean"] < 0.5
    assert found["zero_shot_absent"] == "the model has no text space"
    assert measure(run) == found  # reproducible


def test_the_command_line_does_it(run: Run, capsys: pytest.CaptureFixture[str]):
    assert main(["task", "fidelity", "measure", str(run.path), "--n-test", "8", "--n-train", "30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_test"] == 8


def test_images_without_classes_have_errors_alone(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "one").mkdir(parents=True)
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(tmp_path / "pictures" / "one" / f"{i}.png")
    settings = ("read.heldout=0.3", "train.n_tokens=2000", "train.batch_size=256")
    made = make(tmp_path / "run", "--model", "tiny", "--dataset", f"image-folder:{tmp_path / 'pictures'}", settings=settings)
    found = measure(made)
    assert found["classification_absent"] == "the store does not have labels of at least two classes"
    assert set(found["outputs"]["cls"]) == {"fvu", "cosine"}


def test_zero_shot_accuracy_in_a_model_of_images_and_text(tmp_path: Path):
    open_clip = pytest.importorskip("open_clip")
    clip = pytest.importorskip("saev_models.clip")
    vision = {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    folder = tmp_path / "model"
    folder.mkdir()
    settings = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    with clip.no_root_logging("open_clip"):
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in model.visual.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    settings_ = ("read.heldout=0.5", "train.n_tokens=4000", "train.batch_size=256")
    made = make(tmp_path / "run", "--model", f"clip:{folder}", "--dataset", "shapes:80", settings=settings_)
    found = measure(made, from_images=True)["zero_shot"]
    cx = TaskContext(made, "fidelity", device="cpu")
    images, vision_language = heldout(made, cx), cx.model()
    texts = vision_language.encode_text([f"a photo of a {name}." for name in cx.dataset().classes])
    labels = cx.store().labels[images]
    for variant, embedding in by_hand(cx, vision_language.encode_images, images).items():
        said = torch.cosine_similarity(embedding[:, None], texts[None], dim=-1).argmax(1).numpy()
        assert found[variant] == pytest.approx((said == labels).mean(), abs=1.5 / len(images))
    assert set(found["recovered"]) == {"zero", "mean"}


# The plain functions.


def whole(d: int = 6, **read: Any) -> Checkpoint:
    """A lossless SAE: the identity and its negative."""
    sae = TopK(TopKConfig(d_in=d, d_sae=2 * d, k=2 * d))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)], 1))
        sae.W_dec.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
    return Checkpoint(sae, Norm(torch.randn(d), 0.5), ref_of(sae), "resid.1", ReadConfig.model_validate(read))


@pytest.mark.parametrize("tokens", ["patches", "cls", "mean"])
def test_only_what_the_sae_reads_is_replaced(tokens: str):
    x, made = torch.randn(3, 7, 6), whole(tokens=tokens)
    mean = torch.arange(6.0)
    assert spliced(x, made, 2, "original", mean) is x
    torch.testing.assert_close(spliced(x, made, 2, "sae", mean), x, rtol=1e-5, atol=1e-5)
    for variant, want in (("zero", torch.zeros(6)), ("mean", mean)):
        out = spliced(x, made, 2, variant, mean)
        kept, put = (out[:, 1:], out[:, 0]) if tokens == "cls" else (out[:, :2], out[:, 2:])
        assert torch.equal(kept, x[:, 1:] if tokens == "cls" else x[:, :2])
        put = put.mean(1) if tokens == "mean" else put
        torch.testing.assert_close(put, want.expand_as(put), rtol=1e-5, atol=1e-5)
    if tokens == "mean":  # each patch keeps its offset from the mean
        centred = x[:, 2:] - x[:, 2:].mean(1, keepdim=True)
        torch.testing.assert_close(spliced(x, made, 2, "zero", mean)[:, 2:], centred, rtol=1e-5, atol=1e-5)


def test_vectors_are_clamped_before_the_sae_as_in_training():
    x, made = 3 * torch.randn(2, 5, 6), whole(clamp=1.0)
    torch.testing.assert_close(spliced(x, made, 1, "sae", torch.zeros(6))[:, 1:], x[:, 1:].clamp(-1, 1), rtol=1e-5, atol=1e-5)


def test_error_of_a_perfect_and_of_a_constant_output():
    y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows = errors({"original": y, "sae": y, "zero": y.mean(0).expand_as(y), "mean": 2 * y})
    assert rows["fvu"]["sae"] == 0
    assert rows["fvu"]["zero"] == pytest.approx(1)
    assert rows["cosine"]["mean"] == pytest.approx(1)
    assert rows["fvu"]["recovered"]["zero"] == 1
    assert rows["cosine"]["recovered"]["mean"] is None  # a longer output costs no cosine
    constant = torch.ones(5, 4)
    assert errors(dict.fromkeys(VARIANTS, constant))["fvu"]["sae"] is None


def test_recovered_is_a_share_of_what_the_ablation_costs():
    assert recovered(0.7, 0.1, 0.9) == pytest.approx(0.75)
    assert recovered(0.1, 0.5, 0.0, lower=True) == pytest.approx(0.8)
    assert recovered(0.9, 0.9, 0.9) is None
    assert recovered(0.5, 0.9, 0.8) is None  # the ablation helps
    row = row_of_hits({v: np.array([v != "zero"] * 40 + [v == "original"] * 10) for v in VARIANTS}, 0)
    assert row["original"] == 1
    assert row["recovered"] == {"zero": pytest.approx(0.8), "mean": pytest.approx(0)}
    low, high = row["interval"]["zero"]
    assert 0.6 < low < 0.75
    assert 0.85 < high < 0.95


def test_neighbours_vote_as_scikit_learn_s_do():
    rng = np.random.default_rng(0)
    bank, labels = rng.standard_normal((80, 5)), rng.integers(0, 4, 80)
    y = rng.standard_normal((60, 5))
    ours = knn(torch.from_numpy(bank), labels, torch.from_numpy(y), 7)
    theirs = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
    assert (ours == theirs.predict(y)).all()


def test_one_probe_of_the_original_reads_all_variants():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    bank = torch.from_numpy(np.eye(3)[labels] + 0.1 * rng.standard_normal((200, 3)))
    found = linear(bank, labels, {"original": bank, "zero": torch.zeros_like(bank)})
    assert (found["original"] == labels).all()
    assert len(set(found["zero"])) == 1


def test_unlabelled_images_are_not_asked_in_text_space():
    right = zero_shot(torch.eye(3), torch.eye(3), np.array([0, -1, 1]))
    assert right.tolist() == [True, False]


# Impossible requests.


def saved(run: Run, tmp_path: Path, **changes: Any) -> Run:
    """A run with a modified SAE checkpoint."""
    other = Run.create(tmp_path / "run", run.config)
    (tmp_path / "run" / "store").symlink_to(run.path / "store")
    made = Checkpoint.load(run.sae_dir("topk"))
    replace(made, **changes).save(other.sae_dir("topk"))
    return other


def test_what_cannot_be_measured_is_one_clear_line(run: Run, tmp_path: Path):
    with pytest.raises(StoreError, match=r"--site resid\.1: the SAE reads resid\.2"):
        measure(run, site="resid.1")
    none_held = saved(run, tmp_path / "a", read=ReadConfig(layer=-2, heldout=0))
    with pytest.raises(CheckpointError, match="no held-out image"):
        measure(none_held)
    everywhere = saved(run, tmp_path / "b", read=ReadConfig(layer="all", heldout=0.3), site="resid.all")
    with pytest.raises(StoreError, match=r"choose where to splice, as in --site resid\.3"):
        measure(everywhere)
    assert measure(everywhere, site="resid.2", n_test=8, n_train=20)["site"] == "resid.2"
    averaged = saved(run, tmp_path / "c", read=ReadConfig(layer="mean", heldout=0.3), site="resid.mean")
    with pytest.raises(SteerError, match="mean over blocks"):
        measure(averaged)


def test_a_model_that_is_not_the_recorded_one_is_found_out(run: Run):
    from saev_core.models.tiny import Tiny, TinyConfig

    cx = TaskContext(run, "fidelity", device="cpu")
    cx.workspace._opened["model"] = Tiny(TinyConfig(pretrained=False)).eval().requires_grad_(False)
    with pytest.raises(ModelError, match="measure with --from-images"):
        Fidelity().call(cx, "measure", FidelityConfig(n_test=4, n_train=20))
