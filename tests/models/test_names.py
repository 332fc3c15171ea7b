"""`saev index --names` through a CLIP with random weights: the whole path from the vocabulary to the file, offline."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from saev_core.cli import main
from saev_core.features.naming.names import Names

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("saev_models.clip")

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"embed_dim": 24, "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16}, "text_cfg": TEXT}


@pytest.mark.slow
def test_names_come_from_a_vocabulary_through_clip_s_own_text_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, run = tmp_path / "clip", tmp_path / "run"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    words = tmp_path / "words.txt"
    words.write_text("dog\nred star\nBlue Heart\nblue heart\nstripes # a texture\nsky\n", encoding="utf-8")

    small = ["--n-images", "240", "--n-tokens", "20000", "--batch-size", "256", "--heldout", "0.3", "--set", "sae.d_sae=64"]
    assert main(["run", "--model", f"clip:{folder}", "--dataset", "shapes:240", *small, "names.source=none", "--out", str(run)]) == 0
    file = run / "features" / "topk.names.json"
    assert not file.exists()
    capsys.readouterr()
    assert main(["index", str(run), "--names", str(words)]) == 0
    out = capsys.readouterr().out
    assert "1 duplicate lines of the vocabulary dropped" in out
    names = Names.load(file)
    assert (names.source, names.vocabulary) == ("text", hashlib.sha256(words.read_bytes()).hexdigest())
    assert (names.n_train, names.n_heldout) == (168, 72)
    assert set(names.about["put_forward"]) == {"decoder direction", "top images"}
    assert names.n_alive > 20
    # Weights drawn at random still see how bright a picture is, so some names do foretell what fires, whatever they mean.
    assert all(name.score >= names.threshold and name.n_positive >= names.min_positive for name in names.names.values())
    assert {name.name for name in names.names.values()} <= {"dog", "red star", "Blue Heart", "stripes", "sky"}

    before = file.stat().st_mtime_ns
    assert main(["index", str(run), "--names", str(words)]) == 0
    assert file.stat().st_mtime_ns == before
    assert main(["index", str(run), "--names"]) == 0  # the list that is shipped
    assert Names.load(file).about["n_concepts"] >= 5000
