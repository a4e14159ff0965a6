"""From a name in the config to a processor, a model's config, and a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.logs import log
from ftscale.config.schema import ModelConfig
from ftscale.models.classes import apply_verdict, class_names, judge_head
from ftscale.models.head import head_module_names, model_class_with_head
from ftscale.models.initialize import seeded_weights
from ftscale.models.quantize import keep_gradients, quantization_config
from ftscale.models.sizes import size_problems, told_as_too_large
from ftscale.models.trust import NeedsCodeError, needs_code

MUCH_DROPOUT = 0.5
TWIN_SIZES = {"vocab_size": 1000, "intermediate_size": 256}
START = "decoder_start_token_id"
LABEL_SETTINGS = frozenset({"num_labels", "id2label"})  # a task that sets these brings a head of its own


def load_processor(config: ModelConfig, *, build: Callable[[str, dict[str, Any]], Any], what: str) -> Any:
    """What `build` makes of the place and the options of `config.processor`, or else of `config.name`.

    `what`: its name in errors. Raises UserError where there is none.
    """
    setting, name = ("model.processor", config.processor) if config.processor else ("model.name", config.name)
    place = _locate(setting, name)
    options = {"trust_remote_code": config.trust_remote_code, "revision": None if config.processor else config.revision}
    try:
        return build(place, options)
    except UserError:
        raise
    except Exception as error:  # of a damaged file: tokenizers has no kinds of errors, and transformers has all
        if needs_code(error):
            raise _cannot_load(config.model_copy(update={"name": name}), error) from error
        raise UserError(
            f"{setting} = {name!r} gives no {what} ({first_sentence(error)}); set model.processor to one that does."
        ) from error


def load_model_config(config: ModelConfig, *, settings: dict[str, Any]) -> PreTrainedConfig:
    """The model's own config with `model.overrides` and the task's settings (`num_labels`, `id2label`, ...) in it."""
    place = _locate("model.name", config.name)
    if problems := size_problems(config.overrides, setting="model.overrides"):
        raise UserError(*problems)
    try:
        written, _ = PreTrainedConfig.get_config_dict(place, revision=config.revision)
        if problems := size_problems(written, setting=f"model.name = {config.name!r}: its config.json"):
            raise UserError(*problems)
        model_config = AutoConfig.from_pretrained(
            place, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except UserError:
        raise
    except Exception as error:  # of a damaged file, whatever transformers meets first
        raise _cannot_load(config, error) from error
    problems = _override(model_config, config.overrides, setting="model.overrides")
    problems += _attention_problems(config.attention)
    if problems:
        raise UserError(*problems)
    for name, value in settings.items():
        setattr(model_config, name, value)
    model_config.name_or_path = place  # where `from_config` looks for code of the model's own
    return model_config


def load_generation_config(config: ModelConfig) -> GenerationConfig:
    """The generation config that the model will have: of its generation_config.json, or else of its config.json.

    Raises UserError where transformers refuses the file.
    """
    place = _locate("model.name", config.name)
    try:
        try:
            return GenerationConfig.from_pretrained(place, revision=config.revision)
        except OSError:  # no such file
            return GenerationConfig.from_pretrained(place, revision=config.revision, config_file_name="config.json")
    except Exception as error:  # of a damaged file, whatever transformers meets first
        raise UserError(
            f"model.name = {config.name!r}: transformers refuses its generation_config.json "
            f"({first_sentence(error)}); mend or remove that file."
        ) from error


def load_model(
    config: ModelConfig,
    *,
    auto_class: str,
    settings: dict[str, Any],
    dtype: torch.dtype,
    seed: int,
    keep_head: bool = False,
    device: str | None = None,
) -> PreTrainedModel:
    """The base model, without adapter: pretrained or random, quantised or not, in `dtype`, ready to be trained.

    `auto_class`: name of a transformers Auto class. `settings`: fields of the model's config that the task sets; with
    labels among them, a head of another size or of other classes is replaced by a new one; `keep_head`: other classes
    are no reason. New weights depend on `seed` alone, so they are the same on every rank. `device`: None = the CPU;
    meta = nowhere, so that of the weights' files names and shapes alone are read. Raises UserError for whatever
    `config` asks and the model cannot.
    """
    own = load_model_config(config, settings={})
    verdict = judge_head(own, settings, auto_class=auto_class, keep=keep_head)
    model_config = load_model_config(config, settings=settings)
    _warn_of_dropout(model_config)
    if "use_cache" in model_config.to_dict():
        model_config.use_cache = False  # keys and values kept for generation; training has no use for them
    build = getattr(transformers, auto_class)
    new_head = bool(LABEL_SETTINGS & settings.keys())
    try:
        with seeded_weights(seed, "model"), _quiet(), told_as_too_large(f"model.name = {config.name!r}"):
            if config.init == "random":
                model = _random_model(config, build, model_config, dtype=dtype)
            else:
                quantization = _quantization(config, build, model_config, dtype=dtype, new_head=new_head)
                model, info = _pretrained_model(
                    config, build, model_config, dtype=dtype, quantization=quantization, device=device
                )
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a damaged file: safetensors and transformers raise all kinds
        raise _cannot_load(config, error, auto_class=auto_class) from error
    if config.init == "random":
        log.info("all weights are random: %s for the config of %s", type(model).__name__, config.name)
    else:
        _report_new_weights(model, config, info, new_head=new_head)
        if new_head and _head_was_loaded(model, info):
            ours = [str(name) for name in settings.get("id2label", {}).values()]
            apply_verdict(model, verdict, theirs=class_names(own), ours=ours, seed=seed)
    if config.quantization != "none":
        keep_gradients(model)
    elif model.main_input_name == "pixel_values":
        # convolutions run faster over pixels whose channels lie together: a step of MobileNet in 260 ms instead of 400
        model.to(memory_format=torch.channels_last)
    return model


def load_small_twin(config: ModelConfig, *, auto_class: str, settings: dict[str, Any]) -> PreTrainedModel:
    """The same architecture with two layers of random weights, to try things out on; float32.

    Vocabulary and feed-forward layers are small, so that the twin of a 70 B Llama takes 1.3 GB.
    """
    model_config = load_model_config(config, settings=settings)
    if "num_hidden_layers" in model_config.to_dict():  # convolutions have none
        model_config.num_hidden_layers = min(2, model_config.num_hidden_layers)
    if "layer_types" in model_config.to_dict() and model_config.layer_types is not None:
        model_config.layer_types = sorted(set(model_config.layer_types))[:2] * (
            2 // len(set(model_config.layer_types)) or 1
        )
        model_config.num_hidden_layers = len(model_config.layer_types)
    _narrow(model_config.get_text_config())
    if getattr(model_config.get_text_config(), "pad_token_id", None) is None:
        model_config.get_text_config().pad_token_id = 0  # by it a decoder finds the last token that its head reads
    try:
        with seeded_weights(0, "twin"):
            return getattr(transformers, auto_class).from_config(
                model_config, dtype=torch.float32, trust_remote_code=config.trust_remote_code
            )
    except ValueError as error:
        raise _cannot_load(config, error, auto_class=auto_class) from error


def _narrow(model_config: PreTrainedConfig) -> None:
    known = model_config.to_dict()
    for name, size in TWIN_SIZES.items():
        if isinstance(known.get(name), int) and known[name] > size:
            setattr(model_config, name, size)
    for name, value in known.items():
        if name.endswith("token_id") and isinstance(value, int) and value >= TWIN_SIZES["vocab_size"]:
            setattr(model_config, name, 0)


def fit_vocabulary(model: PreTrainedModel, tokenizer: Any, *, seed: int) -> None:
    """Give the model an embedding for every token: a tokenizer with more tokens than rows enlarges the embedding."""
    weight = model.get_input_embeddings().weight
    # ZeRO-3 keeps a piece of each weight, its true shape in ds_shape
    rows, tokens = (weight.ds_shape if hasattr(weight, "ds_shape") else weight.shape)[0], len(tokenizer)
    if tokens <= rows:
        return
    if model.config.to_dict().get("quantization_config") is not None:
        raise UserError(
            f"model.processor has {tokens} tokens and the model {rows} embeddings, which cannot grow in a quantised "
            "model; use the model's own tokenizer, or model.quantization: none."
        )
    with seeded_weights(seed, "vocabulary"):
        model.resize_token_embeddings(tokens)
    log.info("embeddings enlarged from %d to %d rows for the tokenizer; the new rows are random", rows, tokens)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise an error for what is found out only when the tokenizer is used.

    That is a length that is no number or, after training, a named chat template that cannot be saved with the model, in
    a file of its name.
    """
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ValueError(f"model_max_length = {tokenizer.model_max_length!r} is no number")
    templates = tokenizer.chat_template
    for name in templates if isinstance(templates, dict) else ():
        if Path(f"{name}.jinja").name != f"{name}.jinja" or "\0" in name:
            raise UserError(
                f"the tokenizer has a chat template called {name!r}, which is no name of a file, so that it could not "
                "be saved; rename it in tokenizer_config.json."
            )


# ---------------------------------------------------------------- names


def _locate(setting: str, name: str) -> str:
    """An absolute path for a folder (so that it can be found again from elsewhere), a hub id as it is."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(_no_folder(setting, name, folder))
    return name


def _no_folder(setting: str, name: str, folder: Path) -> str:
    parent = folder.parent
    if folder.exists():
        return f"{setting} = {name!r} is a file; name the folder that holds it."
    if not parent.is_dir():
        return f"{setting} = {name!r} does not exist, nor does {str(parent)!r}; check the path."
    siblings = [path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return f"{unknown_name(setting, folder.name, siblings)} (folders in {str(parent)!r})"


# ---------------------------------------------------------------- the model's config


def _override(model_config: PreTrainedConfig, overrides: dict[str, Any], *, setting: str) -> list[str]:
    """Set the fields in place; the problems are returned."""
    own = model_config.to_dict()
    known = own | ({START: None} if model_config.is_encoder_decoder else {})  # T5's config knows it only when it is set
    problems = []
    for name, value in overrides.items():
        if name not in known:
            problems.append(unknown_name(setting, name, known))
            continue
        part = getattr(model_config, name) if name in own else None
        if isinstance(part, PreTrainedConfig) and isinstance(value, dict):
            problems += _override(part, value, setting=f"{setting}.{name}")
        else:
            setattr(model_config, name, value)
    return problems


def _warn_of_dropout(model_config: PreTrainedConfig) -> None:
    """MobileNet's configs give the share that was kept in the original as the share to drop: 0.999 and 0.8."""
    for name, value in model_config.to_dict().items():
        if "dropout" in name and isinstance(value, float) and value > MUCH_DROPOUT:
            log.warning(
                "the model's config has %s = %s, which drops most values; if it is not meant, set model.overrides: "
                "{%s: %.3g}",
                name,
                value,
                name,
                1 - value,
            )


def _attention_problems(name: str) -> list[str]:
    known = ["auto", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    return [] if name in known else [unknown_name("model.attention", name, known)]


# ---------------------------------------------------------------- the weights


def _random_model(
    config: ModelConfig, build: Any, model_config: PreTrainedConfig, *, dtype: torch.dtype
) -> PreTrainedModel:
    if "mlp_head" in model_config.to_dict():
        del model_config.mlp_head  # of an earlier run; the head section says which head this one has
    model = build.from_config(
        model_config, dtype=dtype, trust_remote_code=config.trust_remote_code, **_attention_argument(config)
    )
    # these weights are nowhere to be found again: save_model must keep them
    model.config.name_or_path = model.name_or_path = ""
    return model


def _pretrained_model(
    config: ModelConfig,
    build: Any,
    model_config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    quantization: Any,
    device: str | None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' account of the keys that were missing or of another shape."""
    if "mlp_head" in model_config.to_dict():  # saved by ftscale: the head's code is here, none of the folder's is run
        build = model_class_with_head(model_config)
    model, info = build.from_pretrained(
        _locate("model.name", config.name),
        config=model_config,
        dtype=dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=None if config.allow_pickle else True,
        quantization_config=quantization,
        device_map=device,
        ignore_mismatched_sizes=True,  # judged afterwards, when the head is known
        output_loading_info=True,
        **_attention_argument(config),
    )
    forget_unused_renamings(model)
    return model, info


def forget_unused_renamings(model: PreTrainedModel) -> None:
    """Have a model saved under the names of weights that its own files have.

    Under ZeRO-3 transformers (5.23, integrations/deepspeed.py) keeps all renamings that loading knows, where it keeps
    the used ones otherwise; undone by `save_pretrained`, BERT's LayerNorm.weight would be LayerNorm.gamma.
    """
    if known := getattr(model, "_weight_conversions", None):
        model._weight_conversions = [renaming for renaming in known if renaming.was_used()]


def _attention_argument(config: ModelConfig) -> dict[str, str]:
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}


def _quantization(
    config: ModelConfig, build: Any, model_config: PreTrainedConfig, *, dtype: torch.dtype, new_head: bool
) -> BitsAndBytesConfig | None:
    if config.quantization == "none":
        return None
    keep: list[str] = []
    if new_head:  # it is trained, so it must not be quantised
        with torch.device("meta"):
            keep = head_module_names(build.from_config(model_config, trust_remote_code=config.trust_remote_code))
    return quantization_config(config.quantization, compute_dtype=dtype, keep=keep)


def _report_new_weights(model: PreTrainedModel, config: ModelConfig, info: dict[str, Any], *, new_head: bool) -> None:
    """Say which weights are not those of `config.name`; only a new head may differ from them in shape."""
    head = set(head_module_names(model)) if new_head else set()
    mismatched = {name: (tuple(old), tuple(new)) for name, old, new in sorted(info["mismatched_keys"])}
    wrong = [name for name in mismatched if name.split(".")[0] not in head]
    if wrong:
        old, new = mismatched[wrong[0]]
        raise UserError(
            f"model.overrides = {config.overrides} changes the shape of {len(wrong)} pretrained weights, e.g. "
            f"{wrong[0]} from {old} to {new}; leave the shape as it is, or set model.init: random."
        )
    fresh = sorted({*info["missing_keys"], *mismatched})
    expected = [name for name in fresh if name.split(".")[0] in head]
    surprising = [name for name in fresh if name not in expected]
    if expected:
        log.info("new weights: %s", ", ".join(expected))
    if surprising:
        log.warning("%s has no weights for these, they are random: %s", config.name, ", ".join(surprising))


def _head_was_loaded(model: PreTrainedModel, info: dict[str, Any]) -> bool:
    """Whether all weights of the head came with the model."""
    fresh = {*info["missing_keys"], *(name for name, _, _ in info["mismatched_keys"])}
    return not any(name.split(".")[0] in head_module_names(model) for name in fresh)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out transformers' load report, a table: ftscale says in one line which weights are new."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- errors


def _cannot_load(config: ModelConfig, error: Exception, *, auto_class: str | None = None) -> UserError:
    text = str(error)
    name = config.name
    if needs_code(error):
        return NeedsCodeError(
            f"model.trust_remote_code = false, but {name} comes with its own modelling code; read it, then set "
            "model.trust_remote_code: true."
        )
    if "Attention" in text or "attn_implementation" in text:
        return UserError(
            f"model.attention = {config.attention!r} does not work here ({first_sentence(error)}); "
            "use model.attention: auto."
        )
    folder = Path(name).expanduser()
    if isinstance(error, SafetensorError):
        return UserError(
            f"model.name = {name!r} has damaged weights ({first_sentence(error)}); copy or download them again."
        )
    if "safetensors" in text and folder.is_dir() and not any(folder.glob("*.bin")):
        return UserError(
            f"model.name = {name!r} holds no weights (model.safetensors); put them there, or set model.init: random "
            "for random ones."
        )
    if "safetensors" in text:
        return UserError(
            f"model.name = {name!r} has no weights as safetensors; set model.allow_pickle: true to load .bin files of "
            "a source that you trust, or model.init: random for random weights."
        )
    if "configuration class" in text and auto_class:
        return UserError(
            f"model.name = {name!r} has no {auto_class.removeprefix('AutoModelFor')} form in transformers, which the "
            "task needs; choose another model or task."
        )
    if (Path(name).expanduser() / "adapter_config.json").is_file():
        return UserError(
            f"model.name = {name!r} is an adapter; merge it into its base (ftscale export --merge) and name "
            "that folder."
        )
    if Path(name).expanduser().is_dir():
        return UserError(
            f"model.name = {name!r} holds no model that transformers can load ({first_sentence(error)}); name a "
            "folder with a config.json."
        )
    return UserError(
        f"model.name = {name!r} is neither a folder here nor to be had from the Hugging Face hub or its local cache "
        f"({first_sentence(error)}); check the name, or download it where there is internet."
    )


def first_sentence(error: Exception) -> str:
    """What a library says, without its advice."""
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__
