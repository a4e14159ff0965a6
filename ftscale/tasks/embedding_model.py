"""What sentence-transformers keeps beside a model, read and written: pooling, normalisation, prompts, length.

Source: the files that sentence-transformers 6.2 writes, which its SentenceTransformer class loads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ftscale.base.sealed import sync
from ftscale.config.tasks.embedding import EmbeddingSettings, Pooling

MODULES, PROMPTS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING, NORMALIZE = "1_Pooling", "2_Normalize"
EXTRAS = (MODULES, PROMPTS, LENGTH, POOLING, NORMALIZE)
POOLING_MODES: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last_token": "pooling_mode_lasttoken",
}
KINDS = ("Transformer", "Pooling", "Normalize")
"""Of modules, in their order."""
OTHER_MODES = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
QUERY, DOCUMENT = "query", "document"


@dataclass(frozen=True)
class Form:
    """How a vector is made of a text, besides the model."""

    pooling: Pooling = "mean"
    normalize: bool = True
    query_prompt: str = ""
    document_prompt: str = ""


def form_of(settings: EmbeddingSettings, place: str | None) -> Form:
    """As the settings say, else as the files beside a model do. `place`: its folder or name, if there is one yet."""
    own = {} if place is None else _own_form(place)
    asked = {
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "query_prompt": settings.query_prompt,
        "document_prompt": settings.document_prompt,
    }
    return Form(**{**own, **{name: value for name, value in asked.items() if value is not None}})


def form_problems(settings: EmbeddingSettings, place: str) -> list[str]:
    """What the files beside a model ask for and cannot be had here, as sentences."""
    kinds, modes = _kinds(place), _pooling(place)
    problems = [
        f"model.name = {place!r} has a module {kind} behind its vectors (modules.json), which would be lost; name "
        "another model."
        for kind in kinds
        if kind not in KINDS
    ]
    unknown = [mode for mode in modes if mode not in POOLING_MODES.values()]
    if settings.pooling is None and (unknown or len(modes) > 1):
        problems.append(
            f"task.pooling = null is as the model's own files say, and model.name = {place!r} has "
            f"{' and '.join(modes)}; set task.pooling to one of {', '.join(POOLING_MODES)}."
        )
    return problems


def write_form(folder: Path, form: Form, *, max_length: int) -> None:
    """Write the files beside a saved model."""
    size = _hidden_size(folder)
    modules = ["", POOLING, *([NORMALIZE] if form.normalize else [])]
    pooling = {name: mode == form.pooling for mode, name in POOLING_MODES.items()} | dict.fromkeys(OTHER_MODES, False)
    files: dict[str, Any] = {
        MODULES: [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(zip(modules, KINDS, strict=False))
        ],
        f"{POOLING}/config.json": {"word_embedding_dimension": size, **pooling, "include_prompt": True},
        LENGTH: {"max_seq_length": max_length, "do_lower_case": False},
        PROMPTS: {
            "prompts": {QUERY: form.query_prompt, DOCUMENT: form.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for path in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    sync([folder / name for name in files])


def _own_form(place: str) -> dict[str, Any]:
    kinds = _kinds(place)
    if not kinds:
        return {}
    form: dict[str, Any] = {"normalize": "Normalize" in kinds}
    modes = [mode for mode, name in POOLING_MODES.items() if name in _pooling(place)]
    form |= {"pooling": modes[0]} if modes else {}
    config = _read(place, PROMPTS)
    prompts = config.get("prompts") if isinstance(config, dict) else None
    prompts = prompts if isinstance(prompts, dict) else {}
    named = {"query_prompt": prompts.get(QUERY), "document_prompt": prompts.get(DOCUMENT, prompts.get("passage"))}
    return form | {name: value for name, value in named.items() if isinstance(value, str)}


def _kinds(place: str) -> dict[str, str]:
    """The kinds of the modules of a model, and the folder of each; none where no file tells."""
    modules = _read(place, MODULES)
    listed = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in listed}


def _pooling(place: str) -> list[str]:
    """The names of the modes of pooling that are on."""
    config = _read(place, f"{_kinds(place).get('Pooling', POOLING)}/config.json")
    if not isinstance(config, dict):
        return []
    return [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]


def _read(place: str, name: str) -> Any:
    """The content of a JSON file of a folder, or of a model of the hub that is here; None where there is none."""
    try:
        path = cached_file(place, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        return None if path is None else json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _hidden_size(folder: Path) -> int:
    """Of the model saved there; beside an adapter lies the config of its base."""
    path = next(path for path in (folder / "config.json", folder / "base_config/config.json") if path.is_file())
    config = json.loads(path.read_text())
    return int(config.get("hidden_size") or config["dim"])
