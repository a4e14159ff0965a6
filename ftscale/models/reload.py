"""Loads a saved model as its next user would, with transformers and peft alone, and writes its outputs.

Run by `prove_saved` as a program of its own: python reload.py FOLDER WORK. WORK/request.json has `auto_class`, `dtype`,
`device`, and of the base model `trust_remote_code` and `allow_pickle`; WORK/inputs.pt the model's inputs. Writes
WORK/outputs.pt: `with`, every floating output by its name; for an adapter `without`, those of the base alone; of padded
rows `alone` and `beside`, the shortest one's scores without and with padding, and `scores`, their name; and `pads`.
"""

import atexit
import gc
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

gc.disable()  # before the imports, which make no garbage (ftscale/base/startup.py); this process lives for seconds
atexit.register(gc.freeze)

# ruff: noqa: E402

import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

SCORES = ("logits", "start_logits", "last_hidden_state")
"""What a model may call its outputs; all but logits have something for each token."""


def main(folder: Path, work: Path) -> None:
    """Load the model in `folder`, give it the inputs in `work`, and write its outputs beside them."""
    request = json.loads((work / "request.json").read_text())
    inputs = torch.load(work / "inputs.pt", weights_only=True)
    dtype, device = getattr(torch, request["dtype"]), torch.device(request["device"])
    adapter = (folder / "adapter_config.json").is_file()
    load = load_adapter if adapter else load_whole
    model = load(folder, getattr(transformers, request["auto_class"]), dtype, device, request).eval()
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype) for name, value in inputs.items()
    }
    with torch.no_grad():
        outputs: dict[str, Any] = {"with": floating(model(**inputs))}
        scores = next((name for name in SCORES if name in outputs["with"]), None)
        if "attention_mask" in inputs and scores is not None:
            outputs["scores"] = scores
            outputs |= row_alone(model, inputs, outputs["with"][scores], name=scores)
        if adapter:
            with model.disable_adapter():
                outputs["without"] = floating(model(**inputs))
        outputs["pads"] = padding_ids(folder, model, request)
    assert "ftscale" not in sys.modules
    content = io.BytesIO()  # torch's own writer does not say why a file cannot be written
    torch.save(outputs, content)
    (work / "outputs.pt").write_bytes(content.getvalue())


def floating(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every floating tensor of a model's outputs, by its name."""
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    return {name: value.float().cpu() for name, value in tensors.items() if value.is_floating_point()}


def row_alone(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], logits: torch.Tensor, *, name: str
) -> dict[str, torch.Tensor]:
    """The scores of the shortest row by itself, and those it had beside longer ones; nothing where all are as long.

    The mask is (rows, tokens), or (rows, choices, tokens) of a model of multiple choice.
    """
    mask = inputs["attention_mask"]
    lengths = mask.sum(dim=-1).reshape(len(mask), -1).amax(dim=1)
    row, length = int(lengths.argmin()), int(lengths.min())
    if length in (0, mask.shape[-1]):
        return {}
    tokens = [name for name, value in inputs.items() if name != "labels" and value.shape[: mask.ndim] == mask.shape]
    whole = (slice(row, row + 1), *[slice(None)] * (mask.ndim - 2))
    own = {
        name: value[(*whole, slice(length))] if name in tokens else value[row : row + 1]
        for name, value in inputs.items()
    }
    alone = model(**own)[name][0].float().cpu()
    beside = logits[row]
    if "labels" in inputs:  # of a decoder: the source is what was padded
        written = (inputs["labels"][row] != -100).cpu()
        alone, beside = alone[written], beside[written]
    elif logits.ndim == 3 or name != "logits":
        beside = beside[: len(alone)]
    return {"alone": alone, "beside": beside}


def padding_ids(folder: Path, model: Any, request: dict[str, Any]) -> tuple[int | None, int | None] | None:
    """The padding id by the model's config, and by the tokenizer."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=request["trust_remote_code"])
    return model.config.get_text_config().pad_token_id, tokenizer.pad_token_id


def load_whole(
    folder: Path, auto_class: Any, dtype: torch.dtype, device: torch.device, request: dict[str, Any]
) -> torch.nn.Module:
    """Load a model that was saved with all its weights."""
    trust = request["trust_remote_code"]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    # the code of an MLP head was written into the folder by this very run
    trust = trust or "mlp_head" in config.to_dict()
    options = {"dtype": dtype, "device_map": device, "use_safetensors": True}
    return auto_class.from_pretrained(folder, config=config, trust_remote_code=trust, **options)


def load_adapter(
    folder: Path, auto_class: Any, dtype: torch.dtype, device: torch.device, request: dict[str, Any]
) -> torch.nn.Module:
    """Load an adapter and, from wherever its config names it, the base model, quantised as it was in training."""
    from peft import PeftConfig, PeftModel

    adapter, trust = PeftConfig.from_pretrained(str(folder)), request["trust_remote_code"]
    config = transformers.AutoConfig.from_pretrained(folder / "base_config", trust_remote_code=trust)
    if "mlp_head" in config.to_dict():  # its code lies beside the adapter, not beside the base
        auto_class = get_class_from_dynamic_module(config.auto_map[auto_class.__name__], str(folder / "base_config"))
    quantization = config.to_dict().get("quantization_config")
    if quantization is not None:  # the base on disk is not quantised yet
        del config.quantization_config
        quantization = transformers.BitsAndBytesConfig.from_dict(quantization)
    base = auto_class.from_pretrained(
        adapter.base_model_name_or_path,
        config=config,
        revision=adapter.revision,
        dtype=dtype,
        device_map=device,
        quantization_config=quantization,
        ignore_mismatched_sizes=True,
        trust_remote_code=trust,
        use_safetensors=None if request["allow_pickle"] else True,
    )
    if quantization is not None and device.type == "cpu":
        # bitsandbytes 0.50.2 repacks 4-bit weights at the first inference on AVX512-BF16 and refuses sizes off 32
        for module in base.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=dtype == torch.float32)


main(Path(sys.argv[1]), Path(sys.argv[2]))
