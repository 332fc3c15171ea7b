"""`Run`: the folder of one run, with its configuration and all artifacts. Imports no torch."""

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
"""The stages of a run; each reads the artifacts of earlier stages."""
INDEX_ALL = 4
"""Up to this many SAEs are all indexed; of a larger sweep, only the best one."""
_STAGE_OF = {
    "model": "record",
    "dataset": "record",
    "record": "record",
    "store": "record",
    "sae": "train",
    "read": "train",
    "train": "train",
}
"""Top-level key of the configuration -> the stage whose artifact depends on it; later stages are simply re-run."""


class Run:
    """A run folder: `config.json`, `store`, `sae/<name>/`, `features/<name>.zarr`, `metrics.jsonl`, `results/`, `report.html`.

    Use `Run.create` or `Run.open`. Path properties work whether or not the files exist yet.
    """

    def __init__(self, path: str | Path, config: RunConfig, plugins: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.config = config
        self.plugins = dict(plugins)
        """Plugin such as `model:tiny` -> `distribution version` at the time the configuration was saved."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> Run:
        """Create a run at `path`, a new or empty folder, or reuse a run whose artifacts are compatible with `config`.

        Raises:
            RunError: the folder cannot be written, contains other files, or contains a run with a different configuration
                (the message lists the keys that differ).
        """
        path = Path(path)
        if (path / "config.json").exists():
            run = cls.open(path)
            if changed := run._fixed_changes(config):
                raise RunError(f"{path} is a run with a different configuration ({'; '.join(changed)}); choose another --out or delete it.")
        elif path.is_dir() and any(path.iterdir()):
            raise RunError(f"{path} is not empty and is not a run; choose another --out.")
        run = cls(path, config, plugin_versions(config))
        run._save()
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run at `path`.

        Raises:
            RunError: it is not a run, or has another format version.
        """
        path = Path(path)
        try:
            saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "is not a run (it has no config.json)" if path.exists() else "does not exist"
            raise RunError(f"{path} {what}; create one with saev run --out {path}.") from None
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
        """Path or URL of the activation store."""
        return self.config.store or str(self.path / "store")

    @property
    def sae_names(self) -> list[str]:
        """Names of all fully trained SAEs, sorted."""
        return sorted(folder.parent.name for folder in self.path.glob("sae/*/checkpoint.json"))

    @property
    def best(self) -> str | None:
        """The SAE with the lowest error below an L0 bound, from `results/pareto.json`, or the only SAE.

        None if there are several and they are not evaluated yet, or none is sparse enough.
        """
        if len(names := self.sae_names) == 1:
            return names[0]
        best = self.result("pareto").get("best")
        return best if best in names else None

    def to_index(self, only: Sequence[str] = ()) -> list[str]:
        """SAEs to index: those in `only`, or all if there are at most `INDEX_ALL`, or else the best one.

        Raises:
            RunError: a name in `only` does not exist; there is no SAE; or there are many and none is marked best.
        """
        if not (names := self.sae_names):
            raise RunError(f"{self.path} has no trained SAE; train one with saev train {self.path}.")
        if unknown := [name for name in only if name not in names]:
            near = " or ".join(difflib.get_close_matches(unknown[0], names, n=3) or names[:5])
            raise RunError(f"{self.path} has no SAE {unknown[0]!r}; did you mean {near}?")
        if only or len(names) <= INDEX_ALL:
            return list(only) or names
        if self.best is None:
            raise RunError(
                f"none of the {len(names)} SAEs of {self.path} is marked best; run saev evaluate {self.path} first, or pass --only NAME."
            )
        return [self.best]

    def sae_dir(self, name: str) -> Path:
        """The checkpoint folder of SAE `name`."""
        return self.path / "sae" / name

    def features_path(self, name: str) -> Path:
        """The feature index of SAE `name`."""
        return self.path / "features" / f"{name}.zarr"

    def results_path(self, task: str) -> Path:
        """The results file of a task."""
        return self.path / "results" / f"{task}.json"

    @property
    def metrics_path(self) -> Path:
        """Training metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        """The illustrated report."""
        return self.path / "report.html"

    @property
    def stages_path(self) -> Path:
        """Which stages are done, and from which inputs; see `pipeline`."""
        return self.path / "stages.json"

    def stamps(self) -> dict[str, Any]:
        """Contents of `stages_path`: the key and duration of every finished stage, and for an SAE its settings.

        Raises:
            RunError: the file is not JSON.
        """
        try:
            stamps: dict[str, Any] = json.loads(self.stages_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(f"{self.stages_path} is not JSON ({error}); delete it to re-run the stages.") from None
        return stamps

    def result(self, task: str) -> dict[str, Any]:
        """Contents of `results_path(task)`; empty if there is no such file.

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
        """Write `results_path(task)`, replacing it."""
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
        """`key is old, not new` for every difference that conflicts with an existing artifact."""
        store = local_path(self.store_url)  # a remote store is assumed to exist: checking would need zarr and the network
        made = {"record": store is None or store.exists(), "train": any(self.path.glob("sae/*/*"))}
        changes = []
        swept = bool(self.config.sweep or config.sweep)
        for key, old, new in differences(self.config.model_dump(mode="json"), config.model_dump(mode="json")):
            if swept and _STAGE_OF.get(key.split(".")[0]) == "train":
                continue
            if _fixes(key) and made.get(_STAGE_OF.get(key.split(".")[0], ""), False):
                changes.append(f"{key} is {_text(old)}, not {_text(new)}")
        if made["train"] and self.config.sweep and not config.sweep:
            changes.append("it has a sweep, but none was given: pass --sweep again, or continue with saev train RUN")
        return changes + (self._changed_saes(config) if swept and made["train"] else [])

    def _changed_saes(self, config: RunConfig) -> list[str]:
        """Differences between each trained SAE and the point of `config` with the same name."""
        stamps = self.stamps()
        told = {point.name: point.says() for point in expand(config).points}
        return [
            f"{name}: {key} is {_text(old)}, not {_text(new)}"
            for name, says in told.items()
            if (self.sae_dir(name) / "checkpoint.json").exists()
            for key, old, new in differences(stamps.get(f"train:{name}", {}).get("says", says), says)
        ]


def _fixes(key: str) -> bool:
    """Whether changing this key invalidates existing artifacts; changing layers, for example, only adds to them."""
    effect = effect_of(RunConfig, key)
    return effect.what == "result" and "extends" not in effect.scopes


def _text(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


__all__ = ["FORMAT", "STAGES", "Run", "check_config", "default_path", "plugin_versions", "write_json"]
