"""A configuration from a YAML file and the command line, and back into a file.

Precedence: the schema's default < the file < the command line. Relative paths in a configuration are relative to the
current working directory, wherever the file lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ftscale.base.errors import UserError
from ftscale.base.sealed import write_text
from ftscale.base.shown import SECRET, without_secrets
from ftscale.config.overrides import apply_overrides
from ftscale.config.problems import problems_of
from ftscale.config.schema import Config
from ftscale.config.stages import stages_of
from ftscale.config.yaml_text import read_yaml, write_yaml


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file, with `section.key=value` settings of the command line laid over it.

    Values of `overrides` are read as YAML: `optimizer.lr=2e-4`, `data.train=rows.csv`, `data.train.0.path=rows.csv`,
    `task.labels=[ham, spam]`.

    Raises:
        UserError: the file is missing, is not YAML or has a key twice; or all the problems of its settings together.
    """
    return parse_config(read_settings(path, overrides), source=settings_source(path, overrides))


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file and the command line say, as nested dicts that nothing has checked yet.

    Raises:
        UserError: the file is missing, is not YAML, has a key twice or holds no sections; an override is not one.
    """
    path = Path(path)
    data = read_yaml(_read_text(path), source=str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise UserError(f"{path} must hold sections of keys and values, holds a {kind}; see `ftscale schema`.")
    return apply_overrides(data, overrides) if overrides else data


def settings_source(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """What errors call the place of the settings."""
    return f"{path} and the command line" if overrides else str(path)


def parse_config(data: dict[str, Any], *, source: str) -> Config:
    """The configuration that nested dicts say; `source` names them in errors.

    Raises:
        UserError: one sentence for each setting that is unknown, missing, of a wrong type or out of its range, of the
            stages too.
    """
    failure: ValidationError | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        failure = error
    if problems := problems_of(failure, model=Config, data=data):
        raise UserError(*(f"{source}: {problem}" for problem in problems)) from failure
    try:
        stages_of(config)
    except UserError as error:
        raise UserError(*(f"{source}: {problem}" for problem in error.problems)) from error
    return config


def write_config(config: Config, path: str | Path, *, with_secrets: bool = False) -> None:
    """Write every setting, defaults included, as YAML that `load_config` reads back as the same configuration.

    Secrets in the URLs of data are left out, and a comment says which are to be filled in; `with_secrets`: they are
    written, and where there are some nobody else may read the file.
    """
    shared, head = public(config), ""
    if shared == config or with_secrets:
        write_text(Path(path), write_yaml(config.model_dump()), mode=0o666 if shared == config else 0o600)
        return
    for line in differences(config, shared):
        setting = line.partition(":")[0]
        head += f"# {setting} is to be filled in where it says {SECRET}, here or by {setting}=... on the command line\n"
    write_text(Path(path), head + write_yaml(shared.model_dump()))


def public(config: Config) -> Config:
    """The configuration without secrets in the URLs of data and trackers: names and passwords, tokens, signatures."""
    parts = {
        part: tuple(source.model_copy(update={"path": without_secrets(source.path)}) for source in sources)
        for part in ("train", "eval", "test")
        if (sources := getattr(config.data, part))
    }
    update: dict[str, Any] = {"data": config.data.model_copy(update=parts)}
    update["report"] = config.report.model_copy(update={"options": _in_public(config.report.options)})
    if config.stages:
        update["stages"] = tuple(
            {key: _in_public(value) if key in ("data", "report") else value for key, value in stage.items()}
            for stage in config.stages
        )
    return config.model_copy(update=update)


def _in_public(value: Any) -> Any:
    """A part of the settings as it is, without the secrets of URLs."""
    if isinstance(value, dict):
        return {key: _in_public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_public(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def config_digest(config: Config) -> str:
    """SHA-256 of all settings but secrets, 64 hexadecimal digits: equal for equal configurations, on every machine."""
    text = json.dumps(public(config).model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def config_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors; short forms included."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def differences(old: Config, new: Config) -> list[str]:
    """`setting: old -> new` for each setting that differs, in the order of the schema."""
    return list(_compared(old, new, ""))


def _read_text(path: Path) -> str:
    if path.is_fifo() and not path.is_relative_to("/dev"):  # /dev/stdin and <(command) of a shell have a writer
        raise UserError(f"config file {str(path)!r} is a pipe, which would be waited for; name a YAML file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"config file {str(path)!r} does not exist; {_nearest_file(path)}") from error
    except IsADirectoryError as error:
        raise UserError(f"config file {str(path)!r} is a folder; {_config_inside(path)}") from error
    except OSError as error:
        raise UserError(f"config file {str(path)!r} cannot be read: {error.strerror}; mend that.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8."
        ) from error


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"its folder {str(folder)!r} does not exist either; give the path of a YAML file."
    siblings = sorted(item.name for item in folder.iterdir() if item.suffix in (".yaml", ".yml"))
    stems = {Path(name).stem: name for name in siblings}  # with the suffix, all of them are alike
    close = get_close_matches(path.stem, stems, n=1, cutoff=0.6)
    if close:
        return f"did you mean {str(folder / stems[close[0]])!r}?"
    return f"YAML files there: {', '.join(siblings)}." if siblings else "no YAML file lies there; give the path of one."


def _config_inside(folder: Path) -> str:
    inside = folder / "config.yaml"
    return f"did you mean {str(inside)!r}?" if inside.is_file() else "give the path of a YAML file."


_ABSENT = object()


def _compared(old: Any, new: Any, name: str) -> Iterator[str]:
    """Down to single settings; lists of different lengths are shown whole."""
    if old == new:
        return
    if _is_section(old) and _is_section(new):
        before, after = dict(old), dict(new)
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new) and all(map(_is_section, old)):
        before, after = dict(enumerate(old)), dict(enumerate(new))
    else:
        yield f"{name}: {_text(old)} -> {_text(new)}"
        return
    for key in {**before, **after}:
        yield from _compared(before.get(key, _ABSENT), after.get(key, _ABSENT), f"{name}.{key}" if name else str(key))


def _is_section(value: Any) -> bool:
    return isinstance(value, (dict, BaseModel))


def _text(value: Any) -> str:
    return "(not set)" if value is _ABSENT else json.dumps(value, default=_without_defaults)


def _without_defaults(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_defaults=True)
