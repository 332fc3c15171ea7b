"""Files and folders: old or new, never half of either, whenever the process dies, and nothing left over in the end."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from killed import killed_before_rename

from saev_core.errors import ProbeError
from saev_core.support.files import (
    move_into_place,
    new_folder,
    recover_folder,
    recover_folders,
    replace_file,
    replace_folder,
    write_json,
)
from saev_core.tasks.probe import Probe

REPLACE = """
from pathlib import Path
from saev_core.support.files import replace_folder
with replace_folder(Path({path!r})) as new:
    (new / "text").write_text({text!r})
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace(path: Path, text: str) -> None:
    with replace_folder(path) as new:
        (new / "text").write_text(text)


@pytest.mark.parametrize("data", [b"\x00\xff", "grün"])
def test_a_file_is_replaced_and_nothing_else_is_there(tmp_path: Path, data: bytes | str) -> None:
    (tmp_path / "a.txt").write_text("old")
    replace_file(tmp_path / "a.txt", data)
    assert (tmp_path / "a.txt").read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert names(tmp_path) == ["a.txt"]


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    replace_file(tmp_path / "a", "")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_makes_its_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "b" / "a.json", {"x": [1, 2]})
    assert json.loads((tmp_path / "b" / "a.json").read_text()) == {"x": [1, 2]}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


def test_many_threads_write_one_file_and_it_is_whole(tmp_path: Path) -> None:
    texts = [letter * 10_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(pool.map(lambda text: replace_file(tmp_path / "a", text), texts))
            assert (tmp_path / "a").read_text() in texts
    assert names(tmp_path) == ["a"]


def test_a_folder_is_replaced_whole_and_nothing_else_is_there(tmp_path: Path) -> None:
    for text in ("one", "two"):
        replace(tmp_path / "a", text)
        assert (tmp_path / "a" / "text").read_text() == text
        assert names(tmp_path) == ["a"]


def test_a_search_beside_it_does_not_find_a_folder_in_the_making(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a") as new:
        (new / "text").write_text("")
        assert not list(tmp_path.glob("*/text"))
    assert list(tmp_path.glob("*/text")) == [tmp_path / "a" / "text"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    replace(tmp_path / "a", "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), replace_folder(tmp_path / "a") as new:
        new.joinpath("text").write_bytes((tmp_path / "folder").read_bytes())
    (tmp_path / "folder").rmdir()
    assert (tmp_path / "a" / "text").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("nth", [1, 2])
def test_killed_before_either_rename_the_old_folder_is_there_and_the_next_writer_tidies_up(tmp_path: Path, nth: int) -> None:
    path = tmp_path / "a"
    replace(path, "old")
    killed_before_rename(nth, REPLACE.format(path=str(path), text="new"))
    assert path.exists() == (nth == 1)
    recover_folder(path)
    assert (path / "text").read_text() == "old"
    replace(path, "newer")
    assert (path / "text").read_text() == "newer"
    assert names(tmp_path) == ["a"]


def test_what_was_being_replaced_is_not_lost_to_a_writer_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace(path, "old")
    killed_before_rename(2, REPLACE.format(path=str(path), text="new"))
    with pytest.raises(ZeroDivisionError), replace_folder(path):
        raise ZeroDivisionError
    recover_folder(path)
    assert (path / "text").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_everything_in_a_folder_is_put_back_earlier_versions_too(tmp_path: Path) -> None:
    for place in (".incomplete/a.old", ".b.old", ".c.d.123.old"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "text").write_text(place)
    replace(tmp_path / "b", "new")
    recover_folders(tmp_path)
    assert {name: (tmp_path / name / "text").read_text() for name in ("a", "b", "c.d")} == {
        "a": ".incomplete/a.old",
        "b": "new",
        "c.d": ".c.d.123.old",
    }
    recover_folders(tmp_path / "nothing")


def test_another_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a") as first:
        replace(tmp_path / "a", "second")
        replace(tmp_path / "b", "third")
        (first / "text").write_text("first")
    assert (tmp_path / "a" / "text").read_text() == "first"
    assert names(tmp_path) == ["a", "b"]


def test_a_reader_never_takes_the_old_folder_from_a_writer_at_work(tmp_path: Path) -> None:
    path, done = tmp_path / "a", threading.Event()
    replace(path, "0")

    def read() -> set[str]:
        seen = set()
        while not done.is_set():
            recover_folder(path)
            try:
                seen.add((path / "text").read_text())
            except FileNotFoundError:  # between the renames: they are two
                continue
        return seen

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(100):
            replace(path, str(number))
        done.set()
        assert reader.result() <= {str(number) for number in range(100)}
    assert (path / "text").read_text() == "99"
    assert names(tmp_path) == ["a"]


def test_a_new_folder_takes_an_empty_place_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as new:
        (new / "text").write_text("")
    assert names(tmp_path / "empty") == ["text"]
    replace(tmp_path / "a", "there")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "a") as new:
        (new / "text").write_text("new")
    assert (tmp_path / "a" / "text").read_text() == "there"
    assert names(tmp_path) == ["a", "empty"]


def test_of_many_that_make_one_folder_one_wins_whole(tmp_path: Path) -> None:
    def make(number: int) -> int:
        try:
            with new_folder(tmp_path / "a") as new:
                (new / "text").write_text(str(number))
        except OSError:
            return 0
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(make, range(1, 30)) if number]
    assert [str(number) for number in winners] == [(tmp_path / "a" / "text").read_text()]
    assert names(tmp_path) == ["a"]


def test_files_and_folders_are_moved_over_what_is_there(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "file").write_text("new")
    (work / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    replace(tmp_path / "folder", "old")
    for name in ("file", "folder"):
        move_into_place(work / name, tmp_path / name)
    assert (tmp_path / "file").read_text() == "new"
    assert not names(tmp_path / "folder")
    assert names(tmp_path) == ["file", "folder", "work"]
    with pytest.raises(FileNotFoundError):
        move_into_place(work / "nothing", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"


def test_more_files_than_are_synced_one_by_one(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a") as new:
        for number in range(300):
            (new / str(number)).write_text("")
    assert len(names(tmp_path / "a")) == 300


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes inside, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_artifact_and_nothing_else(tmp_path: Path) -> None:
    replace(tmp_path / "a", "old")
    (tmp_path / "b").write_text("old")
    with full_disk(100):
        with pytest.raises(OSError, match="File too large"):
            replace(tmp_path / "a", "new" * 1000)
        with pytest.raises(OSError, match="File too large"):
            replace_file(tmp_path / "b", "new" * 1000)
    assert ((tmp_path / "a" / "text").read_text(), (tmp_path / "b").read_text()) == ("old", "old")
    assert names(tmp_path) == ["a", "b"]


def test_a_full_disk_is_one_line_from_whoever_saves(tmp_path: Path) -> None:
    old = Probe(torch.zeros(2, 3), torch.zeros(2), ["a", "b"], "resid.1")
    old.save(tmp_path / "p")
    with full_disk(1000), pytest.raises(ProbeError, match=r"p cannot be written: File too large; free disk space"):
        Probe(torch.zeros(2, 3000), torch.zeros(2), ["a", "b"], "resid.1").save(tmp_path / "p")
    assert Probe.load(tmp_path / "p").d == 3
    assert names(tmp_path) == ["p"]
