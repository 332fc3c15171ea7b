"""Training state on disk, so that a killed run can resume: written atomically, the last two states are kept.

<name>.training/step-00001000/state.safetensors    everything training changes
<name>.training/step-00001000/state.json           position in the source
<name>.training/config.json                        settings of the run
<name>.training/stopped.json                       reason for ending early, if it diverged
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from saev_core.config.affects import settings_that_matter
from saev_core.config.stages import ReadConfig, TrainConfig
from saev_core.errors import TrainError
from saev_core.support.files import replace_file, replace_folder
from saev_core.training.schedule import Schedule

log = logging.getLogger(__name__)

KEEP = 2
"""Number of states kept."""


def config_of(
    cfg: TrainConfig, sae: dict[str, Any], source: dict[str, Any], *, sae_name: str, lr: float, seed: int, schedule: Schedule
) -> dict[str, Any]:
    """All settings that determine one SAE's result, as flat dotted keys; other settings may change before resuming."""
    read = {"read": settings_that_matter(ReadConfig.model_validate(source["read"]))} if "read" in source else {}
    nested = {
        "train": {**settings_that_matter(cfg), "lr": lr, "seed": seed, "stream_seed": cfg.seed},
        "sae": {"name": sae_name, **sae},
        "source": {**source, **read},
        "schedule": asdict(schedule),
    }
    return _flat(json.loads(json.dumps(nested)))


def _same(theirs: Any, ours: Any) -> bool:
    """Whether two values of one key are equivalent; older versions wrote 0 for what is now `auto` or none."""
    return bool(theirs == ours) or (theirs == 0 and ours in (None, "auto"))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class States:
    """The training states of one SAE, stored next to its checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder.with_name(f"{folder.name}.training")

    def begin(self, config: dict[str, Any]) -> None:
        """Prepare the folder for a run with this configuration.

        Raises:
            TrainError: it contains states of another configuration (names the keys that differ), or cannot be written.
        """
        file = self.path / "config.json"
        try:
            if self.steps():
                theirs = json.loads(file.read_text(encoding="utf-8"))
                if differ := sorted(key for key in theirs.keys() | config.keys() if not _same(theirs.get(key), config.get(key))):
                    was = "; ".join(f"{key} was {theirs.get(key)!r}, now {config.get(key)!r}" for key in differ[:5])
                    more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
                    raise TrainError(
                        f"{self.path} belongs to a different configuration: {was}{more}; restore it, or delete the folder to restart."
                    )
                return
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            replace_file(file, json.dumps(config, indent=1))
        except (OSError, ValueError) as error:
            raise TrainError(f"{self.path} cannot be used ({error}); delete it or choose another --out.") from None

    def steps(self) -> set[int]:
        """Steps with a complete state."""
        return {int(path.name[5:]) for path in self.path.glob("step-*") if (path / "state.json").exists()}

    def save(self, step: int, tensors: dict[str, Tensor], stream: dict[str, Any]) -> Path:
        """Write a state and delete all but the last two.

        Raises:
            TrainError: it cannot be written.
        """
        final = self.path / f"step-{step:08d}"
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        meta = {"step": step, "source": stream, "sha256": hashlib.sha256(data).hexdigest()}
        try:
            with replace_folder(final) as new:
                (new / "state.safetensors").write_bytes(data)
                (new / "state.json").write_text(json.dumps(meta), encoding="utf-8")
        except OSError as error:
            raise TrainError(
                f"{final} cannot be written: {error.strerror or error}; free some disk space and re-run; training resumes."
            ) from None
        for old in sorted(self.steps())[:-KEEP]:
            shutil.rmtree(self.path / f"step-{old:08d}", ignore_errors=True)
        return final

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and source state of a step; None if damaged."""
        folder = self.path / f"step-{step:08d}"
        try:
            meta = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            data = (folder / "state.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() == meta["sha256"]:
                return load(data), meta["source"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("%s is damaged (%s); skipping it", folder, error)
            return None
        log.warning("%s is damaged (checksum mismatch); skipping it", folder)
        return None

    def stop(self, why: str) -> None:
        """Record why training ended early."""
        replace_file(self.path / "stopped.json", json.dumps({"why": why}))

    def stopped(self) -> str:
        """Why training ended early; empty if it did not."""
        file = self.path / "stopped.json"
        return str(json.loads(file.read_text(encoding="utf-8"))["why"]) if file.exists() else ""

    def clear(self) -> None:
        """Delete the states after training is complete."""
        shutil.rmtree(self.path, ignore_errors=True)
