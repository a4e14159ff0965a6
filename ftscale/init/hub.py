"""A data set of the hub: its configurations, its splits, and how many rows they have."""

from __future__ import annotations

import os
from typing import Any

from ftscale.base.errors import UserError
from ftscale.init.doubts import Doubts
from ftscale.init.look import SETTING
from ftscale.init.parts import SPLIT_OF, Parts, choose_configuration

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def hub_parts(name: str, doubts: Doubts) -> tuple[Parts, int | None]:
    """Return the parts of a data set, and the rows of its training split where the hub tells them.

    Raises UserError where the hub does not give it.
    """
    import datasets

    try:
        configurations = datasets.get_dataset_config_names(name)
        chosen = choose_configuration(name, configurations, doubts)
        builder = datasets.load_dataset_builder(name, chosen)
        known = builder.info.splits or {}
        splits = list(known) or datasets.get_dataset_split_names(name, chosen)
    except (FileNotFoundError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise UserError(_not_given(name, error)) from error
    first = "train" if "train" in splits else splits[0]
    source: dict[str, Any] = {"path": name, "format": "hub"}
    if len(configurations) > 1:
        source["name"] = chosen
    others = {
        part: [{**source, "split": split}]
        for part, split in SPLIT_OF.items()
        if part != "train" and split in splits and split != first
    }
    train = source if first == "train" else {**source, "split": first}
    rows = known[first].num_examples if first in known else None
    return Parts([train], others, f"its splits are {', '.join(splits)}"), rows or None


def _not_given(name: str, error: Exception) -> str:
    offline = [variable for variable in OFFLINE if os.environ.get(variable, "").lower() in ("1", "on", "yes", "true")]
    if offline:
        return (
            f"{SETTING} = {name} is no file or folder here, and as a data set of the hub it cannot be fetched, since "
            f"{offline[0]} is set; unset it, or copy the files of the data set into a folder and name that."
        )
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{SETTING} = {name} is no file or folder here, and the hub does not give it as a data set ({said}); correct "
        "the name, log in with hf auth login where it is private, or copy its files into a folder and name that."
    )
