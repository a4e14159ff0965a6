"""The table of strategies says what DeepSpeed's files say, and nothing else in the package knows strategies by name."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftscale.config.schema import DistributedConfig
from ftscale.config.strategies import STRATEGIES, Strategy, default_strategy, find_strategy

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "ftscale/config/strategies.py"


def zero_optimization(name: str) -> dict | None:
    """What DeepSpeed is told; None = there is no such file, and DeepSpeed is not used."""
    file = ROOT / "ds_configs" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["zero_optimization"] if file.exists() else None


def device(settings: dict, part: str) -> str:
    return settings.get(part, {}).get("device", "none")


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=lambda strategy: strategy.name)
def test_the_table_says_what_deepspeeds_files_say(strategy: Strategy):
    written = zero_optimization(strategy.name)
    settings = {} if written is None else written
    assert strategy.is_zero is (written is not None)
    assert strategy.file == (None if written is None else f"{strategy.name}.json")
    assert strategy.stage == settings.get("stage", 0)
    assert strategy.shards_weights is (settings.get("stage") == 3)
    assert strategy.offload == device(settings, "offload_optimizer")
    assert strategy.offloads_optimizer is (device(settings, "offload_optimizer") != "none")
    assert strategy.offloads_weights is (device(settings, "offload_param") != "none")
    assert strategy.on_disk is ("nvme" in (device(settings, "offload_optimizer"), device(settings, "offload_param")))


def test_every_file_of_deepspeeds_has_a_line_in_the_table():
    assert {path.stem for path in (ROOT / "ds_configs").glob("*.json")} == {
        name for name, strategy in STRATEGIES.items() if strategy.is_zero
    }


def test_the_table_is_that_of_the_settings_description():
    """The setting is a plain text, refused by name where a run starts; its description is the schema's only list."""
    described = DistributedConfig.model_fields["strategy"].description.split(";")[0].split(", ")
    assert described == ["single", "ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme"]
    assert [strategy.name for strategy in STRATEGIES.values()] == list(STRATEGIES) == described


def test_one_strategy_is_for_a_process_alone():
    assert [name for name, strategy in STRATEGIES.items() if strategy.one_process] == ["single"]


def test_checkpoints_go_round_within_a_family_of_one_optimizer():
    families = [
        {other.name for other in STRATEGIES.values() if strategy.shares_checkpoints_with(other)}
        for strategy in STRATEGIES.values()
    ]
    plain, zero, host, disk = (
        {"single", "ddp"},
        {"zero1", "zero2", "zero3"},
        {"zero2_offload", "zero3_offload"},
        {"zero3_nvme"},
    )
    assert families == [plain, plain, zero, zero, host, zero, host, disk]


@pytest.mark.parametrize(("name", "found"), [("zero2", "zero2"), ("zero-2", None), ("", None), (None, None)])
def test_a_strategy_is_found_by_its_name_alone(name: str | None, found: str | None):
    assert find_strategy(name) == (None if found is None else STRATEGIES[found])


@pytest.mark.parametrize(("processes", "name"), [(1, "single"), (2, "ddp"), (64, "ddp")])
def test_what_is_taken_where_nobody_names_one(processes: int, name: str):
    assert default_strategy(processes).name == name


def test_the_table_stands_on_the_standard_library_alone():
    tree = ast.parse(TABLE.read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported
    assert {name.partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)


# ---------------------------------------------------------------- nobody compares names


def test_nothing_else_compares_a_strategys_name_or_lists_some():
    found = [
        f"{path.relative_to(ROOT)}:{text}"
        for path in sorted((ROOT / "ftscale").rglob("*.py"))
        if path != TABLE
        for text in by_name(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'strategy == "zero3_nvme"',
        '"ddp" != strategy',
        'strategy in ("ddp", "zero2")',
        'strategy not in {"single"}',
        'strategy in (None, *others, "zero1")',
        'strategy.startswith("zero")',
        '(strategy or "").startswith(("zero", "ddp"))',
        'strategy.endswith("_offload")',
        'strategy.removesuffix("_nvme")',
        'f"zero{stage}" in TABLE',
        'strategy.partition("_")[2] == "nvme"',
        'match strategy:\n    case "zero2" | "other":\n        pass',
        'match job:\n    case {"strategy": "single"}:\n        pass',
        'ZERO = ("zero1", "zero2")',
        'SLOWER = {"zero2_offload": 1.5}',
        'CHOICES = Literal["single", "ddp"]',
        '"offload" in strategy',
        'strategy[:4] == "zero"',
    ],
)
def test_a_comparison_is_found_however_it_is_written(source: str):
    assert list(by_name(source))


@pytest.mark.parametrize(
    "source",
    [
        "strategy.is_zero",
        'strategy_file("ddp")',
        'DistributedConfig(strategy="single")',
        '{"strategy": "single"}',
        'name == "single_label"',
        'line.startswith("s")',
        'f"{name}: single is for one process"',
        '"""zero3_nvme alone"""',
    ],
)
def test_a_name_that_is_said_or_handed_on_is_none(source: str):
    assert not list(by_name(source))


def by_name(source: str) -> Iterator[str]:
    """Each place of a program where strategies are told apart by name: comparisons, cases, and lists of names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            compared = [text for part in (node.left, *node.comparators) for text in _texts(part)]
            found = any(_is_of_a_name(text) for text in compared)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asks = node.func.attr in ("startswith", "endswith", "removeprefix", "removesuffix")
            found = asks and any(_is_of_a_name(text) for argument in node.args for text in _texts(argument))
        elif isinstance(node, ast.match_case):
            found = any(text in STRATEGIES for text in _texts(node.pattern))
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            found = any(isinstance(item, ast.Constant) and item.value in STRATEGIES for item in node.elts)
        elif isinstance(node, ast.Dict):
            found = any(isinstance(key, ast.Constant) and key.value in STRATEGIES for key in node.keys)
        else:
            found = False
        if found:
            yield ast.unparse(node).splitlines()[0]


def _texts(node: ast.AST) -> Iterator[str]:
    """Every text that is written in an expression, the fixed parts of an f-string too."""
    return (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def _is_of_a_name(text: str) -> bool:
    """A strategy's name, or so much of its beginning or end that it tells some from others: `zero`, `_offload`."""
    return text in STRATEGIES or text.strip("_") in ("zero", "offload", "nvme")
