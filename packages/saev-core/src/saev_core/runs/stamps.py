"""`Stamps`: what of a run was made from what, kept in its `stages.json`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from saev_core.config.affects import settings_that_matter
from saev_core.config.base import Config
from saev_core.errors import SaevError
from saev_core.runs.run import Run
from saev_core.support.digest import digest
from saev_core.support.files import write_json


class Stamps:
    """Knows which stages of a run are done: a stage's key is a digest of its settings and of the fingerprints it read."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.run, self.say = run, say
        self._stamps = run.stamps()
        self.summary: dict[str, Any] = {"run": str(run.path), "seconds": {}}
        """What the stages found, for a table at the end and for `--json`."""

    def _key(self, *parts: Any) -> str:
        # What is measured of one SAE does not depend on how several are compared.
        return digest([settings_that_matter(part, without=["comparison"]) if isinstance(part, Config) else part for part in parts])

    def _valid(self, stage: str, key: str, opens: Callable[[], object] = lambda: None) -> bool:
        """Whether `stage` was finished with this key and its artifact can still be opened."""
        if self._stamps.get(stage, {}).get("key") != key:
            return False
        try:
            opens()
        except SaevError as error:
            self.say(f"{stage.partition(':')[0]}: done again, for {error}")
            return False
        return True

    def _stamp(self, stage: str, key: str, began: float, *, share: int = 1, **more: Any) -> None:
        """Note that `stage` is done; `share` stages were done since `began` together."""
        self._stamps[stage] = {"key": key, "seconds": round((time.monotonic() - began) / share, 3), **more}
        write_json(self.run.stages_path, self._stamps)

    def _note(self, stage: str) -> None:
        if stage in self._stamps:
            self.summary["seconds"][stage] = self._stamps[stage]["seconds"]
