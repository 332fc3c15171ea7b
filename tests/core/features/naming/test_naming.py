"""Names against plain references, on features whose right name is known by construction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csc_array, csr_array
from torch import Tensor, nn

from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.cli.list_flags import expand
from saev_core.config.stages import IndexConfig, NamesConfig, ReadConfig
from saev_core.data.dataset import ImageDataset
from saev_core.errors import CheckpointError, ConfigError, ModelError, RunError
from saev_core.features.build import index_features
from saev_core.features.index import FeatureIndex
from saev_core.features.naming.auroc import Agreement, auroc
from saev_core.features.naming.concepts import known_concepts
from saev_core.features.naming.firing import divide
from saev_core.features.naming.from_concepts import names_from
from saev_core.features.naming.from_text import names_from_text, nearest, two_best, with_top_images
from saev_core.features.naming.names import Name, Names
from saev_core.features.naming.score_names import score_names
from saev_core.features.naming.vocabulary import SHIPPED, read_vocabulary
from saev_core.models.base import ModelConfig, TextSpace, VisionModel
from saev_core.models.transform import ResizeCrop
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.testing import store_of
from saev_core.types import Example, Grid, Site

D, N_PATCHES, N_IMAGES = 12, 4, 400
SITE = Site(0)


# --- the numbers ---


def pairs(score: np.ndarray, fires: np.ndarray) -> float:
    """AUROC by its definition: every pair of a firing and a silent unit, ties a half."""
    a, b = score[fires].astype(np.float64), score[~fires].astype(np.float64)
    return float((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)


def test_auroc_is_that_of_every_pair():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, (5, 60)).astype(np.float32)  # many ties
    fires = rng.random((60, 3)) < 0.3
    concept = np.array([[0, 4], [2, -1], [1, 1]])
    found = auroc(scores, csc_array(fires.astype(np.float32)), concept)
    for feature, row in enumerate(concept):
        for place, c in enumerate(row):
            want = 0.5 if c < 0 else pairs(scores[c], fires[:, feature])
            assert found[feature, place] == pytest.approx(want, abs=1e-12)


def test_a_yes_or_no_concept_is_scored_by_the_same_auroc():
    rng = np.random.default_rng(1)
    true, fires = rng.random((90, 4)) < 0.3, rng.random((90, 6)) < 0.4
    fires[:, 5] = False
    image = np.repeat(np.arange(30), 3)
    tally = Agreement(4, 6)
    for part in (slice(0, 45), slice(45, 90)):
        tally.add(true[part], csr_array(fires[part] * 2.5), image[part])
    for feature in range(5):
        for concept in range(4):
            want = pairs(true[:, concept], fires[:, feature])
            assert tally.scores(np.array([feature]))[concept, 0] == pytest.approx(want, abs=1e-12)
    assert (tally.scores(np.array([5])) == 0.5).all()  # it never fires
    assert tally.images.tolist() == [len(set(image[fires[:, f]])) for f in range(6)]
    choice, score = tally.best(2, near=0)
    assert (choice[:5] == np.argsort(-tally.scores(np.arange(5)), axis=0)[:2].T).all()
    assert (score == tally.of(choice)).all()


def test_of_nearly_equal_concepts_the_most_specific_is_the_name():
    crescent = np.arange(100) < 10
    true = np.stack([np.arange(100) < 30, crescent, np.arange(100) == 0], axis=1)  # small, crescent, one single crescent
    fires = crescent & (np.arange(100) < 9) | (np.arange(100) == 20)  # nine crescents, and one small thing that is none
    tally = Agreement(3, 1)
    tally.add(true, csr_array(fires[:, None].astype(np.float32)), np.arange(100))
    assert tally.best(2)[0][0].tolist() == [1, 0]
    assert tally.best(1, near=0)[0][0].tolist() == [1]
    wide = np.stack([np.arange(100) < 30, np.arange(100) < 8], axis=1)
    tally = Agreement(2, 1)
    tally.add(wide, csr_array((np.arange(100) < 12)[:, None].astype(np.float32)), np.arange(100))
    assert tally.scores(np.array([0]))[:, 0].round(3).tolist() == [0.898, 0.833]
    assert tally.best(1, near=0)[0][0].tolist() == [0]
    assert tally.best(1)[0][0].tolist() == [1]


def test_the_division_scores_on_images_that_training_never_saw():
    usable = np.ones(100, bool)
    usable[:10] = False
    held = heldout_mask(100, 0.3, 0)
    parts = divide(usable, held, 60)
    assert held[parts.heldout].all()
    assert not held[parts.train].any()
    assert usable[parts.heldout].all()
    assert usable[parts.train].all()
    assert len(parts.heldout) == 20
    assert len(parts.train) == 40
    with pytest.raises(CheckpointError, match="there are none; train with"):
        divide(usable, np.zeros(100, bool), 60)


def test_two_best_are_two_different_concepts():
    best, runner = two_best(np.array([[3, 1, 3], [2, -1, -1], [-1, -1, -1]]), np.array([[0.9, 0.8, 0.9], [0.6, 0.9, 0.9], [0.9] * 3]))
    assert best.tolist() == [3, 2, -1]
    assert runner.tolist() == [1, -1, -1]


def test_nearest_by_cosine_and_none_without_a_direction():
    rng = np.random.default_rng(2)
    side, text = rng.standard_normal((5, 8)).astype(np.float32), rng.standard_normal((20, 8)).astype(np.float32)
    side[3] = 0
    found = nearest(side, text, 4)
    want = np.argsort(-(side @ text.T), axis=1)[:, :4]
    assert (found[[0, 1, 2, 4]] == want[[0, 1, 2, 4]]).all()
    assert (found[3] == -1).all()


# --- planted: feature i fires where concept i is in the picture ---

CONCEPTS = ["red square", "stripes", "tall grass", "dog", "sky", "wheel"]


class Planted(ImageDataset):
    """Pictures whose pixel i says whether concept i is there; the label is the first concept, the mask its patch."""

    classes = CONCEPTS
    mask_classes = (*CONCEPTS, "nothing")

    def __init__(self, there: np.ndarray) -> None:
        self.there = there

    def __len__(self) -> int:
        return len(self.there)

    def __getitem__(self, index: int) -> Example:
        pixels = np.zeros((2, 8, 3), np.uint8)
        pixels[0, : self.there.shape[1]] = 255 * self.there[index][:, None]
        return Example(index, Image.fromarray(pixels))


class Shared(VisionModel):
    """A model whose images and texts lie in one space by construction: concept i is axis i, text and images far apart."""

    def __init__(self, noise: float = 0.3) -> None:
        super().__init__()
        self.grid, self.d_model, self.blocks = Grid(1, N_PATCHES, 2), D, nn.ModuleList([nn.Identity()])
        self.transform = ResizeCrop((2, 8), None, (0.0,) * 3, (1.0,) * 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        return images

    def encode_images(self, images: Tensor) -> Tensor:
        there = images[:, 0, 0, : len(CONCEPTS)]
        out = torch.zeros(len(images), D)
        out[:, : len(CONCEPTS)] = there
        generator = torch.Generator().manual_seed(int(1000 * float(there.sum())))
        return out + 3 * torch.eye(D)[D - 1] + self.noise * torch.randn(out.shape, generator=generator)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        said = [text.removeprefix("a photo of ") for text in texts]
        axes = [CONCEPTS.index(word) if word in CONCEPTS else len(CONCEPTS) + len(word) % 5 for word in said]
        return torch.eye(D)[axes] - 3 * torch.eye(D)[D - 1]

    def project(self, x: Tensor) -> Tensor:
        n = len(CONCEPTS)
        other = x[:, n:].sum(1, keepdim=True).expand(-1, D - n)  # what is no concept lies elsewhere
        return torch.cat([x[:, :n], other], dim=1) + 3 * torch.eye(D)[D - 1]


@dataclass
class Bench:
    """A store, an SAE and its index, where feature i fires on images with concept i, and the last ones at random."""

    store: ActivationStore
    checkpoint: Checkpoint
    index: FeatureIndex
    dataset: Planted
    fires: np.ndarray


N_RANDOM = 40


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    n = len(CONCEPTS)
    there = rng.random((N_IMAGES, n)) < 0.25
    fires = np.concatenate([there, rng.random((N_IMAGES, N_RANDOM)) < 0.2], axis=1)
    d_sae = fires.shape[1]
    # Each feature reads an axis of its own; its patch is the concept's number.
    tokens = np.zeros((N_IMAGES, N_PATCHES, d_sae), np.float32)
    patch = np.arange(d_sae) % N_PATCHES
    tokens[:, patch, np.arange(d_sae)] = fires * rng.uniform(1, 2, fires.shape)
    mask = np.full((N_IMAGES, N_PATCHES), n, np.uint16)
    mask[:, :N_PATCHES] = np.where(there[:, :N_PATCHES], np.arange(N_PATCHES), n)
    label = np.where(there.any(1), there.argmax(1), -1)
    store = store_of(folder / "store", {SITE: torch.from_numpy(tokens)}, label=label, mask=mask, dtype="float32")
    sae = ReLU(ReLUConfig(d_in=d_sae, d_sae=d_sae), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d_sae))
        sae.W_dec.copy_(torch.eye(d_sae))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    described = {"fingerprint": store.meta.fingerprint}
    ref = {"name": "relu", "dist": "saev-core", "version": "0"}
    checkpoint = Checkpoint(sae, Norm.identity(d_sae), ref, str(SITE), ReadConfig(layer=0, heldout=0.4), described)
    index = index_features(checkpoint, store, folder / "index.zarr", IndexConfig())
    return Bench(store, checkpoint, index, Planted(there), fires)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("# ours\n" + "\n".join(CONCEPTS) + "\nDog # again\n\nboat\nhill\nlamp\n", encoding="utf-8")
    return path


def test_planted_features_get_their_names_from_text_and_random_ones_none(bench: Bench, vocabulary: Path):
    words = read_vocabulary(vocabulary)
    assert words.n_twice == 1
    names = names_from_text(bench.checkpoint, bench.store, bench.index, Shared(), bench.dataset, words, NamesConfig(n_images=400))
    n = len(CONCEPTS)
    assert {f: name.name for f, name in names.names.items() if f < n} == dict(enumerate(CONCEPTS))
    assert [f for f in names.names if f >= n] == []
    assert names.source == "text"
    assert names.vocabulary == words.sha256
    held = divide(np.ones(N_IMAGES, bool), heldout_mask(N_IMAGES, 0.4, 0), 400).heldout
    for f in range(n):
        assert names.names[f].n_positive == bench.fires[held, f].sum()
        assert names.names[f].score > 0.9


def test_the_score_is_the_auroc_on_held_out_images_alone(bench: Bench, vocabulary: Path):
    model, words = Shared(noise=1.0), read_vocabulary(vocabulary)
    cfg = NamesConfig(n_images=400, threshold=0.5)
    names = names_from_text(bench.checkpoint, bench.store, bench.index, model, bench.dataset, words, cfg)
    parts = divide(np.ones(N_IMAGES, bool), heldout_mask(N_IMAGES, 0.4, 0), 400)
    train, drawn = with_top_images(parts, bench.index)
    assert not heldout_mask(N_IMAGES, 0.4, 0)[train].any()

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def embed(images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + 32] for start in range(0, len(images), 32)]
        pixels = [torch.stack([model.transform(bench.dataset[int(i)].image) for i in part]) for part in parts]
        with torch.no_grad():
            return unit(torch.cat([model.encode_images(some) for some in pixels]).double().numpy())

    text = unit(model.encode_text([f"a photo of {c}" for c in words.concepts]).double().numpy())
    text = unit(text - text.mean(0))
    mean = embed(train)[np.isin(train, drawn)].mean(0)
    held = unit(embed(parts.heldout) - mean)
    assert len(names.names) > 6
    for f, name in names.names.items():
        score = held @ text[words.concepts.index(name.name)]
        assert name.score == pytest.approx(pairs(score, bench.fires[parts.heldout, f]), abs=2e-3)


def test_names_from_labels_and_masks_are_right_and_random_features_stay_unnamed(bench: Bench):
    def named(source: str) -> Names:
        concepts = known_concepts(source, bench.checkpoint, bench.store, lambda: bench.dataset)
        return names_from(bench.checkpoint, bench.store, bench.index, concepts, NamesConfig(n_images=400))

    masks = named("masks")
    # A patch shows concept i where it is there; features share patches with later ones, which the masks do not know.
    assert {f: name.name for f, name in masks.names.items()} == dict(enumerate(CONCEPTS[:N_PATCHES]))
    assert all(name.score > 0.99 for name in masks.names.values())
    labels = named("labels")
    assert labels.source == "labels"
    assert labels.names[0].name == CONCEPTS[0]
    assert all(f < len(CONCEPTS) for f in labels.names)
    auto = known_concepts(None, bench.checkpoint, bench.store, lambda: bench.dataset)
    assert auto.per_patch  # masks say more than labels


def test_few_random_features_would_get_a_name_even_at_a_low_threshold(bench: Bench, vocabulary: Path):
    """The false-name rate: of features that fire at random, with a vocabulary to choose from."""
    words = read_vocabulary(vocabulary)
    low = NamesConfig(n_images=400, threshold=0.65)
    names = names_from_text(bench.checkpoint, bench.store, bench.index, Shared(noise=1.0), bench.dataset, words, low)
    assert sum(f >= len(CONCEPTS) for f in names.names) <= 0.1 * N_RANDOM


def test_a_feature_that_fires_too_rarely_stays_unnamed(bench: Bench, vocabulary: Path):
    cfg = NamesConfig(n_images=400, n_positive=60)
    names = names_from_text(bench.checkpoint, bench.store, bench.index, Shared(), bench.dataset, read_vocabulary(vocabulary), cfg)
    assert names.names == {}
    assert names.n_few == names.n_alive


def test_a_model_without_text_is_told(bench: Bench, vocabulary: Path):
    class Blind(VisionModel):
        Config = ModelConfig

    assert isinstance(Shared(), TextSpace)
    assert not isinstance(Blind(), TextSpace)
    with pytest.raises(ModelError, match="has no text encoder to name features with"):
        names_from_text(bench.checkpoint, bench.store, bench.index, Blind(), bench.dataset, read_vocabulary(vocabulary), NamesConfig())


def test_without_labels_there_is_nothing_to_name_by(tmp_path: Path, bench: Bench):
    store = store_of(tmp_path / "s", {SITE: torch.zeros(8, N_PATCHES, D)})
    with pytest.raises(RunError, match=r"nothing to name features by: .* neither labels nor masks"):
        known_concepts(None, bench.checkpoint, store, lambda: bench.dataset)
    with pytest.raises(RunError, match="has no masks"):
        known_concepts("masks", bench.checkpoint, store, lambda: bench.dataset)


# --- the file, the vocabulary, the verdict ---


def names_of(given: dict[int, tuple[str, float]]) -> Names:
    made = {f: Name(name, score, 20, "other") for f, (name, score) in given.items()}
    return Names("labels", "f" * 64, 0.8, 10, made, 10, 6, 1, 100, 50)


def test_names_are_read_as_they_were_written(tmp_path: Path):
    names = names_of({3: ("dog", 0.91), 11: ("Straße", 0.8)})
    path = names.save(tmp_path / "a" / "topk.names.json")
    assert Names.load(path) == names
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["names"]["3"] == {"name": "dog", "score": 0.91, "n_positive": 20, "runner_up": "other"}
    assert {"threshold", "source", "vocabulary", "checkpoint"} <= saved.keys()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    path.write_text('{"names": {"3": 4}}')
    with pytest.raises(RunError, match=r"topk\.names\.json cannot be read"):
        Names.load(path)
    with pytest.raises(RunError, match="there are no names yet"):
        Names.load(tmp_path / "none.json")


def test_the_verdict_counts_right_wrong_and_silent():
    names = names_of({0: ("red", 0.9), 1: ("colour: red", 0.9), 2: ("blue", 0.9)})
    tells = [(0, "colour: red", 0.9), (1, "colour: red", 0.7), (2, "shape: star", 0.8), (3, "shape: star", 0.95), (4, "size: small", 0.2)]
    found = score_names(names, tells)
    assert (found["n_named"], found["n_right"], found["n_unnamed"]) == (3, 2, 3)
    assert found["precision"] == pytest.approx(2 / 3)
    assert (found["n_telling"], found["found"], found["silent"]) == (4, 0.5, 0.25)
    assert found["wrong"] == [{"feature": 2, "name": "blue", "score": 0.9, "truth": "shape: star", "f1": 0.8}]
    assert score_names(replace(names, names={}), tells)["precision"] is None


def test_the_shipped_vocabulary_is_large_plain_and_small_on_disk():
    words = read_vocabulary()
    assert len(words) >= 5000
    assert words.n_twice == 0
    assert SHIPPED.stat().st_size < 150_000
    assert all(2 <= len(word) <= 40 and word == word.lower() for word in words.concepts)
    assert {"dog", "zebra stripes", "red", "fire engine", "beach"} <= set(words.concepts)
    assert not {"penis", "whore", "slave", "feces", "corpse", "heroin", "swastika"} & set(words.concepts)
    assert "Princeton University" in (SHIPPED.parent / "LICENSE-WORDNET.txt").read_text()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "has no concept"),
        (b"# all\n# comments\n", "has no concept"),
        (b"dog\nDOG\n dog  # again\n", "has 1 concept"),
        (b"dog\n\xff\xfe cat\n", "is not UTF-8 text"),
        (b"dog\n" + b"x" * 1000, "line 2: 1000 characters"),
    ],
)
def test_a_vocabulary_that_cannot_be_read_is_one_clear_line(tmp_path: Path, content: bytes | None, why: str):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        read_vocabulary(path)
    assert "\n" not in str(caught.value)


def test_names_without_a_value_means_the_list_that_is_shipped():
    assert expand(["index", "RUN", "--names"]) == ["index", "RUN", "--names", "text"]
    assert expand(["index", "--names", "--json", "RUN"]) == ["index", "--names", "text", "--json", "RUN"]
    assert expand(["index", "--names", "words.txt", "RUN"]) == ["index", "--names", "words.txt", "RUN"]


@pytest.mark.slow
def test_a_run_on_shapes_names_its_features_and_says_how_often_it_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    small = ["--n-images", "300", "--n-tokens", "150000", "--batch-size", "1024", "--heldout", "0.3"]
    assert main(["run", *small, "--set", "sae.d_sae=128", "--out", str(run)]) == 0
    out = capsys.readouterr().out
    assert "names match the ground truth" in out
    made, verdict = Names.load(run / "features/topk.names.json"), Run.open(run).result("names")["topk"]
    assert made.source == "truth"
    assert made.checkpoint == Checkpoint.load(run / "sae/topk").fingerprint
    assert verdict["n_named"] == len(made.names) > 5
    assert verdict["precision"] > 0.5
    assert all(name.score >= made.threshold for name in made.names.values())

    before = (run / "features/topk.names.json").stat().st_mtime_ns
    assert main(["index", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"]["topk"]["n_named"] == verdict["n_named"]
    assert (run / "features/topk.names.json").stat().st_mtime_ns == before

    # Another source is made again, without the index; the model has no text encoder, so a vocabulary falls back.
    stamp = (run / "features/topk.zarr/zarr.json").stat().st_mtime_ns
    assert main(["index", str(run), "--names", "masks"]) == 0
    assert Names.load(run / "features/topk.names.json").source == "masks"
    assert main(["index", str(run), "--names"]) == 0
    assert "has no text encoder" in capsys.readouterr().out
    assert Names.load(run / "features/topk.names.json").source == "truth"
    assert (run / "features/topk.zarr/zarr.json").stat().st_mtime_ns == stamp
    assert main(["index", str(run), "--names", str(tmp_path / "absent.txt")]) == 2
    assert "absent.txt" in capsys.readouterr().err
    assert main(["index", str(run), "--names", "none"]) == 0
    assert not (run / "features/topk.names.json").exists()
