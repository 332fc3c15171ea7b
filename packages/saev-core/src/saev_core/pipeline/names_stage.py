"""`NamesStage`: the part of indexing that proposes names, made again only when what they rest on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saev_core.errors import CheckpointError, DatasetError, RunError
from saev_core.features.index import FeatureIndex
from saev_core.features.naming.concepts import known_concepts
from saev_core.features.naming.from_concepts import names_from
from saev_core.features.naming.from_text import names_from_text
from saev_core.features.naming.names import Names
from saev_core.features.naming.score_names import score_names
from saev_core.features.naming.vocabulary import SHIPPED, Vocabulary, read_vocabulary
from saev_core.models.base import TextSpace
from saev_core.runs.stamps import Stamps
from saev_core.support.progress import Track

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore
    from saev_core.config.stages import NamesConfig
    from saev_core.data.dataset import ImageDataset
    from saev_core.models.base import VisionModel
    from saev_core.sae.checkpoint import Checkpoint


class NamesStage(Stamps):
    """Names of one SAE's features in `features/<sae>.names.json`; where the truth is known, how often they are right in
    `results/names.json`.
    """

    def _propose(
        self,
        name: str,
        checkpoint: Checkpoint,
        store: ActivationStore,
        model: Callable[[], VisionModel],
        dataset: Callable[[], ImageDataset],
        track: Track,
    ) -> None:
        """Make them, unless they are there, and say so.

        Raises:
            ConfigError: the vocabulary cannot be read.
            RunError: what was asked for is not there to name by.
            CheckpointError: no image is held out; where nothing was asked for, that is only said.
        """
        cfg, path = self.run.config.names, names_path(self.run.features_path(name))
        if cfg.source == "none":
            path.unlink(missing_ok=True)
            return
        began, stage = time.monotonic(), f"names:{name}"
        words = (
            None if cfg.source in ("auto", "truth", "masks", "labels") else read_vocabulary(SHIPPED if cfg.source == "text" else cfg.source)
        )
        settings = _settings(cfg, words)
        best_values = self.run.result("recovery").get(name, {}).get("tells", [])
        key = self._key(settings, self.run.config.index.top_k, checkpoint.fingerprint, store.meta.fingerprint)
        if not self._valid(stage, key, lambda: Names.load(path)):
            try:
                found = self._made(name, checkpoint, store, model, dataset, words, track)
            except (RunError, CheckpointError, DatasetError) as error:
                path.unlink(missing_ok=True)
                if cfg.source != "auto":
                    raise
                self.say(f"index: no names for {name}: {error}")
                return
            found.save(path)
            self._stamp(stage, key, began)
        found = Names.load(path)
        self.say(f"index: {name}: {found.summary()}")
        self._note(stage)
        told = {"source": found.source, "n_named": len(found.names), "n_alive": found.n_alive, "threshold": found.threshold}
        if best_values:
            told = score_names(found, [(int(feature), str(value), float(f1)) for feature, value, f1 in best_values])
            if (scored := {**self.run.result("names"), name: told}) != self.run.result("names"):
                self.run.write_result("names", scored)
            if told["n_named"]:
                share = f"{told['n_right']} of {told['n_named']} names are right by the known truth (precision {told['precision']:.3f})"
                self.say(f"index: {share}; {told['n_unnamed']} features that fire stay unnamed")
        self.summary.setdefault("names", {})[name] = {key: value for key, value in told.items() if key != "wrong"}

    def _made(
        self,
        name: str,
        checkpoint: Checkpoint,
        store: ActivationStore,
        model: Callable[[], VisionModel],
        dataset: Callable[[], ImageDataset],
        words: Vocabulary | None,
        track: Track,
    ) -> Names:
        cfg = self.run.config.names
        index = FeatureIndex.open(self.run.features_path(name), checkpoint)
        if words is not None and isinstance(model(), TextSpace):
            if words.n_twice:
                self.say(f"index: {words.n_twice} lines of the vocabulary repeat another and are dropped.")
            return names_from_text(checkpoint, store, index, model(), dataset(), words, cfg, track=track)
        concepts = known_concepts(None if words or cfg.source == "auto" else cfg.source, checkpoint, store, dataset)
        if words is not None:
            self.say(f"index: the model {self.run.config.model.name} has no text side; names come from what the data set knows.")
        return names_from(checkpoint, store, index, concepts, cfg, track=track)


def _settings(cfg: NamesConfig, words: Vocabulary | None) -> dict[str, Any]:
    """What decides names, a vocabulary by what is in it; keyed as when it was part of `index`, so that older names stay valid."""
    return {
        "names": words.sha256 if words else cfg.source,
        "names_images": cfg.n_images,
        "names_fires": cfg.fires,
        "names_threshold": cfg.threshold,
        "names_positive": cfg.n_positive,
    }


def names_path(features: Path) -> Path:
    """Where the names lie that belong to a feature index."""
    return features.with_suffix(".names.json")
