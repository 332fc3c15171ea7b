"""The table of commands. Bodies import what they need; showing help imports only typer."""

from __future__ import annotations

from typing import Annotated

import typer

from saev_core.cli.options import Flags, takes
from saev_core.errors import UsageError

app = typer.Typer(
    name="saev",
    help="Sparse autoencoders on vision transformers: record activations, train, evaluate, index, view.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RECORD = ("--model", "--dataset", "--record-layers", "--stream", "--n-images", "--dtype", "--on-bad-image")
_TRAIN = ("--sae", "--layer", "--tokens", "--labels", "--clamp", "--heldout", "--n-tokens", "--lr", "--seed", "--live")
_SWEEP = ("--sweep", "--dry-run", "--yes")
_INDEX = ("--top-k", "--names", "--n-features", "--include")
_WHERE = ("--out", "--store", "--config", "--set", "--device")
_RUN = "Run folder (same as --out)."
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")]


@app.command()
@takes(*_RECORD, *_TRAIN, *_SWEEP, *_INDEX, "--tracker", *_WHERE, batch="train")
def run(flags: Flags) -> None:
    """Record, train, evaluate, index and report in one go.

    Stages that are up to date are skipped. Without arguments: the built-in model and data set, with a table of how well
    the features recover the ground truth.
    """
    from saev_core.cli.run import run_stages

    run_stages(flags)


@app.command()
@takes(*_RECORD, "--part", *_WHERE, run=_RUN, batch="record")
def record(flags: Flags) -> None:
    """Record activations of images into a store. Resumes where it stopped; adds layers to an existing store."""
    from saev_core.cli.run import run_stages

    run_stages(flags, ["record"])


@app.command()
@takes("--model", "--dataset", *_TRAIN, *_SWEEP, "--stream", "--n-images", "--dtype", "--tracker", *_WHERE, run=_RUN, batch="train")
def train(flags: Flags) -> None:
    """Train one SAE, or a sweep, on recorded activations; with --live, directly on images. Resumes where it stopped."""
    from saev_core.cli.run import run_stages

    run_stages(flags, ["train"])


@app.command()
@takes(*_WHERE, run=_RUN, batch="evaluate")
def evaluate(flags: Flags) -> None:
    """Evaluate the SAEs of a run on its held-out images."""
    from saev_core.cli.run import run_stages

    run_stages(flags, ["evaluate"])


@app.command()
@takes("--only", *_INDEX, *_WHERE, run=_RUN)
def index(flags: Flags) -> None:
    """Compute each feature's top images and statistics, propose names, and write the report.

    If there are more than four SAEs, only the best one and those given with --only are indexed.
    """
    from saev_core.cli.run import run_stages

    run_stages(flags, ["index", "report"])


@app.command()
def view(
    run: Annotated[str, typer.Argument(help="Run folder.", metavar="RUN")],
    dataset: Annotated[str, typer.Option("--dataset", help="New location of the images, if they have moved: image-folder:FOLDER.")] = "",
    others: Annotated[list[str] | None, typer.Option("--with", help="Another run to compare with; may be repeated.", metavar="RUN")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; a warning is shown for non-local addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any free port.")] = 7860,
    auth: Annotated[str, typer.Option("--auth", help="USER:PASSWORD required to log in.")] = "",
    export: Annotated[
        str,
        typer.Option("--export", help="Do not serve; write a gallery of features into this folder.", metavar="FOLDER"),
    ] = "",
    features: Annotated[
        str, typer.Option("--features", help="Features to export: 1,2,30-34 (default: those in the report).", metavar="NUMBERS")
    ] = "",
    query: Annotated[str, typer.Option("--query", help="Features to export, in the viewer's search syntax: 'wing frequency<1%'.")] = "",
    n: Annotated[int | None, typer.Option("--n", help="Maximum number of features to export (default: report.n_features).")] = None,
    sae: Annotated[str, typer.Option("--sae", help="SAE to export (default: the one the viewer shows first).")] = "",
    debug: _Debug = False,
) -> None:
    """Explore the features of a run in the browser."""
    from saev_core.cli.view import export_gallery, serve

    if export:
        export_gallery(run, export, features=features, query=query, n=n, sae=sae, dataset=dataset, debug=debug)
        return
    for option, value in (("--features", features), ("--query", query), ("--n", n), ("--sae", sae)):
        if value not in ("", None):
            raise UsageError(f"{option} selects what to export: add --export FOLDER.")
    serve(run, others=others or (), dataset=dataset, host=host, port=port, auth=auth, debug=debug)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    options_metavar="[NAME [VERB RUN [OPTIONS]]]",
)
def task(context: typer.Context, json: _Json = False, debug: _Debug = False) -> None:
    """Use features in a task: probes, segmentation, control experiments. Without arguments, lists the installed tasks.

    saev task NAME lists the verbs of a task, saev task NAME VERB --help the options of a verb; saev task NAME VERB RUN runs it.
    """
    from saev_core.cli.task import main

    main([*(["--json"] if json else []), *context.args], debug=debug)


store = typer.Typer(help="Inspect, verify or plan an activation store.", no_args_is_help=True)
app.add_typer(store, name="store")
_Path = Annotated[str, typer.Argument(help="Store (folder or URL), or run folder.", metavar="PATH")]


@store.command("info")
def store_info(path: _Path, json: _Json = False, debug: _Debug = False) -> None:
    """Show what a store holds: model, data set, layers, images, size."""
    from saev_core.cli.store import info

    info(path, as_json=json, debug=debug)


@store.command("verify")
def store_verify(path: _Path, json: _Json = False, debug: _Debug = False) -> None:
    """Read every chunk and verify its checksum; lists damaged files. Exit code 1 if there are any."""
    from saev_core.cli.store import verify

    verify(path, as_json=json, debug=debug)


@store.command("plan")
@takes(*_RECORD, *_WHERE, run=_RUN, batch="record")
def store_plan(flags: Flags) -> None:
    """Estimate disk, memory and time of a recording from a measured forward pass. Takes the flags of `saev record`."""
    from saev_core.cli.store import plan

    plan(flags)


plugins = typer.Typer(help="List plugins, check that they import, or scaffold a new one.", invoke_without_command=True)
app.add_typer(plugins, name="plugins")


@plugins.callback()
def plugins_list(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Import each plugin and report ok or the error.")] = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """List every installed plugin, without importing any."""
    if context.invoked_subcommand is None:
        from saev_core.cli.plugins import show

        show(check=check, as_json=json, debug=debug)


@plugins.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Name of the plugin, as in --model NAME.", metavar="NAME")],
    kind: Annotated[str, typer.Option("--kind", help="model, dataset, sae or task.")] = "model",
    folder: Annotated[str, typer.Option("--in", help="Where to create the new folder.")] = ".",
) -> None:
    """Scaffold a new plugin: an installable folder with a class to fill in and its test."""
    from saev_core.cli.scaffold import new

    new(name, kind, folder)


data = typer.Typer(help="List data sets, or download one.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("list")
def data_list(json: _Json = False, debug: _Debug = False) -> None:
    """List the installed data sets with their options."""
    from saev_core.cli.plugins import datasets

    datasets(as_json=json, debug=debug)


@data.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="Data set to download; without it, lists those available.", metavar="NAME")] = "",
    folder: Annotated[str, typer.Argument(help="Target folder (default: data/NAME).", metavar="FOLDER")] = "",
    split: Annotated[
        float | None, typer.Option("--split", help="Share of each class's images for training; also writes folders train/ and test/.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split.")] = 42,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the archives.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Download again and compare with the previous download.")] = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Download a data set in the layout its plugin reads, with verified checksums. Resumes where it stopped."""
    from saev_core.cli.data import bring

    bring(name, folder, split=split, seed=seed, keep=keep, again=again, as_json=json, debug=debug)


@app.callback(invoke_without_command=True)
def top(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from saev_core import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
