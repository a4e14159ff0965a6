"""Whatever a configuration file or an override says, it is a configuration or refused in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz.anything import ODD_TEXTS, altered, budget, damaged, json_values, refused
from hypothesis import given
from hypothesis import strategies as st

from ftscale.config import Config, load_config, parse_config, write_config
from ftscale.config.load import config_digest
from ftscale.config.yaml_text import read_yaml, write_yaml
from ftscale.precheck.settings import folder_problems

RECIPES = sorted((Path(__file__).resolve().parents[2] / "launch/recipes").glob("*.yaml"))
SECTIONS = sorted(Config.model_fields)
words = st.sampled_from([*SECTIONS, "name", "path", "lr", "0", "1", "-1", "x"])
keys = st.lists(words, min_size=1, max_size=4).map(".".join) | st.text(max_size=10)
texts = st.sampled_from([*ODD_TEXTS, "1" * 5000, "[" * 2000, "{a: *b}", "!!python/name:os.system", "<<: 1"])
overrides = st.tuples(keys, st.sampled_from(["=", "", "=="]), texts | st.text(max_size=10)).map("".join)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_with_anything_in_it_is_a_configuration_or_refused(tmp_path: Path, recipe: Path):
    values = read_yaml(recipe.read_text(), source=recipe.name)

    @budget(5)
    @given(altered(values) | altered(values).flatmap(altered) if isinstance(values, dict) else json_values)
    def read(values: Any) -> None:
        with refused():
            config = parse_config(values if isinstance(values, dict) else {"task": values}, source="test")
            write_config(config, tmp_path / "config.yaml")
            again = load_config(tmp_path / "config.yaml")
            assert config_digest(again) == config_digest(config)

    read()


def test_any_file_with_any_overrides_is_a_configuration_or_refused(tmp_path: Path):
    content = RECIPES[0].read_bytes()
    path = tmp_path / "run.yaml"

    @budget(80)
    @given(damaged(content) | st.just(content), st.lists(overrides, max_size=2))
    def read(content: bytes, settings: list[str]) -> None:
        path.write_bytes(content)
        with refused():
            load_config(path, settings)

    read()


@budget(80)
@given(json_values | st.text(max_size=20))
def test_what_yaml_writes_it_reads_again_and_any_other_text_is_refused(value: Any):
    with refused():
        text = write_yaml(value)
        read_yaml(text, source="test")
    if isinstance(value, str):
        with refused():
            read_yaml(value, source="test")


def test_any_file_of_class_names_is_read_or_refused(tmp_path: Path):
    @budget(40)
    @given(damaged(b'{"0": "a", "1": "b"}') | damaged(b"a\nb\n"), st.sampled_from(["json", "txt"]))
    def read(content: bytes, suffix: str) -> None:
        (tmp_path / f"labels.{suffix}").write_bytes(content)
        about = {"name": "text_classification", "labels": str(tmp_path / f"labels.{suffix}")}
        with refused():
            parse_config({"task": about, "model": "m", "run_folder": "r", "data": {"train": "t.csv"}}, source="test")

    read()


@budget(40)
@given(st.sampled_from([*ODD_TEXTS, "a" * 300, "/dev/null/x", "~x/y"]) | st.text(max_size=10))
def test_any_name_of_a_folder_is_usable_or_refused(name: str):
    with refused():
        config = parse_config(
            {"task": "causal_lm", "model": "m", "run_folder": name, "data": {"train": "t.txt"}}, source="test"
        )
        for problem in folder_problems("run_folder", Path(config.run_folder)):
            assert problem.endswith(".")
