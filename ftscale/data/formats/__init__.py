"""The table of data formats; a format is a module with `columns` and `records` (see `base.Format`)."""

from __future__ import annotations

from importlib import import_module

from ftscale.data.formats.base import Format

MODULES = {
    "csv": "delimited",
    "tsv": "delimited",
    "jsonl": "json_lines",
    "json": "json_list",
    "parquet": "parquet",
    "excel": "excel",
    "text": "text",
    "document": "document",
    "parallel": "parallel",
    "conll": "conll",
    "image_folder": "image_folder",
    "idx": "idx",
    "beir": "beir",
    "hub": "hub",
}


def load_format(name: str) -> Format:
    """The module that reads a format of `MODULES`, imported when first needed (pyarrow and datasets are slow to)."""
    return import_module(f"{__name__}.{MODULES[name]}")
