from __future__ import annotations

import json
from pathlib import Path

import pytest

from saev_core.config.base import ConfigError, validate
from saev_core.config.run import RunConfig
from saev_core.config.stages import TrainConfig
from saev_core.config.toml_and_set import differences
from saev_core.errors import DeviceError, RunError, UnknownPluginError
from saev_core.runs.checks import check_config, default_path
from saev_core.runs.run import Run
from saev_core.support.files import write_json


def test_a_run_opens_with_the_configuration_and_plugin_versions_it_was_made_with(tmp_path: Path) -> None:
    config = RunConfig(train=TrainConfig(lr=0.25))
    Run.create(tmp_path / "a", config)
    run = Run.open(tmp_path / "a")
    assert run.config == config
    assert run.plugins["model:tiny"] == "saev-core 0.1.0"
    assert set(run.plugins) == {"model:tiny", "dataset:shapes", "sae:topk", "tracker:jsonl"}


def test_everything_in_a_run_is_found_from_its_path(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a", RunConfig())
    assert run.store_url == str(tmp_path / "a" / "store")
    assert run.features_path("topk") == tmp_path / "a" / "features" / "topk.zarr"
    assert run.report_path == tmp_path / "a" / "report.html"
    assert run.sae_names == []
    (run.sae_dir("b")).mkdir(parents=True)
    (run.sae_dir("b") / "checkpoint.json").touch()
    assert run.sae_names == ["b"]
    elsewhere = Run.create(tmp_path / "b", RunConfig(store="s3://bucket/store"))
    assert elsewhere.store_url == "s3://bucket/store"


def test_an_opened_run_has_what_was_being_replaced_when_saev_was_killed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a", RunConfig())
    for folder in (run.sae_dir("b"), run.features_path("b")):
        hidden = folder.parent / ".incomplete" / f"{folder.name}.old"
        hidden.mkdir(parents=True)
        (hidden / "checkpoint.json").touch()
    assert Run.open(tmp_path / "a").sae_names == ["b"]
    assert run.features_path("b").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty and is not a run; choose another --out"):
        Run.create(tmp_path, RunConfig())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "cannot be read"),
        ("[]", "not written by saev"),
        ('{"name": "npm"}', "not written by saev"),
        ('{"saev": 9, "config": {}}', "format 9; this version reads format 1"),
    ],
)
def test_what_is_not_a_run_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "r"
    if text is not None:
        path.mkdir()
        (path / "config.json").write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        Run.open(path)
    assert "\n" not in str(caught.value)


def test_a_saved_configuration_with_an_unknown_key_names_the_file_and_the_key(tmp_path: Path) -> None:
    Run.create(tmp_path, RunConfig())
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["config"]["train"]["leaning_rate"] = 1
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"config\.json\.train\.leaning_rate: unknown"):
        Run.open(tmp_path)


def test_before_anything_is_made_a_run_takes_another_configuration(tmp_path: Path) -> None:
    Run.create(tmp_path, RunConfig())
    run = Run.create(tmp_path, RunConfig(train=TrainConfig(lr=1)))
    assert Run.open(tmp_path).config == run.config


def test_settings_that_an_artifact_was_made_with_cannot_change_and_are_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path, RunConfig())
    (tmp_path / "store").mkdir()
    (run.sae_dir("topk")).mkdir(parents=True)
    (run.sae_dir("topk") / "checkpoint.json").touch()
    other = validate(RunConfig, {"train": {"lr": 0.5}, "dataset": "photos", "index": {"top_k": 3}, "record": {"layers": [-1]}})
    with pytest.raises(
        RunError, match=r"dataset\.name is \"shapes\", not \"photos\"; train\.lr is \"auto\", not 0\.5\); choose another --out"
    ):
        Run.create(tmp_path, other)
    assert Run.open(tmp_path).config == RunConfig()
    # An index is made again, and a layer is added; neither touches what is there.
    changed = validate(RunConfig, {"index": {"top_k": 3}, "record": {"layers": [-1], "batch_size": 8}, "device": "cpu"})
    assert Run.create(tmp_path, changed).config == changed


def test_differences_names_leaves_by_dotted_key() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert list(differences(old, new)) == [("a.c", 2, 4), ("d", 3, None), ("e", None, 5)]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be written.*choose another --out"):
        Run.create(tmp_path / "file" / "run", RunConfig())


def test_write_json_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "deep" / "a.json", {"x": object()})
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_results_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path, RunConfig())
    assert run.result("recovery") == {}
    run.write_result("recovery", {"mean": 0.9})
    assert run.result("recovery") == {"mean": 0.9}
    run.results_path("recovery").write_text("{")
    with pytest.raises(RunError, match=r"recovery\.json is not JSON"):
        run.result("recovery")


def test_the_default_folder_is_named_after_date_model_and_data_set() -> None:
    assert default_path(RunConfig(), "2026-01-02") == Path("runs/2026-01-02-tiny-shapes")
    config = validate(RunConfig, {"model": "saev-models:clip", "dataset": "a/b c"})
    assert default_path(config, "d") == Path("runs/d-clip-a-b-c")


def test_a_configuration_is_checked_before_any_work() -> None:
    check_config(RunConfig())
    with pytest.raises(UnknownPluginError):
        check_config(validate(RunConfig, {"sae": "tpok"}))
    with pytest.raises(ConfigError, match=r"sae\.options\.kk: unknown; did you mean k\?"):
        check_config(validate(RunConfig, {"sae": {"name": "topk", "kk": 3}}))
    with pytest.raises(UnknownPluginError):
        check_config(RunConfig(trackers=("jsonl", "wandbb")))
    with pytest.raises(DeviceError, match="--device nonsense"):
        check_config(RunConfig(device="nonsense"))
