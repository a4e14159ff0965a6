"""Frozen base weights in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ftscale.base.errors import UserError


def quantization_config(
    kind: Literal["nf4", "int8"], *, compute_dtype: torch.dtype, keep: Sequence[str] = ()
) -> BitsAndBytesConfig:
    """What transformers needs to quantise while it loads.

    `compute_dtype`: dtype of the matrix products of nf4 (QLoRA, arXiv:2305.14314); LLM.int8 (arXiv:2208.07339) has
    its own. `keep`: names of modules that stay as they are, e.g. a new head; empty = transformers' own choice, the
    output embeddings.
    """
    _check_installed()
    skip = list(keep) or None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skip,
    )


def keep_gradients(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking themselves for inference on CPUs with AVX512-BF16.

    bitsandbytes (0.50.2, `Linear4bit.forward`) repacks at the first forward in eval mode, rounds the scales to
    bfloat16, and from then on passes no gradient: training after an evaluation would learn nothing below that layer.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _check_installed() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("model.quantization needs bitsandbytes; pip install bitsandbytes") from error
