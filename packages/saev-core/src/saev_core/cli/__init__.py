"""The command `saev`. Showing help imports only typer; commands import what they need."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from saev_core.errors import SaevError

INTERRUPTED = "interrupted; re-run the same command to resume."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Every error is one line on stderr; `--debug` shows the traceback instead.
    """
    import typer

    from saev_core.cli.app import app
    from saev_core.cli.list_flags import expand

    args = expand(sys.argv[1:] if argv is None else argv)
    # typer's usage errors; its copy of click has no public name.
    wrong_usage: type[Exception] = typer.BadParameter.__mro__[2]
    try:
        # Newer typer turns an interrupt into the exit code 130, older ones into Abort.
        code: int = app(args, prog_name="saev", standalone_mode=False) or 0
        return _fail(INTERRUPTED, code, args) if code == 130 else code
    except SaevError as error:
        return _fail(str(error), error.exit_code, args)
    except wrong_usage as error:
        return _fail(_usage(error), 2, args)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, 130, args)
    except BrokenPipeError:
        # The reader of our output is gone (`saev plugins | head`); print nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 last resort: report one line, not a traceback
        return _fail(f"unexpected {type(error).__name__}: {error}; add --debug for the traceback.", 1, args)


def _usage(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)
    text = " ".join((format_message() if format_message else str(error)).split())
    if getattr(error, "option_name", "") == "--layers":
        text += " Use --record-layers for the blocks to record, --layer for the one to train on."
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "saev"
    return f"{text} See {command} --help." if text else f"See {command} --help."


def _fail(text: str, code: int, args: Sequence[str]) -> int:
    if "--debug" in args:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    print("saev:", " ".join(text.split()), file=sys.stderr, flush=True)
    return code
