"""What a person sees of a long job: how far, how fast, how long still, and the numbers of the training."""

from __future__ import annotations

import re

import pytest

from saev_core.cli import console
from saev_core.cli.console import Screen


@pytest.fixture(autouse=True)
def _root_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "configure_logging", lambda debug: None)


def test_lines_show_rate_time_left_and_facts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "EVERY_S", 0.0)
    with Screen().track("train", 1000, "vectors") as meter:
        meter.update(250, nmse=0.125, l0=32.0, dead=0.0625)
    line, end = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"train: 250 of 1,000 vectors, [\d,.]+/s, .+ left  nmse 0.125  l0 32  dead 0.0625", line)
    assert re.fullmatch(r"train: 250 vectors in .+ s  nmse 0.125  l0 32  dead 0.0625", end)


def test_what_an_earlier_process_did_counts_for_how_far_and_not_for_how_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Screen().track("train", 1_000_000, "vectors") as meter:
        meter.skip(900_000)
        now[0] = 10.0
        meter.update(50_000, nmse=0.5)
    line, end = capsys.readouterr().out.splitlines()
    assert line == "train: 950,000 of 1,000,000 vectors, 5,000.0/s, 10 s left  nmse 0.5"
    assert end == "train: 50,000 vectors in 10 s, 900,000 done before  nmse 0.5"


def test_the_bar_shows_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with Screen().track("train", 1000, "vectors") as meter:
        meter.skip(500)
        meter.update(250, nmse=0.125, l0=32.0, dead=0.0625)
    shown = capsys.readouterr().err
    assert "750/1000" in shown
    assert re.search(r"vectors  [\d,]+/s", shown)
    assert "nmse 0.125  l0 32  dead 0.0625" in shown


def test_json_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(as_json=True).track("train", 10, "vectors") as meter:
        meter.skip(2)
        meter.update(8)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (34e6, "34 MB"), (1.204e9, "1.2 GB"), (999_700, "1 MB"), (999.9e9, "1 TB"), (99.9e12, "100 TB"),
        (2.5e15, "2,500 TB"),
    ],
)  # fmt: skip
def test_bytes_are_told_in_three_digits(n_bytes: float, text: str) -> None:
    assert console.size(n_bytes) == text
