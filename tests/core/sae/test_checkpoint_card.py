"""`CheckpointCard` says what `Checkpoint` says, without torch and without the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saev_core.config.stages import ReadConfig
from saev_core.errors import CheckpointError
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.checkpoint_card import META, WEIGHTS, CheckpointCard
from saev_core.sae.norm import Norm
from saev_core.sae.topk import TopK, TopKConfig


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    sae = TopK(TopKConfig(d_in=6, d_sae=10, k=2), torch.Generator().manual_seed(0))
    ref = {"name": "topk", "dist": "saev-core", "version": "0.1.0"}
    read = ReadConfig(clamp=3.0)
    made = Checkpoint(sae, Norm(torch.arange(6.0), 2.0), ref, "resid.3", read, {"fingerprint": "a"}, {"seed": 1}, {"nmse": 0.5})
    made.save(tmp_path / "sae")
    return made


def test_it_says_what_the_checkpoint_says(saved: Checkpoint, tmp_path: Path) -> None:
    card = CheckpointCard.load(tmp_path / "sae")
    for name in ("ref", "site", "read", "store", "train", "card", "weights_digest"):
        assert getattr(card, name) == getattr(saved, name), name
    assert (card.sae["d_in"], card.sae["d_sae"]) == (6, 10)
    rows = card.decoder()
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, saved.sae.W_dec.detach().numpy())


def test_reading_it_imports_no_torch(saved: Checkpoint, tmp_path: Path) -> None:
    script = f"""
import sys
from saev_core.sae.checkpoint_card import CheckpointCard
CheckpointCard.load({str(tmp_path / "sae")!r}).decoder()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_what_is_missing_or_damaged_is_one_line(saved: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    text = (folder / META).read_text()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        CheckpointCard.load(tmp_path)
    meta = json.loads(text)
    for damaged, why in (
        ("{", "is damaged"),
        (json.dumps({**meta, "saev_checkpoint": 99}), "checkpoint format 99"),
        (json.dumps({key: value for key, value in meta.items() if key != "site"}), "has no key 'site'"),
    ):
        (folder / META).write_text(damaged)
        with pytest.raises(CheckpointError, match=why):
            CheckpointCard.load(folder)
    (folder / META).write_text(text)
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"the decoder .* cannot be read"):
        CheckpointCard.load(folder).decoder()
