"""Recipes as `ftscale recipes` gives them: a list, and a file that works anywhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import tiny

from ftscale.base.resources import resource
from ftscale.config import load_config

NAMES = [path.stem for path in sorted(resource("launch", "recipes").glob("*.yaml"))]


def printed(name: str) -> str:
    outcome = tiny.command("recipes", name)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def said(text: str, what: str) -> str:
    """What a line at the head says."""
    [line] = re.findall(rf"^# {what}: (.+)$", text, flags=re.MULTILINE)
    return line


def test_the_list_names_each_with_what_it_is():
    outcome = tiny.command("recipes")
    assert outcome.code == 0
    assert all(re.search(rf"^{name} +\S", outcome.stdout, flags=re.MULTILINE) for name in NAMES)
    found = json.loads(tiny.command("recipes", "--json").stdout)
    assert [recipe["name"] for recipe in found] == NAMES
    assert {
        "name": "sst2",
        "task": "text_classification",
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "data": "stanfordnlp/sst2",
        "shows": "Film reviews, good or bad: all weights of a small encoder.",
    } in found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_same_run_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(printed(name))
    here, shipped = (load_config(path) for path in ("run.yaml", resource("launch", "recipes", f"{name}.yaml")))
    assert here.model_copy(update={"data": None}) == shipped.model_copy(update={"data": None})
    for part in ("train", "eval", "test"):
        for own, source in zip(getattr(here.data, part), getattr(shipped.data, part), strict=True):
            if source.format == "hub":
                assert own == source
            else:
                assert Path(own.path).is_file()
                assert Path(own.path).samefile(resource("launch").parent / source.path)


@pytest.mark.parametrize("name", NAMES)
def test_its_head_names_the_data_and_how_to_give_others(name: str, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(text := printed(name))
    shipped = load_config(tmp_path / "run.yaml")
    sources = [*shipped.data.train, *shipped.data.eval, *shipped.data.test]
    hub = {source.path for source in sources if source.format == "hub"}
    assert all(f"{path} on the Hugging Face hub" in said(text, "Data") for path in hub)
    settings, _, needs = said(text, "Your own").partition(", with ")
    own = load_config(tmp_path / "run.yaml", shlex.split(settings)).data
    left = [source for source in (*own.train, *own.eval, *own.test) if source in sources]
    assert left == []
    alternatives = [set(roles) for roles in shipped.task.columns]
    named = {role for roles in alternatives for role in roles if re.search(rf"\b{role}\b", needs)}
    of_another_kind = ("a text a line", "a word and its tag a line", "a folder for each class")
    assert needs.removesuffix(".") in of_another_kind or any(named >= roles for roles in alternatives), needs


def test_the_schema_that_an_editor_reads_is_there():
    text = printed("gsm8k")
    schema = urlsplit(text.splitlines()[0].partition("$schema=")[2])
    assert schema.scheme == "file"
    assert Path(unquote(schema.path)).samefile(resource("launch", "ftscale.schema.json"))


def test_an_unknown_name_is_answered_with_the_nearest():
    outcome = tiny.command("recipes", "banking")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "NAME = 'banking' is not known; did you mean 'banking77'?" in outcome.stderr


def test_a_recipe_is_no_json():
    outcome = tiny.command("recipes", "sst2", "--json")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "--json is for the list" in outcome.stderr
