"""The stage that names features: what its key is made of."""

from __future__ import annotations

from pathlib import Path

from saev_core.config.run import RunConfig
from saev_core.config.stages import NamesConfig
from saev_core.pipeline.names_stage import _settings
from saev_core.runs.run import Run
from saev_core.runs.stamps import Stamps


def test_names_made_when_their_settings_were_part_of_the_index_stay_valid(tmp_path: Path) -> None:
    config = RunConfig()
    stamps = Stamps(Run.create(tmp_path / "run", config), print)
    # As written to stages.json by that version.
    assert stamps.key(_settings(config.names, None), config.index.top_k, "x", "y") == "a27c2359b7115d1c"
    other = NamesConfig(threshold=0.9)
    assert stamps.key(_settings(other, None), config.index.top_k, "x", "y") != "a27c2359b7115d1c"
