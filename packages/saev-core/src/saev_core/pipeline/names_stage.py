"""`names_stage`: names for an SAE's features, proposed again only when what they rest on has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saev_core.errors import CheckpointError, DatasetError, RunError
from saev_core.features.naming.concepts import known_concepts
from saev_core.features.naming.from_concepts import names_from
from saev_core.features.naming.from_text import names_from_text
from saev_core.features.naming.judge import judge
from saev_core.features.naming.names import Names
from saev_core.features.naming.vocabulary import SHIPPED, Vocabulary, read_vocabulary
from saev_core.models.base import TextSpace
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.runs.stamps import NAMING
from saev_core.sae.checkpoint import Checkpoint


def names_stage(context: StageContext, name: str, checkpoint: Checkpoint) -> Summary:
    """Names of one indexed SAE's features in `features/<sae>.names.json`; where the truth is known, how often they are right in
    `results/names.json`.

    Returns:
        `names`; nothing where none are asked for, or there is nothing to name by and none were asked for expressly.

    Raises:
        ConfigError: the vocabulary cannot be read.
        RunError: what was asked for is not there to name by.
        CheckpointError: no image is held out; where nothing was asked for, that is only said.
    """
    run, path, stage = context.run, names_path(context.run.features_path(name)), f"names:{name}"
    cfg = run.config.index
    if cfg.names == "none":
        path.unlink(missing_ok=True)
        return Summary(run.path)
    words = None if cfg.names in ("auto", "truth", "masks", "labels") else read_vocabulary(SHIPPED if cfg.names == "text" else cfg.names)
    key = _key(context, checkpoint, words)
    if not context.stamps.up_to_date(stage, key, lambda: Names.load(path)):
        began = time.monotonic()
        try:
            made = _made(context, name, checkpoint, words)
        except (RunError, CheckpointError, DatasetError) as error:
            path.unlink(missing_ok=True)
            if cfg.names != "auto":
                raise
            context.say(f"index: no names for {name}: {error}")
            return Summary(run.path)
        made.save(path)
        context.stamps.record(stage, key, began)
    found = Names.load(path)
    context.say(f"index: {name}: {found.told()}")
    return Summary(run.path, context.stamps.seconds(stage), names={name: _told(context, name, found)})


def names_path(features: Path) -> Path:
    """Where the names lie that belong to a feature index."""
    return features.with_suffix(".names.json")


def _key(context: StageContext, checkpoint: Checkpoint, words: Vocabulary | None) -> str:
    cfg = context.run.config.index
    settings = {key: value for key, value in cfg.model_dump(mode="json").items() if key in NAMING}
    settings |= {"names": words.sha256 if words else cfg.names}
    return context.stamps.key(settings, cfg.top_k, checkpoint.fingerprint, context.workspace.store().meta.fingerprint)


def _made(context: StageContext, name: str, checkpoint: Checkpoint, words: Vocabulary | None) -> Names:
    cfg, workspace = context.run.config.index, context.workspace
    store, index = workspace.store(), workspace.index(name, checked=False)
    index.check(checkpoint)
    if words is not None and isinstance(model := workspace.model(), TextSpace):
        if words.n_twice:
            context.say(f"index: {words.n_twice} lines of the vocabulary repeat another and are dropped.")
        return names_from_text(checkpoint, store, index, model, workspace.dataset(), words, cfg, track=context.track)
    concepts = known_concepts(None if words or cfg.names == "auto" else cfg.names, checkpoint, store, workspace.dataset)
    if words is not None:
        context.say(f"index: the model {context.run.config.model.name} has no text side; names come from what the data set knows.")
    return names_from(checkpoint, store, index, concepts, cfg, track=context.track)


def _told(context: StageContext, name: str, found: Names) -> Mapping[str, Any]:
    """How many names there are, and where the truth is known how many are right, which is kept as a result."""
    told = {"source": found.source, "n_named": len(found.names), "n_alive": found.n_alive, "threshold": found.threshold}
    run = context.run
    if tells := run.result("recovery").get(name, {}).get("tells", []):
        told = judge(found, [(int(feature), str(value), float(f1)) for feature, value, f1 in tells])
        if (judged := {**run.result("names"), name: told}) != run.result("names"):
            run.write_result("names", judged)
        if told["n_named"]:
            share = f"{told['n_right']} of {told['n_named']} names are right by the known truth (precision {told['precision']:.3f})"
            context.say(f"index: {share}; {told['n_unnamed']} features that fire stay unnamed")
    return {key: value for key, value in told.items() if key != "wrong"}
