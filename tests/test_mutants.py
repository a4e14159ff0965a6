"""The list of mutants fits the files and the tests as they are; `python tests/mutants.py` runs it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT, Mutant, mutated


def test_every_mutant_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_replaces_stands_once_in_its_file_and_leaves_it_python(mutant: Mutant):
    source = (ROOT / mutant.file).read_text()
    assert source.count(mutant.text) == 1
    assert ast.dump(ast.parse(mutated(mutant, source))) != ast.dump(ast.parse(source)), "another program"


@pytest.mark.parametrize("test", sorted({test for mutant in MUTANTS for test in mutant.tests}))
def test_every_test_of_a_mutant_is_there(test: str):
    file, _, name = test.partition("::")
    name, bracket, _ = name.partition("[")
    assert functions(ROOT / file)[name] is bool(bracket), "with the parameters that it is run with, if any"


@cache
def functions(path: Path) -> dict[str, bool]:
    """A test file's functions, and whether each has parameters, by decorators that are written above it."""
    found = (item for item in ast.parse(path.read_text()).body if isinstance(item, ast.FunctionDef))
    return {item.name: any("parametrize" in ast.unparse(above) for above in item.decorator_list) for item in found}
