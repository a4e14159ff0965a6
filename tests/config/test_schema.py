"""Each setting is described, has a reader outside the configuration, and defaults that are allowed values."""

from __future__ import annotations

import ast
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from ftscale.config import Config, schema, tasks
from ftscale.config.methods import METHODS
from ftscale.config.tasks import SETTINGS

PACKAGE = Path(schema.__file__).parents[1]

MODULES = [schema, tasks.base, *(import_module(kind.__module__) for kind in (*SETTINGS.values(), *METHODS.values()))]
SECTIONS = {
    value.__name__: value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, schema.Section) and value is not schema.Section
}

OWNERS = {  # what a section is called where its settings are read
    "SupervisedSettings": {"method", "settings", "config"},
    "TextSettings": {"task", "settings", "config"},
    "ClassNames": {"task", "settings", "config"},
    **{kind.__name__: {"task", "settings", "config"} for kind in SETTINGS.values()},
    "GenerationSettings": {"generate", "settings", "config"},
    "AugmentationSettings": {"augment", "settings", "config"},
    "ModelConfig": {"model", "config"},
    "HeadConfig": {"head", "config"},
    "AdapterConfig": {"adapter", "config"},
    "TrainableConfig": {"trainable", "config"},
    "SourceConfig": {"source", "config"},
    "DataConfig": {"data", "config"},
    "BatchConfig": {"batch", "config"},
    "OptimizerConfig": {"optimizer", "config"},
    "ScheduleConfig": {"schedule", "config"},
    "TrainConfig": {"train", "config"},
    "EvaluationConfig": {"evaluation", "config"},
    "CheckpointConfig": {"checkpoint", "config"},
    "GuardConfig": {"guard", "config"},
    "DistributedConfig": {"distributed", "config"},
    "ReportConfig": {"report", "config"},
    "Config": {"config"},
}


def _described() -> list[tuple[str, str, str | None]]:
    return [
        (name, field, info.description)
        for name, section in SECTIONS.items()
        for field, info in section.model_fields.items()
    ]


def test_every_setting_has_a_docstring():
    # a section of Config is described by its class
    sections = {name for name, info in Config.model_fields.items() if _is_section(info.annotation)}
    missing = [
        f"{name}.{field}"
        for name, field, description in _described()
        if not description and not (name == "Config" and field in sections)
    ]
    assert missing == []
    assert [name for name, section in SECTIONS.items() if not section.__doc__] == []


def test_every_setting_has_a_reader():
    readers = _attribute_reads()
    unread = [f"{name}.{field}" for name, field, _ in _described() if not readers[field] & OWNERS[name]]
    assert unread == []


def test_every_default_is_an_allowed_value():
    for name, section in SECTIONS.items():
        required = {field for field, info in section.model_fields.items() if info.is_required()}
        for field, info in section.model_fields.items():
            if field in required:
                continue
            value = info.get_default(call_default_factory=True)
            try:
                section.model_validate({info.alias or field: value})
            except ValidationError as error:
                wrong = [item for item in error.errors() if item["loc"][:1] == (info.alias or field,)]
                assert wrong == [], f"{name}.{field}"


def test_a_configuration_cannot_be_changed():
    config = schema.TrainConfig()
    with pytest.raises(ValidationError):
        config.epochs = 2.0  # type: ignore[misc]


def test_every_task_and_every_method_can_be_named():
    names = {
        section.model_fields["name"].default
        for section in SECTIONS.values()
        if section.__name__.endswith("Settings") and "name" in section.model_fields
    }
    assert names == {*schema.TaskName.__args__, *schema.MethodName.__args__}


def test_a_task_is_named_as_its_file_is():
    assert {name: settings.model_fields["name"].default for name, settings in SETTINGS.items()} == {
        name: name for name in schema.TaskName.__args__
    }
    files = {path.stem for path in (PACKAGE / "tasks").glob("*.py")}
    assert SETTINGS.keys() <= files


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _attribute_reads() -> dict[str, set[str]]:
    """Attribute name -> names of what it is read from (`config.optimizer.lr`: lr from optimizer), outside config/.

    In a file that reads by a name in a variable (`getattr(config, name)`), the texts of the file are such names.
    """
    reads: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "config":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        by_name = {_name_of(node.args[0]) for node in nodes if isinstance(node, ast.Call) and _is_getattr(node)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                reads[node.attr].add(_name_of(node.value))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                reads[node.value] |= by_name
    return reads


def _is_getattr(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "getattr" and not isinstance(call.args[1], ast.Constant)


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr.lstrip("_") if isinstance(node, ast.Attribute) else ""
