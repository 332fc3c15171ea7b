"""The closed table of commands. A body imports what it needs; drawing help imports typer alone."""

from __future__ import annotations

from typing import Annotated

import typer

from saev_core.cli.options import Flags, takes
from saev_core.errors import UsageError

app = typer.Typer(
    name="saev",
    help="Sparse autoencoders on vision transformers: record activations, train, evaluate, index, look.",
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
_RUN = "The run folder (as --out)."
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks and debug messages.")]


@app.command()
@takes(*_RECORD, *_TRAIN, *_SWEEP, *_INDEX, "--tracker", *_WHERE, batch="train")
def run(flags: Flags) -> None:
    """Record, train, evaluate, index and report in one go.

    Each stage is skipped when what it makes is already there. With no arguments: our small model on drawn scenes,
    with a table of how well the features recover the truth.
    """
    from saev_core.cli.run import run_stages

    run_stages(flags)


@app.command()
@takes(*_RECORD, "--part", *_WHERE, run=_RUN, batch="record")
def record(flags: Flags) -> None:
    """Images to activation store. Resumes where it stopped; adds layers to a store that is there."""
    from saev_core.cli.run import run_stages

    run_stages(flags, ["record"])


@app.command()
@takes("--model", "--dataset", *_TRAIN, *_SWEEP, "--stream", "--n-images", "--dtype", "--tracker", *_WHERE, run=_RUN, batch="train")
def train(flags: Flags) -> None:
    """Activation store to SAE checkpoints, one or a sweep; with --live, images to SAE checkpoint. Resumes where it stopped."""
    from saev_core.cli.run import run_stages

    run_stages(flags, ["train"])


@app.command()
@takes(*_WHERE, run=_RUN, batch="evaluate")
def evaluate(flags: Flags) -> None:
    """Measure the SAEs of a run on its held-out images."""
    from saev_core.cli.run import run_stages

    run_stages(flags, ["evaluate"])


@app.command()
@takes("--only", *_INDEX, *_WHERE, run=_RUN)
def index(flags: Flags) -> None:
    """Find each feature's top images and statistics, propose names, and write the report.

    Of more than four SAEs only the best is indexed, and those that --only names.
    """
    from saev_core.cli.run import run_stages

    run_stages(flags, ["index", "report"])


@app.command()
def view(
    run: Annotated[str, typer.Argument(help="The run folder.", metavar="RUN")],
    dataset: Annotated[str, typer.Option("--dataset", help="Where the pictures lie now, if they have moved: image-folder:FOLDER.")] = "",
    others: Annotated[
        list[str] | None, typer.Option("--with", help="Another run to compare with; can be given again.", metavar="RUN")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; any but this machine's own is warned of.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any free one.")] = 7860,
    auth: Annotated[str, typer.Option("--auth", help="USER:PASSWORD that the browser asks for.")] = "",
    export: Annotated[
        str,
        typer.Option("--export", help="Serve nothing: write a gallery of features into this folder.", metavar="FOLDER"),
    ] = "",
    features: Annotated[
        str, typer.Option("--features", help="What to export: 1,2,30-34; by default the report's choice.", metavar="NUMBERS")
    ] = "",
    query: Annotated[str, typer.Option("--query", help="What to export, as the viewer's search takes it: 'wing frequency<1%'.")] = "",
    n: Annotated[int | None, typer.Option("--n", help="How many to export at most; by default report.n_features.")] = None,
    sae: Annotated[str, typer.Option("--sae", help="Which SAE to export; by default the one the viewer shows first.")] = "",
    debug: _Debug = False,
) -> None:
    """Look at the features of a run in the browser."""
    from saev_core.cli.view import export_gallery, serve

    if export:
        export_gallery(run, export, features=features, query=query, n=n, sae=sae, dataset=dataset, debug=debug)
        return
    for option, value in (("--features", features), ("--query", query), ("--n", n), ("--sae", sae)):
        if value not in ("", None):
            raise UsageError(f"{option} says what is exported: add --export FOLDER.")
    serve(run, others=others or (), dataset=dataset, host=host, port=port, auth=auth, debug=debug)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    options_metavar="[NAME [VERB RUN [OPTIONS]]]",
)
def task(context: typer.Context, json: _Json = False, debug: _Debug = False) -> None:
    """What features are good for: probes, segmentation, control experiments. Alone it lists the tasks that are installed.

    saev task NAME lists what a task does, saev task NAME VERB --help what a verb takes, and saev task NAME VERB RUN does it.
    """
    from saev_core.cli.task import main

    main([*(["--json"] if json else []), *context.args], debug=debug)


store = typer.Typer(help="Look at an activation store, check it, or plan one.", no_args_is_help=True)
app.add_typer(store, name="store")
_Path = Annotated[str, typer.Argument(help="The store: a folder or address, or a run.", metavar="PATH")]


@store.command("info")
def store_info(path: _Path, json: _Json = False, debug: _Debug = False) -> None:
    """What a store holds: model, data set, layers, images, size."""
    from saev_core.cli.store import info

    info(path, as_json=json, debug=debug)


@store.command("verify")
def store_verify(path: _Path, json: _Json = False, debug: _Debug = False) -> None:
    """Read every chunk and check its checksum; names each damaged file. Exit code 1 if there is any."""
    from saev_core.cli.store import verify

    verify(path, as_json=json, debug=debug)


@store.command("plan")
@takes(*_RECORD, *_WHERE, run=_RUN, batch="record")
def store_plan(flags: Flags) -> None:
    """Disk, memory and time that a recording will take, from a measured forward pass. Takes the flags of `saev record`."""
    from saev_core.cli.store import plan

    plan(flags)


plugins = typer.Typer(help="List plugins, check that they import, or begin a new one.", invoke_without_command=True)
app.add_typer(plugins, name="plugins")


@plugins.callback()
def plugins_list(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Import each one and say ok or why not.")] = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """List every installed plugin; nothing is imported for it."""
    if context.invoked_subcommand is None:
        from saev_core.cli.plugins import show

        show(check=check, as_json=json, debug=debug)


@plugins.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Name of the plugin, as in --model NAME.", metavar="NAME")],
    kind: Annotated[str, typer.Option("--kind", help="model, dataset, sae or task.")] = "model",
    folder: Annotated[str, typer.Option("--in", help="Where the new folder is made.")] = ".",
) -> None:
    """Begin a plugin: a folder that installs, with a class to fill in and its test."""
    from saev_core.cli.scaffold import new

    new(name, kind, folder)


data = typer.Typer(help="List data sets, or download one.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("list")
def data_list(json: _Json = False, debug: _Debug = False) -> None:
    """The data sets that are installed, with their options."""
    from saev_core.cli.plugins import datasets

    datasets(as_json=json, debug=debug)


@data.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="The data set; left out: lists those that can be downloaded.", metavar="NAME")] = "",
    folder: Annotated[str, typer.Argument(help="Where it goes; by default data/NAME.", metavar="FOLDER")] = "",
    split: Annotated[
        float | None, typer.Option("--split", help="Share of each class's images for training: also writes trees train/ and test/.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split.")] = 42,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the archives.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Fetch it although it is there, and compare with what came before.")] = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Bring a data set into the layout that its plugin reads: checksummed, unpacked safely. Resumes where it broke off."""
    from saev_core.cli.data import bring

    bring(name, folder, split=split, seed=seed, keep=keep, again=again, as_json=json, debug=debug)


@app.callback(invoke_without_command=True)
def top(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from saev_core import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
