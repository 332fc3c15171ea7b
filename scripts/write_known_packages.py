"""Which package brings which plugin, written into the core from every package's pyproject.toml.

`python -m scripts.write_known_packages` (part of `make fix`) writes it; a test fails when it is stale. The core cannot ask the
packages themselves: it needs the table to say what to install when they are missing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from saev_core.plugins.registry import GROUPS

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "packages/saev-core/src/saev_core/plugins/known_packages.py"
APART = ("saev-core", "saev-example")
"""Without plugins that could be missing: the core itself, and the example, which is not published."""


def text() -> str:
    """The module, as `ruff format` leaves it."""
    known: dict[str, dict[str, str]] = {kind: {} for kind in GROUPS}
    for project in sorted((*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml"))):
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        for kind, group in GROUPS.items():
            if declared["name"] not in APART:
                known[kind] |= dict.fromkeys(declared.get("entry-points", {}).get(group, {}), declared["name"])
    dists = sorted({dist for names in known.values() for dist in names.values()})
    lines = [
        '"""Plugins of this repository\'s packages. Written by `make fix` from their pyproject.toml; edit those."""',
        "\nfrom __future__ import annotations\n\nKNOWN: dict[str, dict[str, str]] = {",
    ]
    for kind, names in known.items():
        lines += [f'    "{kind}": {{', *(f'        "{name}": "{dist}",' for name, dist in names.items()), "    },"]
    lines += ["}", '"""Kind -> name -> the distribution to install for it."""', "OUR_DISTS = (", '    "saev-core",']
    lines += [*(f'    "{dist}",' for dist in dists), ")", '"""Distributions of this repository that bring plugins."""']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
