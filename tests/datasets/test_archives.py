"""CIFAR, Fashion-MNIST, Flowers, Caltech 101, CUB 200, ImageNet: small trees of each archive's own layout, read back."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saev_core.config.base import PluginRef
from saev_core.data.dataset import ImageDataset, load_dataset
from saev_core.errors import BadImageError, DatasetError


def load(name: str, root: Path, **options: object) -> ImageDataset:
    return load_dataset(PluginRef(name=name, options={"name" if name == "imagenet" else "root": str(root), **options}))


def labels(data: ImageDataset) -> list[int | None]:
    return [data[i].label for i in range(len(data))]


def picture(file: Path, shade: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file)


def refused(name: str, root: Path, says: str, **options: object) -> None:
    with pytest.raises(DatasetError, match=says) as caught:
        load(name, root, **options)
    assert "\n" not in str(caught.value)


# --- CIFAR


def cifar(rng: np.random.Generator, n: int, *classes: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Pixels [n, 32, 32, 3], label columns [n, columns], and the file they make."""
    pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    columns = np.stack([rng.integers(0, c, n, dtype=np.uint8) for c in classes], 1)
    return pixels, columns, np.concatenate([columns, pixels.transpose(0, 3, 1, 2).reshape(n, -1)], 1).tobytes()


def test_cifar10_goes_through_its_batches_in_order(tmp_path: Path) -> None:
    root, rng = tmp_path / "cifar-10-batches-bin", np.random.default_rng(0)
    root.mkdir()
    (root / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n")
    want = []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels, columns, data = cifar(rng, 3, 10)
        (root / f"{name}.bin").write_bytes(data)
        want += list(zip(pixels, columns[:, 0].tolist(), strict=True))
    train, test = load("cifar10", tmp_path), load("cifar10", root, split="test")
    assert (len(train), len(test)) == (15, 3)
    assert train.classes is not None
    assert train.classes[9] == "truck"
    for split, expected in ((train, want[:15]), (test, want[15:])):
        for index, (pixels, label) in enumerate(expected):
            example = split[index]
            assert (example.index, example.label) == (index, label)
            assert np.array_equal(np.asarray(example.image), pixels)
    assert train.name(4).endswith("data_batch_2.bin image 1")
    assert train.identity() != test.identity()


def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path) -> None:
    _, columns, data = cifar(np.random.default_rng(1), 4, 20, 100)
    (tmp_path / "train.bin").write_bytes(data)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"fine {i}" for i in range(100)))
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"coarse {i}" for i in range(20)))
    assert labels(load("cifar100", tmp_path)) == columns[:, 1].tolist()
    assert labels(load("cifar100", tmp_path, labels="coarse")) == columns[:, 0].tolist()


def test_a_pickled_cifar_is_refused_unread(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": []}))
    (folder / "batches.meta").write_bytes(b"cposix\nsystem\n(S'touch /tmp/never'\ntR.")
    for root in (tmp_path, folder):
        refused("cifar10", root, r"pickled version.*cifar-10-binary\.tar\.gz.*huggingface:uoft-cs/cifar10")


def test_a_cut_cifar_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(4000))
    (tmp_path / "fine_label_names.txt").write_text("a")
    refused("cifar100", tmp_path, r"train\.bin is damaged: 4000 bytes")


# --- Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_reads_idx_files(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    for stem, n in (("train", 5), ("t10k", 2)):
        images, marks = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
        for name, values in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", marks)):
            file = tmp_path / "FashionMNIST" / "raw" / (name + ".gz" * packed)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
        data = load("fashion-mnist", tmp_path, split="train" if stem == "train" else "test")
        assert labels(data) == marks.tolist()
        assert np.array_equal(np.asarray(data[1].image), np.repeat(images[1][..., None], 3, -1))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read|not an idx"),
        (gzip.compress(b"\x89PNG"), "not an idx file"),
        (gzip.compress(idx(np.zeros((3, 28, 28), np.uint8))[:-5]), "declares 3 x 28 x 28 bytes but has 2347"),
        (gzip.compress(idx(np.zeros((3, 28, 28), np.uint8)))[:-9], "cannot be read"),
        (b"not gzip", "cannot be read"),
        (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8))), "do not match"),
    ],
    # Named: gzip stamps the time into its bytes, and two test processes must agree on the names.
    ids=["empty", "no idx", "too short", "cut off", "no gzip", "other number"],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3, np.uint8))))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)
    refused("fashion-mnist", tmp_path, rf"train-images-idx3-ubyte\.gz.*({says})")


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_debian_package_is_found_without_a_folder() -> None:
    data = load_dataset("fashion-mnist")
    assert len(data) == 60_000
    assert data.classes is not None
    assert [data.classes[data[i].label or 0] for i in range(3)] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]


# --- Flowers 102


def test_flowers102_takes_splits_and_labels_from_the_lists(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    marks = [77, 1, 102, 5, 9, 9]
    for number in range(1, 7):
        picture(tmp_path / "jpg" / f"image_{number:05d}.jpg")
    scipy_io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array([marks], np.uint8)})
    scipy_io.savemat(tmp_path / "setid.mat", {"trnid": [[5, 1]], "valid": [[3]], "tstid": [[2, 4, 6]]})
    train = load("flowers102", tmp_path)
    assert [Path(train.name(i)).name for i in range(2)] == ["image_00001.jpg", "image_00005.jpg"]
    assert labels(train) == [76, 8]
    assert labels(load("flowers102", tmp_path, split="test")) == [0, 4, 8]
    assert labels(load("flowers102", tmp_path, split="all")) == [mark - 1 for mark in marks]
    assert train.classes is not None
    assert len(train.classes) == len(set(train.classes)) == 102
    assert (train.classes[76], train.classes[0], train.classes[101]) == ("passion flower", "pink primrose", "blackberry lily")
    (tmp_path / "setid.mat").write_bytes(b"MATLAB 5.0 junk" * 20)
    refused("flowers102", tmp_path, r"setid\.mat cannot be read")
    (tmp_path / "imagelabels.mat").unlink()
    refused("flowers102", tmp_path, r"imagelabels\.mat cannot be read")


# --- Caltech 101, CUB 200


def test_caltech101_leaves_the_clutter_out_unless_asked(tmp_path: Path) -> None:
    for name in ("Faces/image_0001.jpg", "accordion/image_0002.jpg", "accordion/image_0001.jpg", "BACKGROUND_Google/image_0001.jpg"):
        picture(tmp_path / "caltech-101" / "101_ObjectCategories" / name)
    data = load("caltech101", tmp_path)
    assert data.classes == ["Faces", "accordion"]
    assert labels(data) == [0, 1, 1]
    assert load("caltech101", tmp_path, background=True).classes == ["BACKGROUND_Google", "Faces", "accordion"]


def test_cub200_takes_splits_from_its_list(tmp_path: Path) -> None:
    root = tmp_path / "CUB_200_2011"
    paths = ["001.Black_footed_Albatross/a.jpg", "001.Black_footed_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg"]
    for path in paths:
        picture(root / "images" / path)
    (root / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n")
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    train = load("cub200", tmp_path)
    assert train.classes == ["Black footed Albatross", "Laysan Albatross"]
    assert labels(train) == [0, 1]
    assert train.name(0) == str(root / "images" / paths[1])
    assert labels(load("cub200", tmp_path, split="test")) == [0]
    assert labels(load("cub200", tmp_path, split="all")) == [0, 0, 1]
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3\n")
    refused("cub200", tmp_path, r"image_class_labels\.txt line 3 has 1 fields, not 2")


# --- ImageNet


IDS = ["n01440764", "n01443537"]


@pytest.mark.parametrize("layout", ["archives", "challenge", "one split"])
def test_imagenet_folders_are_numbered_by_sorted_wordnet_id(tmp_path: Path, layout: str) -> None:
    train = {"archives": "train", "challenge": "ILSVRC/Data/CLS-LOC/train", "one split": "."}[layout]
    for wnid in reversed(IDS):
        for number in (7, 10):
            picture(tmp_path / train / wnid / f"{wnid}_{number}.JPEG")
    if layout == "challenge":
        (tmp_path / "LOC_synset_mapping.txt").write_text(f"{IDS[0]} tench, Tinca tinca\n{IDS[1]} goldfish, Carassius auratus\n")
    data = load("imagenet", tmp_path)
    assert labels(data) == [0, 0, 1, 1]
    assert data.classes == (["tench", "goldfish"] if layout == "challenge" else IDS)
    assert data.name(0).endswith(f"{IDS[0]}_10.JPEG")
    assert len(load("imagenet", tmp_path, n=3)) == 3


def test_imagenet_validation_is_labelled_whether_it_lies_flat_or_in_folders(tmp_path: Path) -> None:
    for wnid in IDS:
        picture(tmp_path / "a/train" / wnid / "x.JPEG")
        picture(tmp_path / "a/val" / wnid / f"ILSVRC2012_val_{IDS.index(wnid)}.JPEG")
    assert labels(load("imagenet", tmp_path / "a", split="validation")) == [0, 1]

    flat = tmp_path / "b/ILSVRC/Data/CLS-LOC"
    picture(flat / "train" / IDS[0] / "x.JPEG")
    for number in (1, 2, 3):
        picture(flat / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    (tmp_path / "b/LOC_synset_mapping.txt").write_text(f"{IDS[0]} tench\n{IDS[1]} goldfish\n")
    (tmp_path / "b/LOC_val_solution.csv").write_text(
        f"ImageId,PredictionString\nILSVRC2012_val_00000002,{IDS[0]} 85 1 499 272 \nILSVRC2012_val_00000001,{IDS[1]} 1 2 3 4 \n"
    )
    assert labels(load("imagenet", tmp_path / "b", split="validation")) == [1, 0, None]


@pytest.mark.slow
def test_imagenet_reads_what_the_datasets_library_wrote(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "goldfish"])})
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 3), i) for i in range(3)], "label": [1, 0, 1]}, features=features)
    datasets.DatasetDict({"train": rows, "validation": rows.select([0])}).save_to_disk(tmp_path / "data")
    data = load("imagenet", tmp_path / "data")
    assert data.classes == ["tench", "goldfish"]
    assert labels(data) == [1, 0, 1]
    assert len(load("imagenet", tmp_path / "data", split="validation")) == 1


# --- all


NAMES = ["ade20k", "caltech101", "cifar10", "cifar100", "cub200", "fashion-mnist", "flowers102", "image-folder", "imagenet"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_and_an_empty_folder_give_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    refused(name, tmp_path / "absent", "absent")
    (tmp_path / "empty").mkdir()
    refused(name, tmp_path / "empty", "empty")


def test_a_damaged_picture_keeps_its_place(tmp_path: Path) -> None:
    root = tmp_path / "101_ObjectCategories"
    for number in range(3):
        picture(root / "ant" / f"image_{number}.jpg")
    (root / "ant" / "image_1.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    found = list(load("caltech101", tmp_path).examples(0, 3))
    assert [isinstance(one, BadImageError) for one in found] == [False, True, False]


# --- Imagenette


def test_imagenette_has_its_ten_classes_whatever_is_there(tmp_path: Path) -> None:
    for wnid in ("n03888257", "n01440764"):
        picture(tmp_path / "imagenette2-320" / "val" / wnid / "x.JPEG")
    data = load("imagenette", tmp_path, split="validation")
    assert labels(data) == [0, 9]
    assert len(data.classes or ()) == 10
    refused("imagenette", tmp_path, "imagenette2-320.tgz")
    picture(tmp_path / "imagenette2-320" / "val" / "n00000001" / "x.JPEG")
    refused("imagenette", tmp_path, "none of Imagenette's ten folders", split="validation")
