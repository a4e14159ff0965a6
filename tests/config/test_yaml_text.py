"""YAML is data: no tag of a file runs code or builds an object, and no small file is a large value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from ftscale.config.load import load_config
from ftscale.config.overrides import apply_overrides
from ftscale.config.yaml_text import read_yaml, write_yaml
from ftscale.errors import UserError


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [{made}]", "!!python/object/new:os.mkdir [{made}]", "!!python/name:os.mkdir"],
    ids=["apply", "new", "name"],
)
def test_a_python_tag_is_refused_with_its_line_and_not_run(tmp_path: Path, value: str):
    text = f"task: causal_lm\nseed: {value.format(made=tmp_path / 'ran')}\n"
    with pytest.raises(UserError, match=r"^run.yaml, line 2, column 7: not valid YAML: .*python/"):
        read_yaml(text, source="run.yaml")
    assert not (tmp_path / "ran").exists()


LARGE_FLOAT = "!!float '" + "1:" * 999 + "1'"


def laughs(line: str, *, levels: int) -> str:
    """YAML in which each anchor stands nine times in the next."""
    names = [f"n{level}" for level in range(levels + 1)]
    pairs = zip(names[:-1], names[1:], strict=True)
    return "n0: &n0 {x: 1}\n" + "".join(line.format(new=new, old=", ".join([f"*{old}"] * 9)) for old, new in pairs)


@pytest.mark.parametrize(
    "line", ["{new}: &{new} [{old}]\n", "{new}: &{new} {{<<: [{old}]}}\n"], ids=["lists", "merged"]
)
def test_aliases_that_stand_for_millions_of_values_are_refused_at_once(line: str):
    assert len(laughs(line, levels=9)) < 1000
    with pytest.raises(UserError, match=r"run\.yaml, line [67], .*: aliases repeat more than 100000 values; mend"):
        read_yaml(laughs(line, levels=9), source="run.yaml")
    read = read_yaml(laughs(line, levels=2), source="run.yaml")
    assert read["n2"] == ([[{"x": 1}] * 9] * 9 if "<<" not in line else {"x": 1})


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "&a [[*a]]"])
def test_an_alias_inside_itself_is_refused(text: str):
    with pytest.raises(UserError, match=r"run\.yaml, line 1, .*: the alias \*a stands inside what it is the name of"):
        read_yaml(text, source="run.yaml")


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "{a: " * 900, "- " * 900 + "x", "[" * 1_000_000])
def test_deep_nesting_is_refused_with_its_place(text: str):
    with pytest.raises(UserError, match=r"run\.yaml, line 1, column \d+: .* nested deeper than 64 levels; mend"):
        read_yaml(text, source="run.yaml")
    assert read_yaml("[" * 60 + "]" * 60, source="run.yaml")


@pytest.mark.parametrize("text", ["{}", "-{}", "+{}", "!!int '0x{}'", "!!int '1:{}'"])
def test_an_integer_of_very_many_digits_is_refused(text: str):
    for digits in (200_000, 5000, 40):
        with pytest.raises(UserError, match=r"run\.yaml, line 2, .*: a number of \d+ digits; 32 are the most"):
            read_yaml(f"a: 1\nb: {text.format('1' * digits)}", source="run.yaml")
    assert read_yaml("18446744073709551615", source="run.yaml") == 2**64 - 1


def test_an_integer_of_very_many_digits_on_the_command_line_is_refused():
    with pytest.raises(UserError, match="a number of 200000 digits; 32 are the most; correct it"):
        apply_overrides({}, [f"seed={'1' * 200_000}"])


@pytest.mark.parametrize("value", ["!!int abc", "!!bool maybe", "!!float x", "!!timestamp x", LARGE_FLOAT])
def test_a_tag_that_does_not_fit_its_value_is_refused(value: str):
    with pytest.raises(UserError, match=r"run\.yaml: not valid YAML: a tag \(!!\) does not fit its value"):
        read_yaml(f"a: {value}", source="run.yaml")


def test_a_text_of_megabytes_is_no_configuration():
    with pytest.raises(UserError, match=r"run\.yaml: has 5000000 characters, and 4194304 are the most"):
        read_yaml("x" * 5_000_000, source="run.yaml")


def test_a_pipe_as_a_configuration_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"config file '.*run\.yaml' is a pipe, which would be waited for"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "text", ["\x85", "a\x85b", "\x85\n", "a\u2028b", "\u2029", "\ufeff", "\x7f", "\t", "\xa0", "\x00"]
)
def test_every_character_comes_back(text: str):
    for value in ({text: text}, {"adapter": {text: None}}, {"a": [text, {"b": text}]}):
        assert read_yaml(write_yaml(value), source="test") == value
        assert yaml.safe_load(write_yaml(value)) == value  # as any reader of YAML 1.1 has it
