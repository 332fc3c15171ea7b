"""`names_stage`: propose names for an SAE's features, again only when their inputs have changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saev_core.config.stages import NamesConfig
from saev_core.errors import CheckpointError, DatasetError, RunError
from saev_core.features.naming.concepts import known_concepts
from saev_core.features.naming.from_concepts import names_from
from saev_core.features.naming.from_text import names_from_text
from saev_core.features.naming.names import Names
from saev_core.features.naming.score_names import score_names
from saev_core.features.naming.vocabulary import SHIPPED, Vocabulary, read_vocabulary
from saev_core.models.base import TextSpace
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.sae.checkpoint import Checkpoint


def names_stage(context: StageContext, name: str, checkpoint: Checkpoint) -> Summary:
    """Write names of one indexed SAE's features to `features/<sae>.names.json`; with ground truth, their accuracy to
    `results/names.json`.

    Returns:
        `names`; nothing if names are off, or if they are `auto` and the run has nothing to name features by.

    Raises:
        ConfigError: the vocabulary cannot be read.
        RunError: the requested source of names is not available.
        CheckpointError: no image is held out; with `auto` this is only logged.
    """
    run, path, stage = context.run, names_path(context.run.features_path(name)), f"names:{name}"
    cfg = run.config.names
    if cfg.source == "none":
        path.unlink(missing_ok=True)
        return Summary(run.path)
    words = None if cfg.source in ("auto", "truth", "masks", "labels") else read_vocabulary(SHIPPED if cfg.source == "text" else cfg.source)
    key = _key(context, checkpoint, words)
    if not context.stamps.up_to_date(stage, key, lambda: Names.load(path)):
        began = time.monotonic()
        try:
            made = _made(context, name, checkpoint, words)
        except (RunError, CheckpointError, DatasetError) as error:
            path.unlink(missing_ok=True)
            if cfg.source != "auto":
                raise
            context.say(f"index: no names for {name}: {error}")
            return Summary(run.path)
        made.save(path)
        context.stamps.record(stage, key, began)
    found = Names.load(path)
    context.say(f"index: {name}: {found.summary()}")
    return Summary(run.path, context.stamps.seconds(stage), names={name: _told(context, name, found)})


def _settings(cfg: NamesConfig, words: Vocabulary | None) -> dict[str, Any]:
    """The settings that affect names, a vocabulary by its content. The keys are those of older versions, so old stamps stay valid."""
    return {
        "names": words.sha256 if words else cfg.source,
        "names_images": cfg.n_images,
        "names_fires": cfg.fires,
        "names_threshold": cfg.threshold,
        "names_positive": cfg.n_positive,
    }


def names_path(features: Path) -> Path:
    """Path of the names that belong to a feature index."""
    return features.with_suffix(".names.json")


def _key(context: StageContext, checkpoint: Checkpoint, words: Vocabulary | None) -> str:
    config = context.run.config
    return context.stamps.key(
        _settings(config.names, words), config.index.top_k, checkpoint.fingerprint, context.workspace.store().meta.fingerprint
    )


def _made(context: StageContext, name: str, checkpoint: Checkpoint, words: Vocabulary | None) -> Names:
    cfg, workspace = context.run.config.names, context.workspace
    store, index = workspace.store(), workspace.index(name, checked=False)
    index.check(checkpoint)
    if words is not None and isinstance(model := workspace.model(), TextSpace):
        if words.n_twice:
            context.say(f"index: {words.n_twice} duplicate lines of the vocabulary dropped.")
        return names_from_text(checkpoint, store, index, model, workspace.dataset(), words, cfg, track=context.track)
    concepts = known_concepts(None if words or cfg.source == "auto" else cfg.source, checkpoint, store, workspace.dataset)
    if words is not None:
        context.say(
            f"index: the model {context.run.config.model.name} has no text encoder; names come from the annotations of the data set."
        )
    return names_from(checkpoint, store, index, concepts, cfg, track=context.track)


def _told(context: StageContext, name: str, found: Names) -> Mapping[str, Any]:
    """How many names were proposed; with ground truth, also how many are right, written to the results."""
    told = {"source": found.source, "n_named": len(found.names), "n_alive": found.n_alive, "threshold": found.threshold}
    run = context.run
    if best := run.result("recovery").get(name, {}).get("tells", []):
        told = score_names(found, [(int(feature), str(value), float(f1)) for feature, value, f1 in best])
        if (scored := {**run.result("names"), name: told}) != run.result("names"):
            run.write_result("names", scored)
        if told["n_named"]:
            share = f"{told['n_right']} of {told['n_named']} names match the ground truth (precision {told['precision']:.3f})"
            context.say(f"index: {share}; {told['n_unnamed']} firing features stay unnamed")
    return {key: value for key, value in told.items() if key != "wrong"}
