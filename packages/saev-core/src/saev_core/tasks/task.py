"""`Task`: a plugin that does something with a run's features. Its methods marked `@verb` are what `saev task NAME` offers."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from saev_core.config import Config
from saev_core.errors import DatasetError, PluginError, RunError, SaevError
from saev_core.progress import Track, silent
from saev_core.run import Run

if TYPE_CHECKING:
    import torch

    from saev_core.checkpoint import Checkpoint
    from saev_core.dataset import ImageDataset
    from saev_core.features import FeatureIndex
    from saev_core.model import VisionModel
    from saev_core.store import ActivationStore

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

RESERVED = frozenset({"dataset", "device", "config", "set", "json", "debug", "help"})
"""Flags that every verb has; an option cannot be called so."""


class NoOptions(Config):
    """Options of a verb that has none."""


def verb(method: F) -> F:
    """Mark a method `(self, cx: TaskContext, cfg: MyConfig) -> Mapping` of a `Task` as one that the command line offers.

    The first line of its docstring is its help, the fields of `MyConfig`, a `Config`, are its flags; without a third
    parameter it has none. What it returns is what `--json` prints.
    """
    method.__saev_verb__ = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True)
class Verb:
    """One verb of a task: its name on the command line, its method's name, and the class of its options."""

    name: str
    method: str
    config: type[Config]
    help: str


class Task:
    """Base of every task plugin: define methods marked `@verb`. It is built without arguments and keeps nothing between verbs."""

    @classmethod
    def verbs(cls) -> dict[str, Verb]:
        """Verbs by name, in the order in which they are written.

        Raises:
            PluginError: there is none, or one cannot be offered: its options are not a `Config`, or bear a reserved name.
        """
        found = {}
        for klass in reversed(cls.__mro__):
            for method, function in vars(klass).items():
                if getattr(function, "__saev_verb__", False):
                    name = method.strip("_").replace("_", "-")
                    found[name] = Verb(name, method, _options_of(cls, function), inspect.getdoc(function) or "")
        if not found:
            raise PluginError(f"task {cls.__module__}.{cls.__qualname__} has no method marked @verb.")
        return found

    @classmethod
    def find(cls, name: str) -> Verb:
        """The verb of that name.

        Raises:
            UnknownVerbError: there is none; names the nearest and all.
        """
        verbs = cls.verbs()
        if name in verbs:
            return verbs[name]
        near = difflib.get_close_matches(name, verbs, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownVerbError(f"no verb is called {name!r}{hint} There are: {', '.join(verbs)}.")

    def call(self, cx: TaskContext, name: str, cfg: Config | None = None) -> dict[str, Any]:
        """Do a verb; what it found as plain JSON values.

        Raises:
            UnknownVerbError: as `find`.
            PluginError: what it returns is not a mapping of values that JSON knows.
        """
        found = self.find(name)
        options = [] if found.config is NoOptions else [cfg if cfg is not None else found.config()]
        result = getattr(self, found.method)(cx, *options)
        if not isinstance(result, Mapping | None):
            raise PluginError(f"{cx.name} {name} returned {type(result).__name__}, not a mapping; that is a mistake of the plugin.")
        try:
            answer = plain(result or {})
        except TypeError as error:
            raise PluginError(f"{cx.name} {name} returned what JSON does not know ({error}); that is a mistake of the plugin.") from None
        assert isinstance(answer, dict)
        return answer


class UnknownVerbError(PluginError):
    """A task has no verb of that name."""

    exit_code = 2


def _options_of(task: type[Task], function: Callable[..., Any]) -> type[Config]:
    """The class of a verb's third parameter."""
    where = f"{task.__module__}.{task.__qualname__}.{function.__name__}"
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) == 2:
        return NoOptions
    if len(parameters) != 3 or parameters[2].annotation is inspect.Parameter.empty:
        raise PluginError(f"{where}: a verb is written (self, cx: TaskContext, cfg: MyConfig), and this one is not.")
    # By itself: the other annotations may be imported for type checking only.
    holder = SimpleNamespace(__annotations__={"cfg": parameters[2].annotation})
    try:
        config = typing.get_type_hints(holder, inspect.unwrap(function).__globals__, dict(vars(task)))["cfg"]
    except NameError as error:
        raise PluginError(f"{where}: the class of its options is not there when it runs ({error}); import it outright.") from None
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise PluginError(f"{where}: its options are {config!r}, not a class derived from saev_core's Config.")
    if taken := RESERVED & set(config.model_fields):
        raise PluginError(f"{where}: an option cannot be called {sorted(taken)[0]}, every verb has that flag.")
    return config


def plain(value: Any) -> Any:
    """A value as JSON knows it: numbers and arrays of numpy and torch unpacked, paths as text, numbers that are not finite as None.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(each) for key, each in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(each) for each in value]
    raise TypeError(f"a {type(value).__name__}")


class TaskContext:
    """What a verb works with: the run and what was made in it, the device, and where to speak. All but the run is opened when asked for."""

    def __init__(
        self,
        run: Run,
        name: str,
        *,
        device: str = "",
        dataset: str = "",
        say: Callable[[str], None] = log.info,
        table: Callable[..., None] | None = None,
        track: Track = silent,
    ) -> None:
        """
        Args:
            name: the task's, for its folder.
            device: as `--device`; empty: the run's.
            dataset: where the pictures lie now, as `--dataset`; empty: where they lay when they were recorded.
            say: given one line for a person.
            table: given rows for a person, and `header`; by default each goes to `say`.
            track: told how far a long job is.
        """
        self.run, self.name, self.say, self.track = run, name, say, track
        self._device, self._where, self._table = device, dataset, table
        self._checkpoints: dict[str, Checkpoint] = {}

    def table(self, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
        """Aligned columns for a person."""
        cells = [[str(each) for each in row] for row in rows]
        if self._table is not None:
            self._table(cells, header)
            return
        for row in [list(header), *cells] if header else cells:
            self.say("  ".join(row))

    def folder(self, name: str = "") -> Path:
        """`RUN/tasks/<task>`, which is made, or the path `name` in it, which is not.

        Raises:
            RunError: it cannot be written.
        """
        path = self.run.path / "tasks" / self.name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path} cannot be written ({error.strerror or error}).") from None
        return path / name if name else path

    @cached_property
    def device(self) -> torch.device:
        """Where to compute.

        Raises:
            DeviceError: it is absent.
        """
        from saev_core.model import pick_device

        return pick_device(self._device or self.run.config.device)

    @cached_property
    def _store(self) -> ActivationStore:
        from saev_core.identity import open_store

        return open_store(self.run)

    def store(self) -> ActivationStore:
        """The run's activations.

        Raises:
            RunError, StoreError: nothing is recorded, or it is damaged or another's.
        """
        return self._store

    @cached_property
    def _dataset(self) -> ImageDataset:
        from saev_core.dataset import load_dataset

        told = f"if the pictures have moved, say where: saev task {self.name} VERB {self.run.path} --dataset NAME:FOLDER."
        try:
            dataset = load_dataset(self._where or self.run.config.dataset)
        except SaevError as error:
            raise DatasetError(f"{error} {told[0].upper()}{told[1:]}") from None
        recorded = self._recorded_identity()
        if recorded not in ("", dataset.identity()):
            raise DatasetError(f"these pictures are others than those that {self.run.path} was made of; {told}")
        return dataset

    def _recorded_identity(self) -> str:
        """What the store says of its pictures; empty where nothing is recorded."""
        from saev_core.store import ActivationStore

        url = self.run.store_url
        if "://" not in url and not Path(url).exists():
            return ""
        return str(ActivationStore.open(url).meta.dataset.get("identity", ""))

    def dataset(self) -> ImageDataset:
        """The pictures of the run, those that were recorded.

        Raises:
            DatasetError: they cannot be opened, or are others; says how to name another place.
        """
        return self._dataset

    @cached_property
    def _model(self) -> VisionModel:
        from saev_core.model import load_model

        return load_model(self.run.config.model, str(self.device))

    def model(self) -> VisionModel:
        """The run's model, on the device.

        Raises:
            PluginError, ModelError: it cannot be loaded.
        """
        return self._model

    def sae_name(self, name: str = "") -> str:
        """The SAE of that name; none named: the best, or the only one.

        Raises:
            RunError: there is none, none of that name, or several of which none is marked best.
        """
        names = self.run.to_index([name] if name else ())
        if len(names) == 1:
            return names[0]
        if self.run.best:
            return self.run.best
        raise RunError(
            f"{self.run.path} has several SAEs ({', '.join(names)}): name one, or saev evaluate {self.run.path} to mark the best."
        )

    def checkpoint(self, name: str = "") -> Checkpoint:
        """A trained SAE, on the device, checked against the recorded activations where there are any.

        Raises:
            RunError: as `sae_name`.
            CheckpointError: it is damaged, or of other activations.
        """
        from saev_core.checkpoint import Checkpoint

        name = self.sae_name(name)
        if name not in self._checkpoints:
            checkpoint = Checkpoint.load(self.run.sae_dir(name), self.device)
            if not self.run.config.train.live or self._recorded_identity():
                checkpoint.check(self.store())
            self._checkpoints[name] = checkpoint
        return self._checkpoints[name]

    def index(self, name: str = "") -> FeatureIndex:
        """The feature index of an SAE, checked against it.

        Raises:
            RunError: as `sae_name`, or it is not indexed.
        """
        from saev_core.features import FeatureIndex

        name = self.sae_name(name)
        return FeatureIndex.open(self.run.features_path(name), self.checkpoint(name))


__all__ = ["RESERVED", "NoOptions", "Task", "TaskContext", "UnknownVerbError", "Verb", "plain", "verb"]
