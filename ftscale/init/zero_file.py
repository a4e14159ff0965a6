"""Which of our strategies a DeepSpeed file, or settings of FSDP, of another tool asks for."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ftscale.config.strategies import STRATEGIES, Strategy, default_strategy
from ftscale.init.draft import Draft

OFFLOAD = re.compile(r"offload", re.IGNORECASE)
STAGE = re.compile(r"(?:zero|z|stage)[_-]?([0-3])", re.IGNORECASE)
SHARDING = {"full_shard": 3, "hybrid_shard": 3, "shard_grad_op": 2, "hybrid_shard_zero2": 2}
"""FSDP's words, and the ZeRO stage that shards the same."""


def put_strategy(draft: Draft, *, folder: Path) -> None:
    """Set `distributed` as the keys `deepspeed` and `fsdp` say. `folder`: of the other tool's file."""
    given = draft.ask("deepspeed")
    if given is not None and given.value not in ("", {}, False):
        found, said = _contents(given.value, folder)
        if found is None:
            _by_name(draft, str(given.value), given.said)
        else:
            _by_contents(draft, found, said)
    _sharding(draft)


def _contents(value: Any, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The settings, or None where they cannot be read; and where they stand."""
    if isinstance(value, dict):
        return value, "deepspeed"
    for path in (Path(str(value)), folder / str(value)):
        if os.path.isfile(path):  # of a name that no file can have, pathlib raises the system's error
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            return (found if isinstance(found, dict) else None), f"deepspeed: {path.name}"
    return None, ""


def _by_contents(draft: Draft, found: dict[str, Any], said: str) -> None:
    zero = _section(found.get("zero_optimization"))
    stage = int(zero.get("stage", 0)) if str(zero.get("stage", 0)).isdecimal() else 0
    devices = {
        part: str(_section(zero.get(f"offload_{part}")).get("device", "none")).lower()
        for part in ("optimizer", "param")
    }
    named, disks = set(devices.values()) - {"none"}, {ours.offload for ours in STRATEGIES.values() if ours.on_disk}
    offload = next(iter(named & disks), "cpu" if named else "none")
    ours = _strategy(stage, offload)
    if ours.on_disk:
        place = [_section(zero.get(f"offload_{part}")).get("nvme_path") for part in ("optimizer", "param")]
        path = next((str(item) for item in place if item), None)
        draft.put("distributed.offload_dir", path or "FILL-IN", f"{said}, nvme_path")
    elif ours.offloads_weights and devices["optimizer"] == "none":
        draft.open.append(f"distributed.strategy: {ours.name} offloads the optimizer too, not the weights alone.")
    draft.put("distributed.strategy", ours.name, f"{said}, whose ZeRO stage is {stage}")
    others = sorted(set(found) & {"optimizer", "scheduler"})
    if any(isinstance(found[name], dict) for name in others):
        draft.lacks["deepspeed"] = f"of its file, {' and '.join(others)} are left out: optimizer and schedule say that"


def _strategy(stage: int, offload: str) -> Strategy:
    """Ours of a ZeRO stage and what it offloads to, or the nearest: stage 1 is offloaded as 2, to a disk 3 alone is."""
    if not stage:
        return default_strategy(2)
    nearest = [(stage, offload), (stage, "cpu"), (2, "cpu")] if offload != "none" else [(min(stage, 3), offload)]
    return next(ours for wanted in nearest for ours in STRATEGIES.values() if (ours.stage, ours.offload) == wanted)


def _section(value: Any) -> dict[str, Any]:
    """Return a section of settings; what is none counts as empty."""
    return value if isinstance(value, dict) else {}


def _by_name(draft: Draft, path: str, said: str) -> None:
    stage = STAGE.search(Path(path).name)
    if stage is None:
        draft.lacks["deepspeed"] = f"{path} is not there to be read; set distributed.strategy to zero1, zero2 or zero3"
        return
    number = int(stage[1])
    name = _strategy(number, "cpu" if number > 1 and OFFLOAD.search(path) else "none").name
    draft.put("distributed.strategy", name, f"{said}: by the name {Path(path).name}, which is not there to be read")
    draft.open.append(f"distributed.strategy = {name} goes by the name of {path} alone, which was not found.")


def _sharding(draft: Draft) -> None:
    """FSDP's full sharding shards what ZeRO-3 does, that of gradients what ZeRO-2 does."""
    why = "FSDP's own settings; distributed.strategy says what is sharded"
    given = draft.ask("fsdp")
    settings = draft.ask("fsdp_config")
    about = settings.value if settings is not None and isinstance(settings.value, dict) else {}
    on = given is not None and given.value not in ("", [], False)
    if not on and not about.get("fsdp_sharding_strategy") and "reshard_after_forward" not in about:
        draft.lack(why, "fsdp_config")
        return
    words = " ".join(draft.names_of(given)) if on and given is not None and given.value is not True else ""
    words = f"{words} {about.get('fsdp_sharding_strategy', '')}".lower().replace(",", " ")
    stage = next((stage for theirs, stage in SHARDING.items() if theirs in words.split()), 3)
    offloads = OFFLOAD.search(words) or about.get("fsdp_offload_params") or about.get("offload_params")
    draft.put(
        "distributed.strategy", _strategy(stage, "cpu" if offloads else "none").name, "fsdp; ZeRO shards the same"
    )
    draft.lack(why, "fsdp_config")
