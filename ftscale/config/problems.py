"""Pydantic's errors as sentences for the user: setting, value, rule, fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ftscale.base.errors import nearest, unknown_name
from ftscale.config.own_method import OWN
from ftscale.config.own_task import own_class

Path = tuple[str | int, ...]

_RULES = {  # pydantic's error type: rule, fix
    "greater_than": ("must be greater than {gt}", "set a larger number"),
    "greater_than_equal": ("must be {ge} or more", "set a larger number"),
    "less_than": ("must be less than {lt}", "set a smaller number"),
    "less_than_equal": ("must be {le} or less", "set a smaller number"),
    "finite_number": ("must be a finite number", "set one"),
    "int_type": ("must be a whole number", "set one"),
    "int_parsing": ("must be a whole number", "set one"),
    "int_from_float": ("must be a whole number", "set one"),
    "float_type": ("must be a number", "set one"),
    "float_parsing": ("must be a number", "set one"),
    "bool_type": ("must be true or false", "set one of them"),
    "bool_parsing": ("must be true or false", "set one of them"),
    "string_type": ("must be text", "put it in quotes"),
    "tuple_type": ("must be a list", "write it as [first, second]"),
    "list_type": ("must be a list", "write it as [first, second]"),
    "dict_type": ("must be a section of keys and values", "write it as {{key: value}}"),
    "model_type": ("must be a section of keys and values", "write it as {{key: value}}"),
    "model_attributes_type": ("must be a section of keys and values", "write it as {{key: value}}"),
    "too_short": ("must not be empty", "name at least one"),
}


_OTHER_NAMES = {  # what transformers' TrainingArguments and peft's examples call our settings
    "bf16": "train.precision",
    "dataset": "data.train",
    "eval_steps": "evaluation.every",
    "fp16": "train.precision",
    "gradient_accumulation_steps": "batch.global_size",
    "gradient_checkpointing": "train.activation_checkpointing",
    "learning_rate": "optimizer.lr",
    "logging_steps": "train.log_every",
    "lr_scheduler_type": "schedule.name",
    "max_seq_length": "task.max_length",
    "model_name_or_path": "model.name",
    "num_train_epochs": "train.epochs",
    "optim": "optimizer.name",
    "output_dir": "run_folder",
    "per_device_train_batch_size": "batch.micro_size",
    "report_to": "report",
    "save_steps": "checkpoint.every",
    "trackers": "report",
}


def problems_of(error: ValidationError | None, *, model: type[BaseModel], data: dict[str, Any]) -> list[str]:
    """One sentence for each setting that is wrong, none twice, and none for a list whose items are wrong.

    error: what pydantic found; None = nothing. `data` is what the user wrote, before it was made into a `model`.
    Besides pydantic's errors, a true or false in the place of a number is one: pydantic takes them as 1 and 0.
    """
    sentences: dict[Path, str] = {}
    for found in error.errors(include_url=False) if error else ():
        path = _written_path(data, found["loc"], keep_last=found["type"] in ("missing", "extra_forbidden"))
        sentences.setdefault(path, _sentence(found, path, model=model, data=data))
    for path, value in _leaves(data):
        if isinstance(value, bool) and _is_number(_field_at(path, model=model, data=data)):
            sentences.setdefault(path, f"{_dotted(path)} = {_shown(value)} must be a number; set one.")
    return [text for path, text in sentences.items() if not any(_is_inside(other, path) for other in sentences)]


def _written_path(data: Any, loc: Sequence[str | int], *, keep_last: bool) -> Path:
    """The path as the user wrote it: without the names of union members, and of lists that were not written out."""
    path: list[str | int] = []
    for number, part in enumerate(loc):
        if _holds(data, part):
            data = data[part]
        elif not (keep_last and number == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, (list, tuple)):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(node, (dict, list, tuple)):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(item, (*path, key))
    else:
        yield path, node


def _is_number(field: FieldInfo | None) -> bool:
    types = set(_types_in(field.annotation)) if field else set()
    return bool(types & {int, float}) and bool not in types


def _is_inside(path: Path, outer: Path) -> bool:
    """Item 0 of a list is inside the list; a key of a section is reported beside the section."""
    return len(path) > len(outer) and path[: len(outer)] == outer


def _sentence(found: Any, path: Path, *, model: type[BaseModel], data: dict[str, Any]) -> str:
    kind, setting, value = found["type"], _dotted(path), found["input"]
    context = found.get("ctx", {})
    about = _about(_field_at(path, model=model, data=data))
    if kind == "missing":
        return f"{setting} is missing; set it{about}."
    if kind == "union_tag_not_found":
        return f"{setting}.name is missing; set one of: {', '.join(_names_of(path, model=model))}."
    if kind == "extra_forbidden":
        return _unknown_key(path, model=model, data=data)
    if kind == "literal_error":
        return unknown_name(setting, value, _literals(context["expected"]))
    if kind == "union_tag_invalid":
        return unknown_name(setting, context["tag"], _literals(context["expected_tags"]))
    if kind in ("model_type", "model_attributes_type", "dict_type") and isinstance(value, str):
        return _text_for_section(path, value, model=model, data=data)
    if kind in _RULES:
        rule, fix = _RULES[kind]
        return f"{setting} = {_shown(value)} {rule.format(**context)}; {fix.format(**context)}{about}."
    message = found["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{setting} = {_shown(value)}: {message}; set another value{about}."


def _names_of(path: Path, *, model: type[BaseModel]) -> list[str]:
    """The names between which the sections that may stand at `path` are chosen."""
    return [
        section.model_fields["name"].default for section in _sections_in(_settings(model)[str(path[-1])].annotation)
    ]


def _text_for_section(path: Path, value: str, *, model: type[BaseModel], data: dict[str, Any]) -> str:
    field = _field_at(path, model=model, data=data)
    sections = list(_sections_in(field.annotation)) if field else []
    key = next(iter(_settings(sections[0]))) if sections else "key"
    example = value if key in ("name", "method", "path") else "value"
    return f"{_dotted(path)} = {value!r} must be a section of settings; write {{{key}: {example}}}{_about(field)}."


def _unknown_key(path: Path, *, model: type[BaseModel], data: dict[str, Any]) -> str:
    section, key = path[:-1], str(path[-1])
    owner = _section_at(section, model=model, data=data) or model
    if (close := nearest(key, _settings(owner), cutoff=0.6)) is not None:
        return f"{_dotted(path)} is not a setting; did you mean {_dotted((*section, close))}?"
    elsewhere = {name: dotted for dotted, name in _all_settings(model)} | _OTHER_NAMES
    if (close := nearest(key, elsewhere, cutoff=0.75)) is not None:
        return f"{_dotted(path)} is not a setting; did you mean {elsewhere[close]}?"
    where = f"of {_dotted(section)}" if section else "sections and settings"
    return f"{_dotted(path)} is not a setting; the settings {where} are: {', '.join(_settings(owner))}."


def _all_settings(model: type[BaseModel], prefix: Path = ()) -> Iterator[tuple[str, str]]:
    """(dotted path, last name) of each setting of the tree; the settings of all tasks stand under `task`."""
    for name, field in _settings(model).items():
        path = (*prefix, name)
        yield _dotted(path), name
        for section in _sections_in(field.annotation):
            yield from _all_settings(section, path)


def _field_at(path: Path, *, model: type[BaseModel], data: dict[str, Any]) -> FieldInfo | None:
    while path and isinstance(path[-1], int):  # an element of a list is described by the list
        path = path[:-1]
    owner = _section_at(path[:-1], model=model, data=data) if path else None
    return _settings(owner).get(str(path[-1])) if owner else None


def _section_at(path: Path, *, model: type[BaseModel], data: Any) -> type[BaseModel] | None:
    """The model of the section that the user wrote at `path`; among several (tasks) the one that `name` says."""
    for part in path:
        data = data[part]
        if isinstance(part, int):
            continue
        field = _settings(model).get(part)
        choices = list(_sections_in(field.annotation)) if field else []
        if part in OWN and isinstance(data, dict) and "file" in data:  # it is there: what is wrong stands in it
            own, unread = OWN[part]
            return own_class(data["file"], section=part, own=own, unread=unread)
        if len(choices) > 1:
            name = data.get("name") if isinstance(data, dict) else data
            choices = [choice for choice in choices if choice.model_fields["name"].default == name]
        if not choices:
            return None
        model = choices[0]
    return model


def _settings(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that users write: `async` is no name in Python."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    return [found for found in _types_in(annotation) if isinstance(found, type) and issubclass(found, BaseModel)]


def _types_in(annotation: Any) -> Iterator[Any]:
    """The plain types within `Model | None`, `tuple[Model, ...]`, `Annotated[A | B, ...]`; dicts stay closed."""
    if get_origin(annotation) is Annotated:
        yield from _types_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType, tuple, list):
        for member in get_args(annotation):
            yield from _types_in(member)
    else:
        yield annotation


def _about(field: FieldInfo | None) -> str:
    if field is None:
        return ""
    if field.description:
        return f" ({' '.join(field.description.split()).rstrip('.')})"
    sections = list(_sections_in(field.annotation))
    return f" ({(sections[0].__doc__ or '').splitlines()[0].rstrip('.')})" if sections else ""


def _literals(expected: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):  # as YAML writes them
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
