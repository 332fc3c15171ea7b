"""Configurations: what is wrong is named, what is stronger wins, and what 0 once stood for is read as a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from saev_core.cli.options import FLAGS, Flags
from saev_core.config.base import ConfigError, PluginConfig, validate
from saev_core.config.run import RunConfig
from saev_core.config.stages import IndexConfig, NamesConfig
from saev_core.config.toml_and_set import differences, load_toml, merge, set_key
from saev_core.sae.config import SAEConfig
from saev_core.sae.topk import TopKConfig


def test_a_misspelt_key_names_its_place_and_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"^train\.leaning_rte: unknown; known keys: batch_size, ") as caught:
        validate(RunConfig, {"train": {"leaning_rte": 1}})
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^train\.batchsize: unknown; did you mean batch_size\?$"):
        validate(RunConfig, {"train": {"batchsize": 1}})
    with pytest.raises(ConfigError, match=r"^trian: unknown; did you mean train\?$"):
        validate(RunConfig, {"trian": {}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": {"lr": -1}}, r"^train\.lr: .*greater than 0 \(got -1\)"),
        ({"train": {"lr": float("nan")}}, r"train\.lr: "),
        ({"train": {"batch_size": "many"}}, r"train\.batch_size: .*got 'many'"),
        ({"record": {"dtype": "float8"}}, r"record\.dtype: .*'float16' or 'float32'"),
        ({"record": {"chunk_images": 3, "shard_images": 8}}, r"record: .*multiple of chunk_images"),
        ({"record": {"part": "2"}}, r"record\.part: "),
        ({"record": {"part": "5/4"}}, r"record.*part"),
        ({"record": {"layers": []}}, r"record\.layers: "),
        ({"read": {"heldout": 1}}, r"read\.heldout: "),
        ({"train": 3}, r"train: "),
    ],
)
def test_a_value_that_does_not_fit_is_one_line_naming_the_key(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(RunConfig, data)
    assert "\n" not in str(caught.value)


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError):
        RunConfig().train.lr = 3  # type: ignore[misc]


def test_every_field_has_a_line_of_documentation() -> None:
    def walk(kind: type, where: str) -> None:
        for name, field in kind.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields") and not field.description:
                walk(field.annotation, f"{where}{name}.")
            else:
                assert field.description, f"{where}{name}"

    walk(RunConfig, "")
    walk(SAEConfig, "sae.")


def test_the_main_option_is_the_first_field_a_plugin_declares() -> None:
    class Mine(SAEConfig):
        k: int = 3
        depth: int = 1

    assert Mine.main_option() == "k"

    class Bare(PluginConfig):
        pass

    with pytest.raises(ConfigError, match="no main option to set after a colon"):
        Bare.main_option()


def test_sized_fills_in_the_width_and_refuses_another() -> None:
    assert SAEConfig(expansion=4).sized(8).d_sae == 32
    assert SAEConfig(d_sae=5).sized(8).d_sae == 5
    with pytest.raises(ConfigError, match="activations have width 8"):
        SAEConfig(d_in=4).sized(8)


def test_set_reads_toml_values_and_falls_back_to_text() -> None:
    data: dict = {}
    for assignment in ("a.b=3", "a.c=[1, 2]", "a.d=layers.*", 'a.e="x"', "f=true", "g=", "h=a=b"):
        set_key(data, assignment)
    assert data == {"a": {"b": 3, "c": [1, 2], "d": "layers.*", "e": "x"}, "f": True, "g": "", "h": "a=b"}
    for wrong in ("a", "=3"):
        with pytest.raises(ConfigError, match=r"expected KEY=VALUE, such as --set train\.lr=3e-4"):
            set_key({}, wrong)
    with pytest.raises(ConfigError, match="a is a value, not a table"):
        set_key({"a": 1}, "a.b=2")


def test_another_plugin_does_not_inherit_the_options_of_the_one_before() -> None:
    data = {"sae": {"name": "topk", "options": {"k": 3}}, "train": {"lr": 1, "seed": 2}}
    merge(data, {"sae": {"name": "relu"}, "train": {"lr": 5}})
    assert data == {"sae": {"name": "relu"}, "train": {"lr": 5, "seed": 2}}
    merge(data, {"sae": {"expansion": 2}})
    assert data["sae"] == {"name": "relu", "expansion": 2}


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 1"):
        load_toml(tmp_path / "bad.toml")


def test_defaults_then_file_then_flags_then_set(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('sae = "topk:8"\n[train]\nlr = 0.1\nseed = 1\nbatch_size = 16\n[index]\ntop_k = 3\n')
    given = {"--config": str(file), "--lr": 0.2, "--seed": 2, "--set": ["train.seed=3", "sae.expansion=2"]}
    config = Flags(given).config()
    assert (config.index.top_k, config.train.batch_size, config.train.lr, config.train.seed) == (3, 16, 0.2, 3)
    assert config.train.n_lr_warmup == 500
    assert config.sae.options == {"k": "8", "expansion": 2}
    assert Flags({"--config": str(file), "--sae": "relu"}).config().sae.options == {}


def test_the_first_of_the_layers_is_trained_on_unless_a_layer_is_named() -> None:
    assert Flags({"--record-layers": [10, 11]}).config().read.layer == 10
    assert Flags({"--record-layers": [10, 11], "--layer": "-1"}).config().read.layer == -1
    assert Flags({"--record-layers": [10, 11], "--layer": "all"}).config().read.layer == "all"
    assert Flags({"--stream": "mlp"}).config().read.stream == "mlp"
    with pytest.raises(ConfigError, match=r"read\.layer"):
        Flags({"--layer": "last"}).config()


def test_a_run_keeps_its_settings_where_flags_say_nothing() -> None:
    base = Flags({"--lr": 0.3, "--model": "tiny"}).config()
    assert Flags({"--seed": 4}).config(base) == validate(RunConfig, {"train": {"lr": 0.3, "seed": 4}})


def test_batch_size_is_that_of_the_command() -> None:
    assert Flags({"--batch-size": 7}, batch="record").config().record.batch_size == 7
    assert Flags({"--batch-size": 7}, batch="train").config().train.batch_size == 7


def test_every_typed_flag_sets_a_key_that_exists(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text("[sae]\nk = [4, 8]\n")
    value = {"--layer": "all", "--model": "tiny", "--dataset": "shapes", "--sae": "relu", "--tracker": ["jsonl"], "--part": "2/3"}
    words = {
        "--stream": "mlp",
        "--tokens": "cls",
        "--dtype": "float32",
        "--on-bad-image": "stop",
        "--device": "cpu",
        "--store": "x",
        "--names": "none",
    }
    words |= {"--sweep": str(tmp_path / "sweep.toml"), "--n-images": "7", "--n-tokens": "900", "--lr": "0.5"}
    for flag in FLAGS.values():
        if flag.key:
            plain = {int: 3, float: 0.5, bool: True, list[int]: [1]}.get(flag.kind)
            config = Flags({flag.name: (value | words).get(flag.name, plain)}).config()
            changed = [key for key, _, _ in differences(RunConfig().model_dump(), config.model_dump())]
            if flag.name not in ("--model", "--dataset", "--tracker"):
                assert any(key.startswith(flag.key) for key in changed), flag.name


def test_few_training_vectors_bound_only_a_width_that_nobody_named() -> None:
    assert SAEConfig().sized(384, n_vectors=126_000).d_sae == 960
    assert SAEConfig().sized(384, n_vectors=10**9).d_sae == 16 * 384
    assert SAEConfig(d_sae=6144).sized(384, n_vectors=126_000).d_sae == 6144
    assert SAEConfig().sized(384, n_vectors=100).d_sae == 64


WORDS: dict[str, dict[str, Any]] = {
    "record": {"n_images": "all"},
    "train": {"n_tokens": "auto", "lr": "auto", "memory_gb": "auto", "clip_grad": None, "ema": None, "evaluate_every": None},
    "evaluate": {"best_l0": "auto", "consensus": None},
}
"""Every setting of a run that may be a word instead of a number."""


@pytest.mark.parametrize("spelt", [lambda word: word or "none", lambda _: 0, lambda _: 0.0, lambda _: "0", lambda word: word])
def test_a_word_is_read_as_written_on_a_command_line_in_toml_and_json_and_as_the_0_of_older_files(spelt: Callable[[Any], Any]) -> None:
    given = {table: {key: spelt(word) for key, word in settings.items()} for table, settings in WORDS.items()}
    config = validate(RunConfig, given)
    assert {table: {key: getattr(getattr(config, table), key) for key in settings} for table, settings in WORDS.items()} == WORDS
    assert validate(RunConfig, json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_none_is_written_as_a_word_where_0_is_a_number(tmp_path: Path) -> None:
    given = {"read": {"clamp": "none", "labels": "none"}, "train": {"lr_decay": "none"}}
    assert validate(RunConfig, given) == validate(RunConfig, {"read": {"clamp": None, "labels": None}}) == RunConfig()
    config = validate(RunConfig, {"read": {"labels": [0, 3]}, "train": {"lr_decay": 0}})
    assert (config.read.labels, config.train.lr_decay) == ((0, 3), 0.0)
    assert config.read.model_dump(mode="json")["labels"] == [0, 3]


def test_a_number_beside_a_word_keeps_its_bounds() -> None:
    config = validate(RunConfig, {"train": {"lr": "3e-4", "n_tokens": "100", "ema": 0.5}, "record": {"n_images": 7}})
    assert (config.train.lr, config.train.n_tokens, config.train.ema, config.record.n_images) == (3e-4, 100, 0.5, 7)
    for table, key, wrong in (("train", "n_tokens", -1), ("train", "ema", 1), ("train", "lr", "automatic"), ("record", "n_images", "none")):
        with pytest.raises(ConfigError, match=rf"^{table}\.{key}: Input should be "):
            validate(RunConfig, {table: {key: wrong}})


def test_the_options_of_an_sae_take_words_too() -> None:
    cfg = TopKConfig.model_validate({"d_sae": 0, "k": "auto", "k_aux": 0, "k_warmup": "none", "resample_every": 0})
    assert cfg == TopKConfig()
    assert (cfg.d_sae, cfg.k, cfg.k_aux, cfg.k_warmup, cfg.resample_every) == ("auto", "auto", "auto", None, None)
    assert cfg.sized(128).model_dump()["k"] == 32


@pytest.mark.parametrize("names", [{}, {"names": {}}, {"names": {"source": "auto", "threshold": 0.8}}])
def test_names_that_stood_in_the_index_are_moved_into_their_own_table(names: dict[str, Any]) -> None:
    index = {"top_k": 3, "names": "truth", "names_images": 90, "names_fires": 0.25, "names_threshold": 0.7, "names_positive": 4}
    config = validate(RunConfig, {"index": index, **names})
    assert config.names == NamesConfig(source="truth", n_images=90, fires=0.25, threshold=0.7, n_positive=4)
    assert config.index == IndexConfig(top_k=3)
    with pytest.raises(ConfigError, match=r"index\.names_imges: unknown"):
        validate(RunConfig, {"index": {"names_imges": 3}})


def test_set_may_still_name_a_key_where_it_was() -> None:
    assert Flags({"--set": ["index.names=none"]}).config().names.source == "none"
    assert Flags({"--names": "masks"}).config().names.source == "masks"
