"""Which settings of a source each format uses; another one that is set is refused."""

from __future__ import annotations

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.base import TEXT_FORMATS

DELIMITED = ("csv", "tsv")
USERS: dict[str, tuple[str, ...]] = {
    "name": ("hub",),
    "split": ("hub", "beir"),
    "header": (*DELIMITED, "excel"),
    "sheet": ("excel",),
    "separator": (*DELIMITED, "conll"),
    "comment": ("conll",),
    "encoding": (*TEXT_FORMATS, "beir"),
    "rows": ("json",),
    "pattern": ("text",),
}
"""The formats that use a setting; all use the others."""
OF_FOLDERS = ("name", "split")  # a folder's files may be those of a data set of the hub


def check_settings(source: SourceConfig, form: str, *, setting: str, is_folder: bool) -> None:
    """Raise UserError for each setting, other than its default, that nothing reads for a format."""
    problems = [
        f"{setting}.{name} = {value!r} is not used for {source.path!r}, whose format is {form}; leave it out"
        f"{_instead(name, source, form, setting=setting)}."
        for name, formats in USERS.items()
        if (value := source.model_dump()[name]) != SourceConfig.model_fields[name].default
        and form not in formats
        and not (is_folder and name in OF_FOLDERS)
    ]
    if problems:
        raise UserError(*problems)


def _instead(name: str, source: SourceConfig, form: str, *, setting: str) -> str:
    if name == "split" and form == "json":
        return f", and set {setting}.rows: {source.split} where the split is a list of the document"
    if name == "split" and source.path:
        return ", and name the split's file as the path"
    return f", or set {setting}.format" if name in ("header", "separator", "rows", "pattern", "sheet") else ""
