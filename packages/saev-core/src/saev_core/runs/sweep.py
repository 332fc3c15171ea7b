"""Sweeps: expand lists of settings in a TOML file to a grid of points, each training one SAE. Imports no torch itself.

Validating a point needs the options of its SAE plugin, which imports that plugin.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import random
import re
import types
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any, Union, get_args, get_origin

from saev_core.config.affects import effect_of, settings_that_matter, settings_within
from saev_core.config.base import validate
from saev_core.config.run import RunConfig
from saev_core.config.stages import ReadConfig, TrainConfig
from saev_core.config.toml_and_set import merge
from saev_core.errors import ConfigError
from saev_core.plugins.registry import config_class, find, parse_ref, resolve

ASK_ABOVE = 1_000
"""Sweeps with more points than this need confirmation (`--yes`)."""
MOST = 100_000
"""Maximum number of points in a sweep."""

TABLES = ("sae", "read", "train", "sweep", "point")
"""Tables allowed in a sweep file."""

_RANGE, _SIGNIFICANT = {"min", "max", "log", "choices"}, 4
_ONE_STORE = "a sweep trains on one store; record another store in a separate run (saev record --out) and sweep there"
_FOR_ALL = "it is the same for every SAE of a run; pass it with --set or --config"
_REFUSED = {
    **dict.fromkeys(("model", "dataset", "record", "store"), _ONE_STORE),
    **dict.fromkeys(("device", "trackers", "evaluate", "index", "names", "report"), _FOR_ALL),
}


@dataclass(frozen=True)
class Point:
    """One SAE of a sweep."""

    name: str
    """Folder name: the variant and the swept settings."""
    config: RunConfig
    """The full configuration, without the sweep; its `train.seed` is the seed of the batch stream."""
    seed: int
    """Seed of its initialisation and its own random draws: the meaning of `train.seed` in a sweep."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings from the sweep, by dotted key."""

    def says(self) -> dict[str, Any]:
        """All settings that determine its result on a given store, without those at their default."""
        plugin = find("sae", self.config.sae.name)
        _, options = resolve("sae", self.config.sae)
        return {
            "sae": {"name": f"{plugin.dist}:{plugin.name}", **settings_that_matter(options, defaults=False)},
            "read": settings_that_matter(self.config.read, defaults=False),
            "train": settings_that_matter(self.config.train, defaults=False) | {"seed": self.seed, "stream_seed": self.config.train.seed},
        }


@dataclass(frozen=True)
class Sweep:
    """The points of a configuration; a configuration without a sweep has one."""

    points: tuple[Point, ...]
    dropped: tuple[str, ...] = ()
    """Names of points dropped as duplicates."""


def expand(config: RunConfig) -> Sweep:
    """Every point of a configuration's sweep, each validated together with its plugin's options.

    Raises:
        ConfigError: a key is unknown or cannot be swept, a value is invalid, or a list is empty; names key and point.
        UnknownPluginError, PluginError: an SAE variant is not installed or cannot be loaded.
    """
    if not config.sweep:
        return Sweep((Point(plain(config.sae.name), config, config.train.seed),))
    head, blocks = _parse(config.sweep)
    base = config.model_dump(mode="json", exclude={"sweep"})
    points: dict[str, Point] = {}
    dropped = []
    names: set[str] = set()
    for block in blocks:
        for settings in block.points(head, config.sae.name):
            # An option set by `topk:16` also distinguishes points.
            point = _point(base, settings, block.swept | (settings.keys() - block.settings.keys()))
            identity = json.dumps(point.says(), sort_keys=True)
            if identity in points:
                dropped.append(points[identity].name)
                continue
            name = point.name
            if name.lower() in names:
                name = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"
            names.add(name.lower())
            points[identity] = Point(name, point.config, point.seed, point.settings)
    return Sweep(tuple(points.values()), tuple(dropped))


def count(sweep: Mapping[str, Any], sae: str = "topk") -> int:
    """Number of points before duplicates are dropped, without expanding them.

    Raises:
        ConfigError: as `expand`, for errors visible in the file alone.
    """
    if not sweep:
        return 1
    head, blocks = _parse(sweep)
    return sum(block.size(head, sae) for block in blocks)


def check_size(sweep: Mapping[str, Any], sae: str = "topk", *, yes: bool = False) -> None:
    """Require confirmation for large sweeps.

    Raises:
        ConfigError: the sweep has more than `ASK_ABOVE` points and `yes` is false, or more than `MOST`.
    """
    n = count(sweep, sae)
    if n > MOST:
        raise ConfigError(f"the sweep has {n:,} points, the limit is {MOST:,} per run; sample some of them with [sweep] n = 100.")
    if n > ASK_ABOVE and not yes:
        raise ConfigError(f"the sweep has {n:,} points; add --yes to confirm, or --dry-run --yes to see the cost.")


def grouped(points: Iterable[Point]) -> list[list[Point]]:
    """Points grouped by batch stream: those that read the same vectors in the same batches can share a pass; in order."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(json.dumps(stream_of(point.config), sort_keys=True), []).append(point)
    return list(groups.values())


def stream_of(config: RunConfig) -> dict[str, Any]:
    """The settings that determine the stream of batches an SAE is trained on."""
    train = config.train.model_dump(mode="json", include=set(settings_within(TrainConfig, "pass")))
    return {"read": settings_that_matter(config.read), "train": train}


def plain(name: str) -> str:
    """A plugin's name without its distribution, safe for file systems."""
    return re.sub(r"[^\w.-]+", "-", name.rpartition(":")[2])


# Parsing the file.


@dataclass(frozen=True)
class _Head:
    """`[sweep]`: how many points are drawn from ranges, and with which seed."""

    n: int = 0
    seed: int = 0


@dataclass(frozen=True)
class _Block:
    """One grid: the shared settings, overridden by those of one `[[point]]`."""

    settings: dict[str, Any]
    """Dotted key -> value, list of values or range, as written."""
    own: frozenset[str]
    """Keys of the `[[point]]` table."""
    where: str

    @property
    def swept(self) -> frozenset[str]:
        """Keys that distinguish the block's points, or blocks."""
        return self.own | {key for key, value in self.settings.items() if isinstance(value, list) or is_range(value)}

    def size(self, head: _Head, sae: str) -> int:
        return sum(math.prod(map(len, axes.values())) * (head.n if ranges else 1) for _, axes, ranges in self._variants(head, sae))

    def points(self, head: _Head, sae: str) -> Iterable[dict[str, Any]]:
        """Every combination, as dotted key -> value."""
        for plugin, axes, ranges in self._variants(head, sae):
            draws = {key: _draw(key, spec, head) for key, spec in ranges.items()}
            for values in product(*axes.values()):
                grid = {**plugin, **dict(zip(axes, values, strict=True))}
                for i in range(head.n if ranges else 1):
                    drawn = grid | {key: drawn[i] for key, drawn in draws.items()}
                    yield {key: drawn[key] for key in self._order(drawn)}

    def _order(self, point: Mapping[str, Any]) -> list[str]:
        """Keys in the order of the file, even if a plugin's name sets one earlier."""
        return sorted(point, key=lambda key: list(self.settings).index(key) if key in self.settings else -1)

    def _variants(self, head: _Head, sae: str) -> Iterable[tuple[dict[str, Any], dict[str, list[Any]], dict[str, Any]]]:
        """For each plugin: the settings its reference sets, and the lists and ranges of the other keys."""
        rest = {key: value for key, value in self.settings.items() if key != "sae.name"}
        named = self.settings.get("sae.name")
        for name in _values("sae.name", named, 0, self.where) if named is not None else [None]:
            if name is not None and not isinstance(name, str):
                raise ConfigError(f"{self.where}sae.name: a plugin name must be a string (got {name!r}).")
            ref = parse_ref("sae", name) if name else None
            plugin = {"sae.name": ref.name, **{f"sae.{key}": value for key, value in ref.options.items()}} if ref else {}
            fields = config_class(find("sae", ref.name if ref else sae)).model_fields
            axes: dict[str, list[Any]] = {}
            ranges: dict[str, Any] = {}
            for key, value in rest.items():
                if is_range(value):
                    _check_range(f"{self.where}{key}", value, head)
                    ranges[key] = value
                else:
                    axes[key] = _values(key, value, _list_depth(_annotation(key, fields)), self.where)
            yield plugin, axes, ranges


def _parse(sweep: Mapping[str, Any]) -> tuple[_Head, list[_Block]]:
    _check_tables(sweep, TABLES, "sweep: ")
    head = _head(sweep.get("sweep", {}))
    shared = _flat({key: value for key, value in sweep.items() if key not in ("sweep", "point")})
    tables = sweep.get("point", [{}])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("sweep: point must be a list of tables; write [[point]] above each.")
    blocks = []
    for number, table in enumerate(tables, 1):
        where = f"sweep, point {number}: " if "point" in sweep else "sweep: "
        _check_tables(table, TABLES[:3], where)
        own = _flat(table)
        blocks.append(_Block(shared | own, frozenset(own), where))
    settings = [(block, key, value) for block in blocks for key, value in block.settings.items()]
    if not any(settings):
        raise ConfigError("sweep: the file contains no settings; add some, for example [train] lr = [1e-3, 2e-3].")
    for block, key, _ in settings:
        if effect_of(RunConfig, key).what != "result":
            raise ConfigError(f"{block.where}{key} does not affect the trained SAE; pass it with --set {key}=...")
        if key == "train.live":
            raise ConfigError(f"{block.where}{key} is the same for every SAE of a run; pass it with --set {key}=...")
    if head.n and not any(is_range(value) for _, _, value in settings):
        raise ConfigError(
            "sweep.n samples from ranges, but the file has none; add one, for example lr = {min = 1e-4, max = 1e-2, log = true}."
        )
    return head, blocks


def _check_tables(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """
    Raises:
        ConfigError: a key is not one of `known`; the message explains why it cannot be swept, or suggests the closest key.
    """
    for key in table:
        if key in _REFUSED:
            raise ConfigError(f"{where}{key} cannot be swept: {_REFUSED[key]}.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(f"{where}{key}: unknown; " + (f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}."))


def _head(table: Any) -> _Head:
    if not isinstance(table, dict):
        raise ConfigError("sweep.sweep must be a table: [sweep] n = 20, seed = 0.")
    for key, value in table.items():
        if key not in ("n", "seed"):
            raise ConfigError(f"sweep.{key}: unknown; known keys: n, seed.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"sweep.{key}: must be a whole number, 0 or more (got {value!r}).")
    return _Head(**table)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value or range, with nested tables flattened. `sae.options.k` is `sae.k`, and `sae = "topk"` is its name."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and not is_range(value):
            inner = prefix if (prefix, key) == ("sae.", "options") else f"{prefix}{_safe(key, prefix)}."
            flat |= _flat(value, inner)
        else:
            flat["sae.name" if prefix + key == "sae" else f"{prefix}{_safe(key, prefix)}"] = value
    return flat


def _safe(key: str, prefix: str) -> str:
    return key.replace("-", "_") if prefix.startswith("sae.") else key


# Values.


def is_range(value: Any) -> bool:
    """Whether a value is a range to sample from: `{min, max, log}` or `{choices}`."""
    return isinstance(value, dict) and bool(value) and set(value) <= _RANGE


def _check_range(where: str, spec: Mapping[str, Any], head: _Head) -> None:
    if not head.n:
        raise ConfigError(f"{where} is a range; set the number of points to sample: [sweep] n = 20.")
    if "choices" in spec:
        if set(spec) != {"choices"} or not isinstance(spec["choices"], list) or not spec["choices"]:
            raise ConfigError(f"{where}: choices must be a non-empty list, without other keys.")
        return
    low: Any = spec.get("min")
    high: Any = spec.get("max")
    if not (_is_number(low) and _is_number(high) and low <= high):
        raise ConfigError(f"{where}: a range needs numbers min and max with min <= max (got {json.dumps(dict(spec))}).")
    if spec.get("log") and low <= 0:
        raise ConfigError(f"{where}: a logarithmic range needs min above 0 (got min {low}).")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw(key: str, spec: Mapping[str, Any], head: _Head) -> list[Any]:
    """`n` values of one key. A larger `n` extends the same sequence, and other keys do not affect it."""
    # random() is the only method whose sequence Python guarantees across versions.
    rng = random.Random(f"{head.seed} {key}")
    return [_at(spec, rng.random()) for _ in range(head.n)]


def _at(spec: Mapping[str, Any], u: float) -> Any:
    """The value at `u` in [0, 1) of a range; integer ranges give integers, others four significant digits."""
    if "choices" in spec:
        return spec["choices"][int(u * len(spec["choices"]))]
    low, high = spec["min"], spec["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    # Every integer is equally likely, including high.
    a, b = (low, high + 1) if whole else (low, high)
    value = a * (b / a) ** u if spec.get("log") else a + (b - a) * u
    return min(max(int(value), low), high) if whole else min(max(float(f"{value:.{_SIGNIFICANT}g}"), low), high)


def _values(key: str, value: Any, depth: int, where: str) -> list[Any]:
    """The values of a key: one, or the items of a list that is nested deeper than the key's type."""
    if not isinstance(value, list):
        return [value]
    if not value:
        raise ConfigError(f"{where}{key} is an empty list; add values or remove it.")
    return value if _depth(value) > depth else [value]


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _annotation(key: str, options: Mapping[str, Any]) -> Any:
    """The type of a key's value; None for an unknown key, which validation reports later."""
    section, _, rest = key.partition(".")
    fields = {"sae": options, "read": ReadConfig.model_fields, "train": TrainConfig.model_fields}.get(section, {})
    found = fields.get(rest)
    return found.annotation if found is not None else None


def _list_depth(annotation: Any) -> int:
    """Nesting depth of lists in values of this type: 0 for a number, 1 for `tuple[int, ...]`; the minimum over a union."""
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return _list_depth(inner[0])
    if origin in (Union, types.UnionType):
        return min(_list_depth(part) for part in inner if part is not types.NoneType)
    if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and not issubclass(origin, str | bytes):
        return 1 + min((_list_depth(part) for part in inner if part is not Ellipsis), default=0)
    return 0


# Points.


def _point(base: dict[str, Any], settings: dict[str, Any], named: Set[str]) -> Point:
    """
    Args:
        named: keys that become part of the point's name.
    """
    data, over = json.loads(json.dumps(base)), dict[str, Any]()
    for key, value in settings.items():
        *parents, last = key.split(".")
        at = over
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    if (seed := over.get("train", {}).pop("seed", None)) is not None:
        validate(TrainConfig, {"seed": seed}, where="train")
    else:
        seed = base["train"]["seed"]
    merge(data, over)
    try:
        config = validate(RunConfig, data)
        resolve("sae", config.sae)
    except ConfigError as error:
        told = " ".join(f"{key}={value}" for key, value in settings.items())
        raise ConfigError(f"sweep, point {told}: {str(error).replace('sae.options.', 'sae.', 1)}") from None
    return Point(_name(config.sae.name, settings, named), config, seed, settings)


def _name(variant: str, settings: Mapping[str, Any], named: Set[str]) -> str:
    """`topk-k32-lr0.001-s1`."""
    keys = sorted((key for key in settings if key in named and key != "sae.name"), key=lambda key: key == "train.seed")
    name = "-".join([plain(variant), *(_part(key, settings[key]) for key in keys)])
    if len(name) > 100:
        name = f"{name[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return name


def _part(key: str, value: Any) -> str:
    last = "s" if key == "train.seed" else key.rpartition(".")[2]
    text = "+".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)
    # Separate words from their key: optimizer_muon, but lr0.001.
    joint = "" if text[:1].isdigit() or text[:1] == "-" else "_"
    return re.sub(r"[^\w.+-]+", "_", f"{last}{joint}{text}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
