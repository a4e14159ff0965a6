"""The card of a saved model, model/README.md: what it is, what came out, how it was trained, and how to use it.

Its head is the metadata that the hub reads (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftscale.base.errors import counted
from ftscale.base.sealed import write_text
from ftscale.base.shown import without_secrets
from ftscale.config import Config
from ftscale.config.load import public
from ftscale.config.schema import SourceConfig
from ftscale.metrics.main_metrics import main_metrics
from ftscale.run.folder import Result, versions
from ftscale.run.prepared_data import Inputs

CARD = "README.md"
SECTIONS = ("task", "method", "adapter", "batch", "optimizer", "schedule", "train")
"""Of the configuration, those whose settings stand in the card."""
MOST_LABELS = 50
"""Names of classes that are written out."""


def write_card(folder: Path, inputs: Inputs, result: Result) -> None:
    """Write the card beside a saved model."""
    write_text(folder / CARD, card_of(inputs, result))


def card_of(inputs: Inputs, result: Result) -> str:
    """The card's text. Paths of files are left out: their names alone are told."""
    config = public(inputs.config)
    name = Path(config.run_folder).name
    parts = [
        f"---\n{_metadata(inputs, config)}\n---",
        f"# {name}",
        f"{_base(config)}, fine-tuned for {config.task.name.replace('_', ' ')} by ftscale.",
        "## Results",
        *_results(result),
        "## Use",
        _use(inputs, folder_name=name),
        "## Data",
        *_data(inputs, config),
        "## Training",
        f"{counted(result.steps, 'optimizer step')}. Settings that are not the default:",
        _fenced("json", json.dumps(_settings(config), indent=2, ensure_ascii=False)),
        "Versions: " + ", ".join(f"{package} {number}" for package, number in versions().items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(inputs: Inputs, config: Config) -> str:
    from huggingface_hub import ModelCardData

    base = None if Path(config.model.name).exists() else config.model.name
    sources = [source for part in (config.data.train, config.data.eval, config.data.test) for source in part]
    hub = list(dict.fromkeys(source.path for source in sources if source.format == "hub"))
    is_adapter, of_base = config.adapter.method != "none", _of_base(config.model.name)
    return ModelCardData(
        base_model=base,
        base_model_relation=base and ("adapter" if is_adapter else "finetune"),
        datasets=hub or None,
        library_name="peft" if is_adapter else "transformers",
        license=of_base.get("license"),
        language=of_base.get("language"),
        pipeline_tag=inputs.task.pipeline_tag or None,
        tags=["ftscale"],
    ).to_yaml()


def _of_base(name: str) -> dict[str, Any]:
    """What the base model's own card says in its head, where it is here; nothing else is looked up."""
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    try:
        path = cached_file(name, CARD, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        return {} if path is None else ModelCard(Path(path).read_text(encoding="utf-8")).data.to_dict()
    except (OSError, ValueError):
        return {}


def _base(config: Config) -> str:
    name = config.model.name
    shown = f"`{Path(name).name}`" if Path(name).exists() else f"[`{name}`](https://huggingface.co/{name})"
    return shown if config.model.init != "random" else f"The architecture of {shown} with new weights"


def _results(result: Result) -> Iterator[str]:
    if not result.metrics:
        yield "None were measured."
        return
    tests = {name: value for name, value in result.metrics.items() if name.startswith("test/")}
    shown = tests or result.metrics
    plain = {name.removeprefix("test/"): value for name, value in shown.items()}
    lines = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for name in main_metrics(plain):
        low_high = result.intervals.get(f"test/{name}") if tests else None
        interval = f"{low_high[0]:.4g} to {low_high[1]:.4g}" if low_high else ""
        lines.append(f"| {name} | {plain[name]:.4g} | {interval} |")
    yield "On test rows:" if tests else "On the held-out rows that chose the weights:"
    yield "\n".join(lines)


def _use(inputs: Inputs, *, folder_name: str) -> str:
    """A few lines of transformers, or of peft."""
    is_adapter = inputs.config.adapter.method != "none"
    model = inputs.task.auto_class.replace("AutoModel", "AutoPeftModel") if is_adapter else inputs.task.auto_class
    processor = "AutoTokenizer" if inputs.task.modality.in_tokens else "AutoImageProcessor"
    if is_adapter and model not in _of_peft():
        model = "AutoPeftModel"
    imports = f"from peft import {model}\nfrom transformers import {processor}"
    if not is_adapter:
        imports = f"from transformers import {', '.join(sorted((model, processor)))}"
    code = (
        f'{imports}\n\nmodel = {model}.from_pretrained("{folder_name}")\n'
        f'processor = {processor}.from_pretrained("{folder_name}")'
    )
    return _fenced("python", code)


def _of_peft() -> list[str]:
    import peft

    return [name for name in dir(peft) if name.startswith("AutoPeftModel")]


def _data(inputs: Inputs, config: Config) -> Iterator[str]:
    parts = {"train": inputs.train, "eval": inputs.evaluation, "test": inputs.test}
    lines = ["| part | source | samples |", "|---|---|---|"]
    for name, prepared in parts.items():
        sources = getattr(config.data, name)
        told = ", ".join(_source(source) for source in sources) or ("rows of train" if prepared is not None else "")
        if told:
            lines.append(f"| {name} | {told} | {'streamed' if prepared is None else f'{len(prepared):,}'} |")
    yield "\n".join(lines)


def _source(source: SourceConfig) -> str:
    if source.format == "hub":
        return f"[`{source.path}`](https://huggingface.co/datasets/{source.path})"
    path = without_secrets(source.path).replace("|", " ").replace("`", "'")
    return f"`{path if '://' in path else Path(path).name}`"


def _settings(config: Config) -> dict[str, Any]:
    """Without what names a file or a folder of this machine."""
    changed = config.model_dump(mode="json", exclude_defaults=True, include=set(SECTIONS))
    task = changed.get("task", {})
    for name in ("file", "chat_template"):
        task.pop(name, None)
    if len(task.get("labels") or ()) > MOST_LABELS:
        task["labels"] = f"{len(task['labels'])} classes, as in config.json"
    return changed


def _fenced(kind: str, text: str) -> str:
    return f"```{kind}\n{text}\n```"
