"""image-folder: numbering, labels and identity depend on the files alone, never on the file system or the place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from saev_core.data.dataset import load_dataset
from saev_core.errors import BadImageError, DatasetError
from saev_datasets.image_folder import ImageFolder, ImageFolderConfig


def picture(file: Path, shade: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file)


def folder(root: Path) -> ImageFolder:
    return ImageFolder(ImageFolderConfig(root=root))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    # Written in an order that is not the sorted one.
    for shade, name in enumerate(["dog/b.png", "cat/10.png", "cat/9.JPG", "cat-big/x.Jpeg", "dog/deep/er/a.png", "dog/a.webp"]):
        picture(root / name, shade)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / ".hidden.png").write_bytes(b"junk")
    picture(root / ".cache" / "x.png")
    (root / "empty").mkdir()
    return root


def test_order_is_by_class_folder_and_name_in_code_points(tree: Path) -> None:
    data = folder(tree)
    names = list(data.files)
    assert names == ["cat/10.png", "cat/9.JPG", "cat-big/x.Jpeg", "dog/a.webp", "dog/b.png", "dog/deep/er/a.png"]
    assert data.classes == ["cat", "cat-big", "dog"]  # neither `empty` nor `.cache`
    assert [data[i].label for i in range(len(data))] == [0, 0, 1, 2, 2, 2]
    assert [data[i].index for i in range(len(data))] == list(range(6))


def test_numbering_is_that_of_torchvision(tree: Path) -> None:
    from torchvision.datasets import ImageFolder as Theirs

    shutil.rmtree(tree / "empty")  # theirs refuses a class without images
    shutil.rmtree(tree / ".cache")
    (tree / "cat" / ".hidden.png").unlink()
    theirs = Theirs(str(tree))
    ours = folder(tree)
    assert [(str(tree / file), ours[i].label) for i, file in enumerate(ours.files)] == theirs.samples


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        picture(tmp_path / name)
    data = folder(tmp_path)
    assert data.classes is None
    assert [data.name(i) for i in range(2)] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert data[0].label is None


def test_a_moved_copy_is_the_same_data_set_and_another_folder_is_not(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(tree, copy)
    assert folder(copy).identity() == folder(tree).identity()
    picture(copy / "dog" / "c.png")
    assert folder(copy).identity() != folder(tree).identity()
    (copy / "dog" / "c.png").unlink()
    Image.new("RGB", (80, 60), "blue").save(copy / "dog" / "b.png")  # the same names, another picture
    assert folder(copy).identity() != folder(tree).identity()


def test_an_unreadable_image_keeps_its_place(tree: Path) -> None:
    (tree / "cat" / "9.JPG").write_bytes(b"\xff\xd8\xff junk")
    data = folder(tree)
    found = list(data.examples(0, len(data)))
    assert isinstance(found[1], BadImageError)
    assert str(tree / "cat" / "9.JPG") in str(found[1])
    assert [f.index for f in found if not isinstance(f, BadImageError)] == [0, 2, 3, 4, 5]


def test_a_file_that_vanishes_is_a_bad_image_not_a_shift(tree: Path) -> None:
    data = folder(tree)
    (tree / "cat" / "10.png").unlink()
    with pytest.raises(BadImageError, match=r"10\.png"):
        data[0]
    assert data[1].index == 1


def test_links_are_followed_but_not_in_circles(tree: Path, tmp_path: Path) -> None:
    picture(tmp_path / "far" / "away.png")
    (tree / "linked").symlink_to(tmp_path / "far")
    (tree / "dog" / "loop").symlink_to(tree)
    data = folder(tree)
    assert "linked/away.png" in list(data.files)
    assert len(data) == 7


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "no image in it"])
def test_a_folder_that_will_not_do_gives_one_line_that_names_it(tmp_path: Path, what: str) -> None:
    root = tmp_path / "data"
    if what == "a file":
        root.write_text("x")
    elif what != "missing":
        root.mkdir()
        if what == "no image in it":
            (root / "readme.txt").write_text("x")
    with pytest.raises(DatasetError, match=str(root)) as caught:
        load_dataset(f"image-folder:{root}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def nobody(tree: Path) -> Iterator[None]:
    """As a user who may not look into `dog`: root, who may read everything, becomes another for a while."""
    for folder in (tree, *tree.parents[:4]):
        if folder == tree or folder.name.startswith(("pytest", "popen", "test_")):
            folder.chmod(folder.stat().st_mode | 0o055)
    (tree / "dog").chmod(0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)
    (tree / "dog").chmod(0o755)


@pytest.mark.usefixtures("nobody")
def test_an_unreadable_folder_is_named(tree: Path) -> None:
    with pytest.raises(DatasetError, match="dog cannot be read: Permission denied") as caught:
        folder(tree)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="dog cannot be read: Permission denied"):
        folder(tree / "dog")


def test_no_folder_says_how_to_give_one() -> None:
    with pytest.raises(DatasetError, match="image-folder:FOLDER"):
        load_dataset("image-folder")


def test_the_colon_gives_the_folder(tree: Path) -> None:
    assert len(load_dataset(f"image-folder:{tree}")) == 6
