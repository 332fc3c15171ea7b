"""`--record-layers -1 -2`, `--names` alone: several values after one flag, or none, which typer's parser does not support."""

from __future__ import annotations

import re
from collections.abc import Sequence

SEVERAL = {"--record-layers": r"-?\d+", "--labels": r"\d+", "--include": r"\d+", "--only": r"(?!-).+", "--set": r"[\w.-]+=.*"}
"""Flag -> pattern of its second and later values; the first mismatch ends the list."""

ALONE = {"--names": "text"}
"""Flag -> its value if none follows."""


def expand(argv: Sequence[str]) -> list[str]:
    """`--labels 1 2` as `--labels 1 --labels 2`, for every flag in `SEVERAL`, `--names` as `--names text`; the rest unchanged."""
    args: list[str] = []
    flag, first = "", False
    for i, arg in enumerate(argv):
        if arg == "--":
            return [*args, *argv[i:]]
        if arg in SEVERAL:
            flag, first = arg, True
        elif flag and not first:
            if not re.fullmatch(SEVERAL[flag], arg):
                flag = ""
            else:
                args.append(flag)
        else:
            first = False
        args.append(arg)
        if arg in ALONE and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
            args.append(ALONE[arg])
    return args
