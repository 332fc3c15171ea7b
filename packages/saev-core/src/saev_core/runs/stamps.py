"""`Stamps`: which stages of a run are up to date, kept in its `stages.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from saev_core.config.affects import settings_that_matter
from saev_core.config.base import Config
from saev_core.errors import SaevError
from saev_core.runs.run import Run
from saev_core.support.digest import digest
from saev_core.support.files import write_json


class Stamps:
    """Tracks which stages of a run are done; a stage's key is a digest of its settings and of its inputs' fingerprints.

    A stage is named like `record`, or with its SAE like `train:topk`.
    """

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.run, self.say = run, say
        self._stamps = run.stamps()

    @staticmethod
    def key(*parts: Any) -> str:
        """The digest of settings and fingerprints, without settings that do not affect the stage's result."""
        # The evaluation of one SAE does not depend on how several are compared.
        return digest([settings_that_matter(part, without=["comparison"]) if isinstance(part, Config) else part for part in parts])

    def get(self, stage: str) -> Mapping[str, Any]:
        """The stamp of a stage: `key`, `seconds` and the further values passed to `record`; empty if it is not done."""
        return dict(self._stamps.get(stage, {}))

    def of_saes(self, stage: str) -> dict[str, Mapping[str, Any]]:
        """The stamps of `stage:<sae>`, by SAE."""
        prefix = f"{stage}:"
        return {name.removeprefix(prefix): stamp for name, stamp in self._stamps.items() if name.startswith(prefix)}

    def seconds(self, *stages: str) -> dict[str, float]:
        """The duration of each of these stages when it was run; stages that are not done are omitted."""
        return {stage: self._stamps[stage]["seconds"] for stage in stages if stage in self._stamps}

    def up_to_date(self, stage: str, key: str, opens: Callable[[], object] = lambda: None) -> bool:
        """Whether `stage` was completed with this key and its artifact can still be opened."""
        if self._stamps.get(stage, {}).get("key") != key:
            return False
        try:
            opens()
        except SaevError as error:
            self.say(f"{stage.partition(':')[0]}: re-running because {error}")
            return False
        return True

    def record(self, stage: str, key: str, began: float, *, share: int = 1, **more: Any) -> None:
        """Mark `stage` as done.

        Args:
            began: `time.monotonic()` at its start.
            share: number of stages run together since then.
            more: further values to store with it, as JSON.
        """
        self._stamps[stage] = {"key": key, "seconds": round((time.monotonic() - began) / share, 3), **more}
        write_json(self.run.stages_path, self._stamps)
