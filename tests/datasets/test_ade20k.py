"""ade20k: scenes from the right split, masks as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saev_core.data.dataset import load_dataset
from saev_core.errors import BadImageError, DatasetError
from saev_datasets.ade20k import Ade20k, Ade20kConfig

# Scenes of the validation images are not those of the training images of the same number.
SCENES = {
    "ADE_train_00000001": "airport_terminal",
    "ADE_train_00000002": "art_gallery",
    "ADE_train_00000003": "zoo",
    "ADE_val_00000001": "zoo",
    "ADE_val_00000002": "misc",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The challenge's layout: images of 5 x 4, mask values 0, 1, 150 in columns."""
    root = tmp_path / "ADEChallengeData2016"
    for name in SCENES:
        split = "training" if "train" in name else "validation"
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), "white").save(root / "images" / split / f"{name}.jpg")
        mask = np.zeros((4, 5), np.uint8)
        mask[:, 1], mask[:, 2] = 1, 150
        Image.fromarray(mask).save(root / "annotations" / split / f"{name}.png")
    (root / "sceneCategories.txt").write_text("".join(f"{name} {scene}\n" for name, scene in SCENES.items()))
    names = ["wall", "building, edifice", *(f"thing {i}" for i in range(3, 151))]
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0.1\t10\t1\t{name}" for i, name in enumerate(names, 1))]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return root


def scenes(data: Ade20k) -> list[str]:
    assert data.classes is not None
    return [data.classes[data[i].label or 0] for i in range(len(data))]


def test_validation_images_have_the_scenes_of_the_validation_split(tree: Path) -> None:
    assert scenes(Ade20k(Ade20kConfig(root=tree))) == ["airport_terminal", "art_gallery", "zoo"]
    validation = Ade20k(Ade20kConfig(root=tree, split="validation"))
    assert scenes(validation) == ["zoo", "misc"]
    assert validation[0].label == Ade20k(Ade20kConfig(root=tree))[2].label  # one numbering for both splits


def test_masks_are_the_stored_numbers_with_zero_for_other(tree: Path) -> None:
    data = load_dataset(f"ade20k:{tree}")
    mask = data[1].mask
    assert mask is not None
    assert mask.dtype == np.uint8
    assert mask[0].tolist() == [0, 1, 150, 0, 0]
    assert data.mask_classes is not None
    assert len(data.mask_classes) == 151
    assert list(data.mask_classes[:3]) == ["other", "wall", "building, edifice"]


def test_the_folder_above_will_do(tree: Path) -> None:
    assert len(load_dataset(f"ade20k:{tree.parent}")) == 3


def test_without_lists_there_are_numbers_and_no_labels(tree: Path) -> None:
    (tree / "sceneCategories.txt").unlink()
    (tree / "objectInfo150.txt").unlink()
    data = Ade20k(Ade20kConfig(root=tree))
    assert data.classes is None
    assert data[0].label is None
    assert data.mask_classes is not None
    assert len(data.mask_classes) == 151


@pytest.mark.parametrize("damage", ["absent", "of another size", "coloured"])
def test_a_mask_that_will_not_do_makes_its_image_unreadable_and_is_named(tree: Path, damage: str) -> None:
    file = tree / "annotations" / "training" / "ADE_train_00000002.png"
    file.unlink()
    if damage != "absent":
        Image.new("L" if damage == "of another size" else "RGB", (4, 4) if damage == "of another size" else (5, 4)).save(file)
    data = Ade20k(Ade20kConfig(root=tree))
    found = list(data.examples(0, 3))
    assert isinstance(found[1], BadImageError)
    assert str(file) in str(found[1])
    assert not isinstance(found[2], BadImageError)
    assert found[2].index == 2


def test_another_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DatasetError, match=r"has no images/training; ade20k needs the folder that ADEChallengeData2016\.zip unpacks to"):
        load_dataset(f"ade20k:{tmp_path}")
