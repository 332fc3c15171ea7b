"""Shared by test files: what trackers wrote, read back from their files."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saev_core.runs.run import Run
from saev_core.testing.tracker_contract import Logged

BLOCK = 32_768
"""Of a LevelDB log."""


def tensorboard_runs(folder: Path) -> dict[str, EventAccumulator]:
    """The TensorBoard runs below a folder, by name."""
    found = {}
    for name in sorted({str(file.parent.relative_to(folder)) for file in folder.rglob("events.out.tfevents.*")}):
        found[name] = EventAccumulator(str(folder / name), size_guidance={"scalars": 0})
        found[name].Reload()
    return found


def tensorboard_logged(folder: Path, group: str) -> Logged:
    logged: Logged = {}
    for name, events in tensorboard_runs(folder).items():
        for tag in events.Tags()["scalars"]:
            of, _, key = tag.partition("/")
            if of == group:
                for event in events.Scalars(tag):
                    at = logged.setdefault(name, {}).setdefault(event.step, {})
                    assert key not in at, f"{name} shows step {event.step} twice"
                    at[key] = event.value
    return logged


def _records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, a LevelDB log after a header of 7 bytes, as far as it has been written."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    assert b":W&B".startswith(data[:4])
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # padding: no header fits
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def wandb_begun(folder: Path) -> bool:
    """Whether a run in a run folder's `wandb` has been written as far as what it is."""
    return any(record.WhichOneof("record_type") == "run" for file in folder.glob("offline-run-*/*.wandb") for record in _records(file))


def _finished(file: Path) -> list[Any]:
    """The records of a run that has ended; wandb's own process writes the last of them a moment after `finish` returns."""
    give_up = time.monotonic() + 30
    while True:
        each = list(_records(file))
        kinds = [record.WhichOneof("record_type") for record in each]
        if "exit" in kinds and "run" in kinds:
            return each
        assert time.monotonic() < give_up, f"{file} holds {kinds}"
        time.sleep(0.02)


def wandb_parts(run: Run, *, ended: bool = True) -> dict[str, list[list[Any]]]:
    """SAE -> the files of its run in the order in which they were begun, each as its records.

    Args:
        ended: each has been finished; false: the last one has, and the processes of those before may have been killed.
    """
    found: dict[str, list[list[Any]]] = {}
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    for file in files:
        each = _finished(file) if ended or file == files[-1] else list(_records(file))
        (begun,) = (record.run for record in each if record.WhichOneof("record_type") == "run")
        found.setdefault(begun.display_name, []).append(each)
    return found


def wandb_logged(run: Run, group: str, *, ended: bool = True) -> Logged:
    logged: Logged = {}
    for name, files in wandb_parts(run, ended=ended).items():
        for each in files:
            for record in each:
                if record.WhichOneof("record_type") != "history":
                    continue
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                mine = {key.partition("/")[2]: value for key, value in row.items() if key.startswith(f"{group}/")}
                if mine:
                    steps = logged.setdefault(name, {})
                    # What a killed process may have lost is logged again.
                    assert not ended or row["step"] not in steps, f"{name} logged step {row['step']} twice"
                    steps[row["step"]] = mine
    return logged
