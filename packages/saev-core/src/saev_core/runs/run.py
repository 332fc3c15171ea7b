"""`Run`: the folder that holds one run's configuration and everything made from it. Imports no torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saev_core.config.affects import effect_of
from saev_core.config.base import validate
from saev_core.config.run import RunConfig
from saev_core.config.toml_and_set import differences
from saev_core.errors import RunError
from saev_core.runs.checks import check_config, default_path, plugin_versions
from saev_core.runs.sweep import expand
from saev_core.support.files import recover_folders, write_json
from saev_core.support.urls import local_path

FORMAT = 1
STAGES = ("record", "train", "evaluate", "index", "report")
"""The stages of a run, each reading what the one before it made."""
INDEX_ALL = 4
"""SAEs that are all indexed; of more, which a sweep has, only the best."""
_STAGE_OF = {
    "model": "record",
    "dataset": "record",
    "record": "record",
    "store": "record",
    "sae": "train",
    "read": "train",
    "train": "train",
}
"""Top key of the configuration -> the stage whose artifact it decides; what later stages make is simply made again."""


class Run:
    """A run folder: `config.json`, `store`, `sae/<name>/`, `features/<name>.zarr`, `metrics.jsonl`, `results/`, `report.html`.

    Use `Run.create` or `Run.open`. Paths are answered whether or not anything is there yet.
    """

    def __init__(self, path: str | Path, config: RunConfig, plugins: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.config = config
        self.plugins = dict(plugins)
        """`model:tiny` and so on -> `distribution version`, as they were when the configuration was saved."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> Run:
        """A run at `path`: a new folder, an empty one, or a run whose artifacts `config` would make just so.

        Raises:
            RunError: the folder cannot be written, holds something else, or holds a run of another configuration
                (the keys that differ are named).
        """
        path = Path(path)
        if (path / "config.json").exists():
            run = cls.open(path)
            if changed := run._fixed_changes(config):
                raise RunError(f"{path} is a run of another configuration ({'; '.join(changed)}); choose another --out, or delete it.")
        elif path.is_dir() and any(path.iterdir()):
            raise RunError(f"{path} is not empty and not a run; choose another --out.")
        run = cls(path, config, plugin_versions(config))
        run._save()
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at `path`.

        Raises:
            RunError: it is not a run, or one of another format.
        """
        path = Path(path)
        try:
            saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "is not a run (it has no config.json)" if path.exists() else "does not exist"
            raise RunError(f"{path} {what}; make one with saev run --out {path}.") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{path}/config.json cannot be read ({error}); is this a run folder?") from None
        if not isinstance(saved, dict) or "saev" not in saved:
            raise RunError(f"{path} is not a run: its config.json was not written by saev run.")
        if saved["saev"] != FORMAT:
            raise RunError(f"{path} is a run of format {saved['saev']}; this version reads format {FORMAT}.")
        for part in ("sae", "features"):
            recover_folders(path / part)
        return cls(path, validate(RunConfig, saved.get("config", {}), where=f"{path}/config.json"), saved.get("plugins", {}))

    @property
    def store_url(self) -> str:
        """Where the activations lie."""
        return self.config.store or str(self.path / "store")

    @property
    def sae_names(self) -> list[str]:
        """Names of the SAEs that were trained to the end, sorted."""
        return sorted(folder.parent.name for folder in self.path.glob("sae/*/checkpoint.json"))

    @property
    def best(self) -> str | None:
        """The SAE with the lowest error at a stated L0, from `results/pareto.json`, or the only one.

        None where there are several and they are not evaluated yet, or none of them is sparse enough.
        """
        if len(names := self.sae_names) == 1:
            return names[0]
        best = self.result("pareto").get("best")
        return best if best in names else None

    def to_index(self, only: Sequence[str] = ()) -> list[str]:
        """SAEs whose features are indexed: those that are named, or all up to `INDEX_ALL`, or of more the best.

        Raises:
            RunError: one that is named is not there; there is none; or there are many and none is marked best.
        """
        if not (names := self.sae_names):
            raise RunError(f"{self.path} has no trained SAE; train one with saev train {self.path}.")
        if unknown := [name for name in only if name not in names]:
            near = " or ".join(difflib.get_close_matches(unknown[0], names, n=3) or names[:5])
            raise RunError(f"{self.path} has no SAE {unknown[0]!r}; did you mean {near}?")
        if only or len(names) <= INDEX_ALL:
            return list(only) or names
        if self.best is None:
            raise RunError(f"none of the {len(names)} SAEs of {self.path} is marked best; saev evaluate {self.path} first, or --only NAME.")
        return [self.best]

    def sae_dir(self, name: str) -> Path:
        """The checkpoint folder of SAE `name`."""
        return self.path / "sae" / name

    def features_path(self, name: str) -> Path:
        """The feature index of SAE `name`."""
        return self.path / "features" / f"{name}.zarr"

    def results_path(self, task: str) -> Path:
        """Where a task's results go."""
        return self.path / "results" / f"{task}.json"

    @property
    def metrics_path(self) -> Path:
        """Training metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        """The illustrated report."""
        return self.path / "report.html"

    @property
    def stages_path(self) -> Path:
        """What was made from what; see `pipeline`."""
        return self.path / "stages.json"

    def stamps(self) -> dict[str, Any]:
        """What `stages_path` holds: for every stage that is done its key, how long it took, and for an SAE what it was told.

        Raises:
            RunError: the file is not JSON.
        """
        try:
            stamps: dict[str, Any] = json.loads(self.stages_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(f"{self.stages_path} is not JSON ({error}); delete it, and what cannot be told valid is made again.") from None
        return stamps

    def result(self, task: str) -> dict[str, Any]:
        """What was written to `results_path(task)`; empty where nothing was.

        Raises:
            RunError: the file is not JSON.
        """
        try:
            data: dict[str, Any] = json.loads(self.results_path(task).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(f"{self.results_path(task)} is not JSON ({error}); delete it and run the task again.") from None
        return data

    def write_result(self, task: str, data: Mapping[str, Any]) -> Path:
        """Write `results_path(task)` as a whole."""
        path = self.results_path(task)
        write_json(path, data)
        return path

    def _save(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", {"saev": FORMAT, "config": self.config.model_dump(mode="json"), "plugins": self.plugins})
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror or error}); choose another --out.") from None

    def _fixed_changes(self, config: RunConfig) -> list[str]:
        """`key: old, not new` for every difference that an artifact which is already there does not allow."""
        store = local_path(self.store_url)  # a remote one counts as made: asking would take zarr and the network
        made = {"record": store is None or store.exists(), "train": any(self.path.glob("sae/*/*"))}
        changes = []
        swept = bool(self.config.sweep or config.sweep)
        for key, old, new in differences(self.config.model_dump(mode="json"), config.model_dump(mode="json")):
            if swept and _STAGE_OF.get(key.split(".")[0]) == "train":
                continue
            if _fixes(key) and made.get(_STAGE_OF.get(key.split(".")[0], ""), False):
                changes.append(f"{key} is {_text(old)}, not {_text(new)}")
        if made["train"] and self.config.sweep and not config.sweep:
            changes.append("it has a sweep, and none is given now: pass --sweep again, or go on with saev train RUN")
        return changes + (self._changed_saes(config) if swept and made["train"] else [])

    def _changed_saes(self, config: RunConfig) -> list[str]:
        """For every SAE that is trained and has the name of a point of `config`: in what they differ."""
        stamps = self.stamps()
        told = {point.name: point.says() for point in expand(config).points}
        return [
            f"{name}: {key} is {_text(old)}, not {_text(new)}"
            for name, says in told.items()
            if (self.sae_dir(name) / "checkpoint.json").exists()
            for key, old, new in differences(stamps.get(f"train:{name}", {}).get("says", says), says)
        ]


def _fixes(key: str) -> bool:
    """Whether what is already made would be another with another value of this key; layers, for one, are added."""
    effect = effect_of(RunConfig, key)
    return effect.what == "result" and "extends" not in effect.scopes


def _text(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


__all__ = ["FORMAT", "STAGES", "Run", "check_config", "default_path", "plugin_versions", "write_json"]
