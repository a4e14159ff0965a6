"""README.md and docs/ are right: their settings, commands, examples, messages and figures are those of the program.

Settings go through the parts of `check` that need neither rows nor a model: loading, stages, combinations, names of
optimizer, schedule and adapter, names of columns. Examples of the task pages, which have rows, go through all of it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import messages
import needs
import numpy as np
import pages
import pytest
import typer
from PIL import Image
from transformers import T5Config

from ftscale.base import errors
from ftscale.base.errors import UserError, unknown_name
from ftscale.checks import check_run
from ftscale.cli import app
from ftscale.cluster.site import Site, load_site
from ftscale.cluster.submit import Request, submit
from ftscale.config import Config, parse_config
from ftscale.config.compatibility import check_combination
from ftscale.config.load import load_config
from ftscale.config.overrides import apply_overrides
from ftscale.config.stages import stages_of
from ftscale.config.strategies import STRATEGIES
from ftscale.config.tasks import SETTINGS
from ftscale.config.yaml_text import read_yaml, write_yaml
from ftscale.data.formats.select import role_problems
from ftscale.models.save import DTYPES
from ftscale.optim.optimizers import check_optimizer
from ftscale.plan import plan_run
from ftscale.plan.devices import device_names
from ftscale.precheck import steps_problems
from ftscale.run.folder import Result

WHOLE = {"task": "text_classification", "run_folder": "run", "model": "model", "data": {"train": "rows.csv"}}
"""What a part of a configuration is completed with."""
SITE = re.compile(r"# \S*cluster\.yaml\n")
"""The first line of a block that holds the settings of a site."""
YAML = [block for page in pages.PAGES for block in pages.blocks(page, "yaml")]
TASK_PAGES = sorted((pages.ROOT / "docs/tasks").glob("*.md"))
TROUBLES = pages.ROOT / "docs/troubleshooting.md"


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.place)
def test_settings_of_a_page_are_taken(block: pages.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    if SITE.match(block.text):
        (tmp_path / "cluster.yaml").write_text(block.text)
        assert load_site() != Site()
        return
    for python in pages.blocks(block.page, "python"):  # the file that `task` or `method` names
        if found := re.match(r"# (\w+\.py)\n", python.text):
            (tmp_path / found[1]).write_text(python.text)
    for file in pages.blocks(block.page, "text"):  # those that a setting names are read
        if file.title and "/" not in file.title:
            (tmp_path / file.title).write_text(file.text)
    assert _problems(block.text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate is not a setting"),
        ("optimizer: {name: adamv}", "optimizer.name = 'adamv' is not known"),
        ("adapter: {method: lora, rang: 8}", "adapter (lora) = 'rang' is not known"),
        ("schedule: {name: cosin}", "did you mean 'cosine'?"),
        ("adapter: {method: lora}\ntrainable: {scope: head}", "leave out trainable"),
        ("data: {train: {path: a.csv, columns: {texd: 1}}}", "is no column of the task"),
        ("stages: [{name: one, batch: {size: 3}}]", "stage 1-one: batch.size is not a setting"),
    ],
)
def test_what_check_refuses_is_refused_in_a_page(text: str, said: str):
    [problem] = _problems(text)
    assert said in problem


def _problems(text: str) -> list[str]:
    """What is wrong with a block of YAML as a run's settings, or as a part of them."""
    settings = {**WHOLE, **read_yaml(text, source="the page")}
    try:
        config = parse_config(settings, source="the page")
    except UserError as error:
        return list(error.problems)
    return [problem for stage in stages_of(config) or (None,) for problem in _of_run(stage.config if stage else config)]


def _of_run(config: Config) -> list[str]:
    found = [*check_combination(config), *steps_problems(config, num_steps=None)]
    for part in ("train", "eval", "test"):
        for source in getattr(config.data, part):
            also = [*config.evaluation.groups, *([config.data.stratify] if config.data.stratify else [])]
            found += role_problems(source, roles=config.task.roles, setting=f"data.{part}", also=also)
    try:
        check_optimizer(config.optimizer)
    except UserError as error:
        found += error.problems
    return found


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_commands_of_a_page_are_taken(page: Path):
    for place, words, whole in pages.commands(page):
        try:
            _parse(words, whole=whole)
        except Exception as error:
            raise AssertionError(f"{place}: {error}") from error


@pytest.mark.parametrize(
    "command",
    [
        "trainn run.yaml",
        "train run.yaml --resum",
        "predict runs/mine",
        "launch run.yaml --processes none",
        "check run.yaml optimizer.rate=1",
        "submit run.yaml --grid optimizer.rate=1,2",
        "predict runs/mine new.csv input.rowz=body",
        "launch run.yaml --strategy zero4",
        "plan run.yaml --gpu h1000",
    ],
)
def test_a_wrong_command_is_seen(command: str):
    with pytest.raises(Exception, match=r"No such|Missing|valid integer|is not a setting|is not known"):
        _parse(command.split(), whole=True)


def _parse(words: list[str], *, whole: bool) -> None:
    """Raise what the command line's own parser says, and what the settings on it are refused for; nothing is run."""
    group: Any = typer.main.get_command(app)
    outer = group.context_class(group, info_name="ftscale")
    if not words or words[0].startswith("-"):
        group.make_parser(outer).parse_args(words)
        return
    name, command, rest = group.resolve_command(outer, list(words))
    if not whole:
        parser = command.make_parser(command.context_class(command, parent=outer))
        parser.parse_args([*rest, "value of a last option"])
        return
    given = command.make_context(name, rest, parent=outer).params
    for name, known in (("strategy", STRATEGIES), ("gpu", device_names()), ("dtype", DTYPES)):
        if given.get(name) not in (None, *known):
            raise UserError(unknown_name(f"--{name}", given[name], known))
    settings = [*(given.get("overrides") or ()), *(choice.split(",")[0] for choice in given.get("grid") or ())]
    settings += [word.replace("input.", "data.train[0].", 1) for word in given.get("reading") or ()]
    base = {**WHOLE, "stages": [{"name": "one"}]} if any(word.startswith("stages") for word in settings) else WHOLE
    parse_config(apply_overrides(base, settings), source="the command line")


def test_programs_of_a_page_import_what_there_is():
    for name in ("README.md", "docs/python_api.md", "docs/use_the_model.md"):
        for block in pages.blocks(pages.ROOT / name, "python"):
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ftscale"):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, item.name) for item in node.names), block.place


# ---------------------------------------------------------------- examples of the task pages


def _examples() -> list[tuple[pages.Block, dict[str, str]]]:
    """YAML of the task pages with the files that stand before it."""
    found = []
    for page in (*TASK_PAGES, pages.ROOT / "docs/index.md"):
        files: dict[str, str] = {}
        for block in pages.blocks(page):
            if block.title:
                files[block.title] = block.text
            elif block.language == "yaml" and files:
                found.append((block, files))
                files = {}
    return found


def test_every_task_has_a_page_with_an_example():
    assert {page.stem for page in TASK_PAGES} == {block.page.stem for block, _ in _examples()} - {"index"}
    assert {page.stem for page in TASK_PAGES} == set(SETTINGS)


@pytest.mark.parametrize("example", _examples(), ids=lambda example: example[0].place)
def test_an_example_of_a_task_page_is_checked_planned_and_submitted(
    example: tuple[pages.Block, dict[str, str]], shared: Path, minilm: Path, tmp_path: Path, monkeypatch: Any
):
    block, files = example
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
        for image in re.findall(r"^(\S+\.png),", text, re.MULTILINE):
            _write_image(Path(image))
    settings = read_yaml(block.text, source=block.place)
    settings["model"] = _stand_in(settings["model"], shared=shared, minilm=minilm, work=tmp_path)
    if str(settings["model"]).count("stories260K") and "generate" not in block.text:  # which has no template of its own
        settings["task"] |= {"chat_template": "llama2"}
    settings["data"] |= {"cache_dir": str(tmp_path / "cache")}
    Path("run.yaml").write_text(write_yaml(settings))
    job = submit(Path("run.yaml"), [], Request(nodes=2, gpus_per_node=4, plan=False), dry_run=True)
    assert "#SBATCH --nodes=2" in job.script
    if needs.ALL:
        found = plan_run(load_config("run.yaml"), gpu="l4", nodes=2, gpus_per_node=4, compare=False)
        assert found.largest_micro_size > 0


def _write_image(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _stand_in(model: str, *, shared: Path, minilm: Path, work: Path) -> Any:
    """A model of the same kind that is here."""
    if model == "google-t5/t5-small":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        T5Config(vocab_size=32128, decoder_start_token_id=0, **sizes).save_pretrained(work / "t5")
        return {"name": str(work / "t5"), "init": "random", "processor": str(shared / "weights/tokenizers/t5")}
    here = {
        "sentence-transformers/all-MiniLM-L6-v2": str(minilm),
        "google/mobilenet_v1_0.75_192": str(shared / "weights/mobilenet_v1_0.25_224"),
        "Qwen/Qwen2.5-0.5B-Instruct": {
            "name": str(shared / "weights/stories260K"),
            "overrides": {"max_position_embeddings": 2048},
        },
    }
    return here[model]


# ---------------------------------------------------------------- messages


def test_the_page_of_messages_is_current():
    assert messages.PAGE.read_text(encoding="utf-8") == messages.page(), "run python tests/messages.py"


def test_what_troubleshooting_quotes_is_said_by_the_program():
    others = {"CUDA out of memory"}
    every = messages.texts() | {text for found in messages.messages().values() for text in found}
    assert len(_quoted()) > 80
    for text in sorted(_quoted() - others):
        assert any(map(messages.pattern_of(text).search, every)), text


@pytest.mark.parametrize(
    ("path", "functions"),
    [
        ("checks/data.py", ("_warnings", "_seen_before")),
        ("checks/metric.py", ("metric_warnings",)),
        ("data/census.py", ("odd_labels", "row_warnings", "shared_warning")),
        ("data/prepare.py", ("template_warnings",)),
        ("models/classes.py", ("judge_head",)),
        ("precheck/vocabulary.py", ("_other_ids", "_untrained")),
        ("tasks/image_classification.py", ("sample_warnings",)),
    ],
)
def test_every_warning_of_check_stands_in_troubleshooting(path: str, functions: tuple[str, ...]):
    for text in messages.texts_in(path, *functions):
        if "; " in text and len(text) > 60:
            assert any(messages.pattern_of(quoted).search(text) for quoted in _quoted()), text


def _quoted() -> set[str]:
    """The messages in the first column of the tables of the page, the codes of ends left out."""
    found = re.findall(r"^\| `([^`]+)` \|", TROUBLES.read_text(encoding="utf-8"), re.MULTILINE)
    return {text for text in found if len(text) > 10}


def test_every_end_of_a_run_stands_in_troubleshooting():
    [told] = re.findall(r'status: str\n    """(.*?)\."""', inspect.getsource(Result))
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    rows = re.findall(r"^\| (\d+) \| `?(\w+)", TROUBLES.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code) for code, _ in rows} == codes
    assert set(re.split(", | or ", told)) == {status for _, status in rows} - {"none"}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"lr": -1}},
        {"optimiser": {}},
        {"data": {"train": "nowhere.csv"}},
        {"data": {"train": {"path": "rows.csv", "columns": {"text": "body"}}}},
        {"data": {"train": {"path": "rows.csv", "header": False}}},
        {"data": {"train": "rows.csv", "eval_ratio": 2}},
        {"model": {"name": "model", "quantization": "nf4"}},
        {"task": "causal_ml"},
        {"train": {"precision": "fp8"}},
        {"adapter": "lora"},
        {"evaluation": {"patience": 3}},
        {"trainable": {"scope": "last_blocks"}},
    ],
    ids=str,
)
def test_what_check_says_stands_in_one_of_the_two_pages(changes: dict[str, Any], tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,label\na,1\nb,2\n")
    Path("run.yaml").write_text(write_yaml({**WHOLE, **changes}))
    listed = {text for section in messages.messages().values() for text in section} | _quoted()
    problems = check_run("run.yaml").errors
    assert problems
    for problem in problems:
        assert any(messages.pattern_of(text).search(problem) for text in listed if len(text) > 20), problem


# ---------------------------------------------------------------- figures


def test_measured_results_are_those_of_the_benchmark():
    page = (pages.ROOT / "docs/measured.md").read_text(encoding="utf-8")
    results = json.loads((pages.ROOT / "benchmarks/results/quality.json").read_text())
    rows = dict(re.findall(r"^\| (\w+).*? (\d\.\d+)(?: nats)? \| \d+ \|$", page, re.MULTILINE))
    assert rows.keys() == results.keys()
    for name, result in results.items():
        assert Decimal(str(result["value"])).quantize(Decimal("0.001"), ROUND_HALF_UP) == Decimal(rows[name]), name


def test_differences_between_cuts_are_those_of_the_benchmark():
    page = (pages.ROOT / "docs/measured.md").read_text(encoding="utf-8")
    results = json.loads((pages.ROOT / "benchmarks/results/one_number.json").read_text())
    for task, result in results.items():
        sides = [result.get(side) for side in ("ftscale", "hf_trainer", "sentence_transformers")]
        figures = ("loss", "grad_norm", "weights")
        cells = [" | ".join(f"{side['largest'][figure]:.0e}" for figure in figures) for side in sides if side]
        line = next(line for line in page.splitlines() if line.startswith(f"| {task} | {cells[0]} | "))
        assert line.endswith(f" | {cells[-1]} |" if len(cells) > 1 else " | - | - | - | - |"), task
