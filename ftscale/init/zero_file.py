"""Which of our strategies a DeepSpeed file, or settings of FSDP, of another tool asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ftscale.init.draft import Draft

OFFLOAD = re.compile(r"offload", re.IGNORECASE)
STAGE = re.compile(r"(?:zero|z|stage)[_-]?([0-3])", re.IGNORECASE)
SHARDING = {"full_shard": "zero3", "hybrid_shard": "zero3", "shard_grad_op": "zero2", "hybrid_shard_zero2": "zero2"}


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
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            return (found if isinstance(found, dict) else None), f"deepspeed: {path.name}"
    return None, ""


def _by_contents(draft: Draft, found: dict[str, Any], said: str) -> None:
    zero = _section(found.get("zero_optimization"))
    stage = int(zero.get("stage", 0)) if str(zero.get("stage", 0)).isdigit() else 0
    devices = {
        part: str(_section(zero.get(f"offload_{part}")).get("device", "none")).lower()
        for part in ("optimizer", "param")
    }
    if stage == 0:
        draft.put("distributed.strategy", "ddp", f"{said}, whose ZeRO stage is 0")
        return
    name = f"zero{stage}"
    if "nvme" in devices.values() and stage == 3:
        name = "zero3_nvme"
        place = [_section(zero.get(f"offload_{part}")).get("nvme_path") for part in ("optimizer", "param")]
        path = next((str(item) for item in place if item), None)
        draft.put("distributed.offload_dir", path or "FILL-IN", f"{said}, nvme_path")
    elif any(device != "none" for device in devices.values()):
        name = "zero3_offload" if stage == 3 else "zero2_offload"
        if stage == 3 and devices["optimizer"] == "none":
            draft.open.append("distributed.strategy: zero3_offload offloads the optimizer too, not the weights alone.")
    draft.put("distributed.strategy", name, f"{said}, whose ZeRO stage is {stage}")
    others = sorted(set(found) & {"optimizer", "scheduler"})
    if any(isinstance(found[name], dict) for name in others):
        draft.lacks["deepspeed"] = f"of its file, {' and '.join(others)} are left out: optimizer and schedule say that"


def _section(value: Any) -> dict[str, Any]:
    """Return a section of settings; what is none counts as empty."""
    return value if isinstance(value, dict) else {}


def _by_name(draft: Draft, path: str, said: str) -> None:
    stage = STAGE.search(Path(path).name)
    if stage is None:
        draft.lacks["deepspeed"] = f"{path} is not there to be read; set distributed.strategy to zero1, zero2 or zero3"
        return
    number = int(stage[1])
    name = f"zero{number}" if number else "ddp"
    if number > 1 and OFFLOAD.search(path):
        name += "_offload"
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
    name = next((ours for theirs, ours in SHARDING.items() if theirs in words.split()), "zero3")
    offloads = "offload" in words.split() or bool(about.get("fsdp_offload_params") or about.get("offload_params"))
    name += "_offload" if offloads else ""
    draft.put("distributed.strategy", name, "fsdp; ZeRO shards the same")
    draft.lack(why, "fsdp_config")
