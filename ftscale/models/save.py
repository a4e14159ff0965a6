"""Models as plain Hugging Face or PEFT folders: written, read back, and exported."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.files import follow_umask, partial_path, remove, remove_partials
from ftscale.base.startup import unchanged_environment
from ftscale.models.generate import mend_generation_config
from ftscale.models.head import auto_class_of, model_class_with_head, write_head_code
from ftscale.models.load import first_sentence
from ftscale.models.probing import logits_of, transformers_model
from ftscale.models.prove import QUANTIZED_TOLERANCE, TOLERANCES
from ftscale.models.quantize import keep_gradients
from ftscale.models.sizes import check_saved_sizes, told_as_too_large
from ftscale.models.trust import NO_TRUST, Trust, needed_code, needs_code

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTER_FILE = "adapter_config.json"
BASE_CONFIG = "base_config"  # not config.json beside the adapter: transformers takes such a folder for a whole model
BASE_MODEL = "base_model"
GENERATION_CONFIG = "generation_config.json"
CONFIGS = (ADAPTER_FILE, "config.json", f"{BASE_CONFIG}/config.json", f"{BASE_MODEL}/config.json")
"""What a saved model is made by."""


def save_model(
    model: PreTrainedModel | PeftModel,
    processor: Any | None,
    folder: str | Path,
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
    end_ids: Sequence[int] = (),
) -> None:
    """Write the model and its processor so that transformers (and peft for an adapter) load them without ftscale.

    A whole model: config.json, safetensors. An adapter: adapter_config.json with the base model's name, safetensors,
    `base_config/` (labels and overrides of the base), and `base_model/` where the base has random weights.
    `state_dict`: the weights, where the model's own are sharded; None = the model's own. `end_ids`: the tokens that
    end a generated text, for generation_config.json; none = as the model has it. The folder is complete or as it was
    before: everything is written beside it first.
    """
    folder = Path(folder)
    mend_generation_config(transformers_model(model))
    remove_partials(folder)
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    if isinstance(model, PeftModel):
        _save_adapter(model, partial, final=folder, state_dict=state_dict)
    else:
        _save_whole(model, partial, state_dict=state_dict)
    _write_generation(model, partial, end_ids=end_ids)
    if processor is not None:
        processor.save_pretrained(partial)
    follow_umask(partial)
    for path in filter(Path.is_file, partial.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file)
    remove(folder)
    os.rename(partial, folder)


def load_saved(
    folder: str | Path, *, auto_class: str, dtype: torch.dtype | None = None, trust: Trust = NO_TRUST
) -> PreTrainedModel | PeftModel:
    """A model that `save_model` wrote, in eval mode; an adapter on its base, quantised as in training.

    `dtype`: of the base weights; None = as saved. An MLP head is built by ftscale's own code, never by the folder's.
    Raises UserError: it does not load without more trust.
    """
    folder = Path(folder)
    check_saved_sizes(folder, *CONFIGS)
    with _told_as_damage(folder), told_as_too_large(f"the model in {str(folder)!r}"):
        if not (folder / ADAPTER_FILE).is_file():
            return _load_whole(folder, auto_class=auto_class, dtype=dtype, trust=trust)
        base = _load_base(folder, auto_class=auto_class, dtype=dtype, trust=trust)
        return _attach(base, folder)


def load_saved_processor(folder: str | Path, *, trust: Trust = NO_TRUST) -> Any | None:
    """The tokenizer or image processor saved in the folder; None where there is none."""
    folder = Path(folder)
    with _told_as_damage(folder):
        if (folder / "preprocessor_config.json").is_file():
            return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust.code)
        if (folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.code)
    return None


def export_model(
    folder: str | Path,
    out: str | Path,
    *,
    auto_class: str,
    probe: Callable[[Any], dict[str, torch.Tensor]],
    merge: bool = False,
    dtype: str | None = None,
    trust: Trust = NO_TRUST,
) -> dict[str, Any]:
    """Write a plain folder from a saved one, load it again, and compare the logits on a few inputs.

    `probe`: of the model's config, inputs that it takes. `merge`: fold the adapter into the base; into a quantised base
    by way of its dequantised weights. `dtype`: fp32, bf16, fp16; None = as saved. Gives `merged`, `dtype`,
    `largest_logit_change` (absolute) and `parameters`. Raises UserError where there is no adapter to merge, the method
    has no merged form, `out` is not empty, or the logits moved by more than rounding: then nothing is left in `out`.
    """
    folder, out = Path(folder), Path(out)
    _check_export(folder, out, merge=merge, dtype=dtype)
    before = load_saved(folder, auto_class=auto_class, trust=trust)
    inputs = probe(before.config)
    expected = _logits(before, inputs)
    allowed = _allowed_change(before, inputs, expected, merge=merge, dtype=dtype)
    processor = load_saved_processor(folder, trust=trust)
    if merge:
        del before
        model: PreTrainedModel | PeftModel = _merge(folder, auto_class=auto_class, trust=trust)
    else:
        model = before
    if dtype is not None:
        model = model.to(DTYPES[dtype])
    save_model(model, processor, out)
    parameters = sum(weight.numel() for weight in model.parameters())
    del model
    exported = load_saved(out, auto_class=auto_class, trust=trust)
    change = (_logits(exported, inputs) - expected).abs().max().item()
    if not change <= allowed:
        remove(out)
        raise UserError(
            f"{'--merge' if merge else 'export'} is not possible with this model: its logits would differ by "
            f"{change:.3g} from those that were trained, and rounding explains {allowed:.3g}; "
            + ("leave out --merge." if merge else "leave out --dtype.")
        )
    return {
        "merged": merge,
        "dtype": str(exported.dtype).removeprefix("torch."),
        "largest_logit_change": change,
        "parameters": parameters,
    }


def _allowed_change(
    model: PreTrainedModel | PeftModel,
    probe: dict[str, torch.Tensor],
    expected: torch.Tensor,
    *,
    merge: bool,
    dtype: str | None,
) -> float:
    """The largest change of a logit that rounding explains.

    That is what kernels differ by, and four times what another dtype does to the model as it is. A model that is to be
    merged or cast is left in that dtype.
    """
    largest = expected.abs().max().item()
    if model.config.to_dict().get("quantization_config") is not None:
        return QUANTIZED_TOLERANCE * largest
    allowed = TOLERANCES[str(DTYPES[dtype] if dtype else model.dtype).removeprefix("torch.")] * largest
    if merge or dtype is not None:
        rounded = _logits(model.to(DTYPES[dtype] if dtype is not None else torch.float32), probe)
        allowed += 4 * (rounded - expected).abs().max().item()
    return allowed


# ---------------------------------------------------------------- saving


def _save_adapter(model: PeftModel, folder: Path, *, final: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
    base = model.get_base_model()
    peft_config = model.peft_config[model.active_adapter]
    if not base.name_or_path:  # random weights, which no name brings back
        _save_random_base(model, folder / BASE_MODEL)
        peft_config.base_model_name_or_path = str((final / BASE_MODEL).resolve())
    model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=_vocabulary_grew(base, peft_config))
    base.config.save_pretrained(folder / BASE_CONFIG)
    _finish_config(base.config, folder / BASE_CONFIG)


def _vocabulary_grew(base: PreTrainedModel, peft_config: PeftConfig) -> bool:
    """Whether the embeddings have rows that the base on disk has not, so that they must be saved with the adapter.

    peft would ask the hub; the config that the base was loaded with lies here.
    """
    if not base.name_or_path:
        return False  # a random base is saved whole, its embeddings with it
    try:
        on_disk = AutoConfig.from_pretrained(
            base.name_or_path, revision=peft_config.revision, local_files_only=True
        ).get_text_config()
    except (OSError, ValueError):  # moved, or with code of its own: what is saved is never too little
        return True
    return base.config.get_text_config().vocab_size != on_disk.vocab_size


def _save_random_base(model: PeftModel, folder: Path) -> None:
    assert all(weight.numel() for weight in model.parameters()), "a sharded random base cannot be saved"
    base = model.get_base_model() if model.active_peft_config.is_prompt_learning else copy.deepcopy(model).unload()
    _save_whole(base, folder, state_dict=None)
    _write_generation(base, folder, end_ids=())


def _save_whole(model: Any, folder: Path, *, state_dict: dict[str, torch.Tensor] | None) -> None:
    """All but generation_config.json, which `_write_generation` writes.

    transformers 5.23 refuses to save a changed one with settings of sampling and without sampling, as published ones
    have it; ours has another padding id or end. An empty one stands in for it meanwhile.
    """
    if not model.can_generate():
        model.save_pretrained(folder, state_dict=state_dict)
    else:
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            model.save_pretrained(folder, state_dict=state_dict)
        finally:
            model.generation_config = own
    _finish_config(model.config, folder)


def _write_generation(model: PreTrainedModel | PeftModel, folder: Path, *, end_ids: Sequence[int]) -> None:
    """generation_config.json, for an adapter too: its base's has the ends of the base."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not base.can_generate():
        return
    saved = json.loads(base.generation_config.to_json_string())
    if end_ids:
        saved["eos_token_id"] = list(end_ids) if len(end_ids) > 1 else end_ids[0]
    (folder / GENERATION_CONFIG).write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _finish_config(model_config: PreTrainedConfig, folder: Path) -> None:
    """What training changed for itself is put back, and the code of an MLP head goes along."""
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    if "use_cache" in saved:
        saved["use_cache"] = True  # off in training alone; generation wants it
        path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if "mlp_head" in saved:
        write_head_code(model_config, folder, auto_class=auto_class_of(saved["mlp_head"]["base_class"]))


# ---------------------------------------------------------------- loading


@contextmanager
def _told_as_damage(folder: Path) -> Iterator[None]:
    """Turns whatever transformers, peft, safetensors and tokenizers raise for a damaged folder into a UserError."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{str(folder)!r} holds no model that can be loaded ({first_sentence(error)}); copy it again, or save the "
            "model again."
        ) from error


def _load_whole(folder: Path, *, auto_class: str, dtype: torch.dtype | None, trust: Trust) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{str(folder)!r} holds neither config.json nor {ADAPTER_FILE}; name the folder of a saved model."
        )
    model_config = _read_config(folder, trust=trust)
    model, info = _model_class(model_config, auto_class).from_pretrained(
        folder,
        config=model_config,
        dtype=dtype or "auto",
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=trust.code,
    )
    if info["missing_keys"]:
        raise UserError(
            f"{str(folder)!r} lacks weights: {', '.join(sorted(info['missing_keys']))}; save the model again."
        )
    return model.eval()


def _load_base(folder: Path, *, auto_class: str, dtype: torch.dtype | None, trust: Trust) -> PreTrainedModel:
    adapter = PeftConfig.from_pretrained(str(folder))
    model_config = _read_config(folder / BASE_CONFIG, trust=trust)
    quantization = model_config.to_dict().get("quantization_config")
    if quantization is not None:  # the base on disk is not quantised yet
        del model_config.quantization_config
    own = folder / BASE_MODEL
    place = str(own) if own.is_dir() else adapter.base_model_name_or_path
    try:
        model = _model_class(model_config, auto_class).from_pretrained(
            place,
            config=model_config,
            revision=adapter.revision,
            dtype=dtype or "auto",
            quantization_config=quantization and BitsAndBytesConfig.from_dict(quantization),
            ignore_mismatched_sizes=True,  # the old head of a base whose new one is with the adapter
            trust_remote_code=trust.code,
            use_safetensors=None if trust.pickle else True,
        )
    except OSError as error:
        if "safetensors" in str(error) and Path(str(place)).is_dir():
            raise UserError(
                f"the base model {place!r} of the adapter in {str(folder)!r} has no weights as safetensors; load it by "
                "transformers and save it again (save_pretrained), or add --allow-pickle where you trust its source."
            ) from error
        raise UserError(
            f"the base model {place!r} of the adapter in {str(folder)!r} cannot be loaded; put it back there, or write "
            f"its place into base_model_name_or_path of {ADAPTER_FILE}."
        ) from error
    if quantization is not None:
        keep_gradients(model)
    return model


def _attach(base: PreTrainedModel, folder: Path) -> PeftModel:
    # adapters trained in 16 bits stay so, those in 32 bits are not rounded to the base's dtype
    in_float32 = _saved_in_float32(folder)
    if (folder / GENERATION_CONFIG).is_file():
        base.generation_config = GenerationConfig.from_pretrained(folder)
    with unchanged_environment():
        return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=in_float32).eval()


def _saved_in_float32(folder: Path) -> bool:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as weights:
        return any(weights.get_slice(name).get_dtype() == "F32" for name in weights.keys())  # noqa: SIM118


def _read_config(folder: Path, *, trust: Trust) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust.code)
    except ValueError as error:
        if needs_code(error):
            raise needed_code(folder) from error
        raise


def _model_class(model_config: PreTrainedConfig, auto_class: str) -> Any:
    if "mlp_head" in model_config.to_dict():
        return model_class_with_head(model_config)
    return getattr(transformers, auto_class)


# ---------------------------------------------------------------- exporting


def _check_export(folder: Path, out: Path, *, merge: bool, dtype: str | None) -> None:
    check_saved_sizes(folder, *CONFIGS)
    problems = []
    is_adapter = (folder / ADAPTER_FILE).is_file()
    if dtype is not None and dtype not in DTYPES:
        problems.append(unknown_name("--dtype", dtype, DTYPES))
    if merge and not is_adapter:
        problems.append(f"--merge needs an adapter, and {str(folder)!r} is a whole model; leave out --merge.")
    if dtype is not None and is_adapter and not merge:
        problems.append(f"--dtype = {dtype} does not go with an adapter alone; add --merge for a whole model.")
    if merge and is_adapter and PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
        problems.append("--merge does not go with an adapter that learns a prompt or prefix; leave out --merge.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"OUT = {str(out)!r} exists already; name a new folder.")
    if problems:
        raise UserError(*problems)


def _merge(folder: Path, *, auto_class: str, trust: Trust) -> PreTrainedModel:
    base = _load_base(folder, auto_class=auto_class, dtype=None, trust=trust)
    if base.config.to_dict().get("quantization_config") is not None:
        base = base.dequantize()  # the adapter learnt on these weights, not on those before quantisation
    adapted = _attach(base, folder)
    _untie(adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError, ValueError) as error:
        raise UserError(f"--merge is not possible with this adapter ({error}); leave out --merge.") from error
    assert isinstance(merged, PreTrainedModel)
    return merged


def _untie(model: PeftModel) -> None:
    """Give each module a weight of its own where several share one and an adapter adds to one of them.

    Merged into the shared weight, what the adapter adds to the input embeddings would change the output head as well.
    """
    base = model.get_base_model()
    adapted = tuple(f"{name}." for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))
    sharing: dict[int, list[tuple[str, str]]] = {}
    for name, module in base.named_modules():
        for own_name, weight in module.named_parameters(recurse=False):
            sharing.setdefault(id(weight), []).append((name, own_name))
    for owners in sharing.values():
        if len(owners) < 2 or not any(f"{name}.".startswith(adapted) for name, _ in owners):
            continue
        for name, own_name in owners[1:]:
            module = base.get_submodule(name)
            setattr(module, own_name, torch.nn.Parameter(module.get_parameter(own_name).detach().clone()))
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False


@torch.no_grad()
def _logits(model: PreTrainedModel | PeftModel, probe: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in probe.items()
    }
    return logits_of(model.eval()(**inputs)).float().cpu()
