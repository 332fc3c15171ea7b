"""What a setting affects is stated on its field, and asked for there by all that compare configurations."""

from __future__ import annotations

from typing import Any

import pytest

from saev_core.config.affects import affects, effect_of, settings_that_matter, settings_within
from saev_core.config.base import Config
from saev_core.config.run import RunConfig
from saev_core.config.stages import ReadConfig, RecordConfig, TrainConfig


class Inner(Config):
    fast: bool = affects("cost", default=False)
    width: int = affects("result", "step", default=3, ge=1)


class Outer(Config):
    inner: Inner = Inner()
    order: int = affects("result", "order", default=0)
    label: dict[str, str] = affects("nothing", default_factory=dict)
    plain: int = 1


def test_settings_that_leave_the_result_as_it_is_are_left_out_of_nested_tables_too() -> None:
    assert settings_that_matter(Outer()) == {"inner": {"width": 3}, "order": 0, "plain": 1}
    assert settings_that_matter(Outer(), without=["order", "step"]) == {"inner": {}, "plain": 1}
    assert settings_that_matter(Outer(plain=2, inner=Inner(fast=True)), defaults=False) == {"inner": {}, "plain": 2}


def test_an_effect_is_found_by_dotted_key_and_what_states_none_affects_the_result() -> None:
    assert effect_of(Outer, "inner.fast").what == "cost"
    assert effect_of(Outer, "inner.width") == ("result", {"step"})
    assert effect_of(Outer, "label.anything").what == "nothing"
    assert effect_of(Outer, "plain") == effect_of(Outer, "no.such.key") == ("result", frozenset())
    assert settings_within(Inner, "step") == ["width"]


def test_a_misspelt_statement_is_refused_where_it_is_written() -> None:
    wrong: list[tuple[Any, ...]] = [("costs",), ("cost", "passs")]
    for said in wrong:
        with pytest.raises(TypeError, match="a setting affects"):
            affects(*said, default=0)


def test_how_fast_and_how_often_affects_no_result() -> None:
    tables = {"record": RecordConfig, "read": ReadConfig, "train": TrainConfig}
    keys = [f"{table}.{key}" for table, kind in tables.items() for key in kind.model_fields]
    assert {key for key in keys if effect_of(RunConfig, key).what == "cost"} == {
        *("record.batch_size", "record.n_workers", "read.n_threads", "train.checkpoint_every", "train.log_every"),
        *("train.evaluate_every", "train.evaluate_vectors", "train.memory_gb"),
    }
    assert settings_that_matter(ReadConfig(n_threads=9)) == settings_that_matter(ReadConfig())
    assert settings_that_matter(ReadConfig(buffer_mb=9)) != settings_that_matter(ReadConfig())
    assert settings_that_matter(ReadConfig(buffer_mb=9), without=["order"]) == settings_that_matter(ReadConfig(), without=["order"])
