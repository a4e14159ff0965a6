"""Attention over flat rows against transformers' own over padded ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ftscale.models.attention import FLAT, flat_attention, padded_attention, use_flat, use_padded

LENGTHS = (3, 3, 7, 12, 1)

SMALL = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "attn_logit_softcapping": 0.5}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
MODERN = {**SMALL, "local_attention": 8, "cls_token_id": 3, "sep_token_id": 4}

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaModel", "LlamaConfig", GROUPED),
    "gpt2": ("GPT2Model", "GPT2Config", {"vocab_size": 211, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "qwen2 with a window": ("Qwen2Model", "Qwen2Config", {**GROUPED, **WINDOW}),
    "gemma2 with a window and a cap": ("Gemma2Model", "Gemma2Config", {**GEMMA, "attn_implementation": "eager"}),
    "bert": ("BertModel", "BertConfig", SMALL),
    "modernbert with a window": ("ModernBertModel", "ModernBertConfig", MODERN),
}


def build(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model_class, config_class, fields = SHAPES[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
    for parameter in model.parameters():  # sharper attention than that of fresh weights
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    return model


def samples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 211, (length,), generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor]) -> dict[str, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": pad(rows, batch_first=True), "attention_mask": mask}


def flat(rows: list[Tensor]) -> dict[str, Any]:
    lengths = [len(row) for row in rows]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def gradients(model: nn.Module, states: Tensor, weights: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (states * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SHAPES)
def test_flat_rows_give_the_states_and_gradients_of_padded_ones(name: str) -> None:
    model = build(name)
    rows = samples()
    batch = padded(rows)
    wanted = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    wanted_gradients = gradients(model, wanted, weights)
    use_flat(model)
    got = model(**flat(rows)).last_hidden_state[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    got_gradients = gradients(model, got, weights)
    assert got_gradients.keys() - {"pooler.dense.weight"} == wanted_gradients.keys() - {"pooler.dense.weight"}
    for key, gradient in wanted_gradients.items():
        assert (got_gradients[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, key


def test_a_sample_does_not_see_its_neighbours() -> None:
    model = build("bert")
    use_flat(model)
    rows = samples()
    before = model(**flat(rows)).last_hidden_state[0]
    rows[2] = (rows[2] + 1) % 200 + 5
    after = model(**flat(rows)).last_hidden_state[0]
    changed = (before - after).abs().amax(-1) > 0
    assert changed[6:13].all()
    assert not changed[:6].any()
    assert not changed[13:].any()


def states(heads: int, key_heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = sum(LENGTHS)
    shapes = ((1, heads, tokens, 8), (1, key_heads, tokens, 8), (1, key_heads, tokens, 8))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def boxes() -> dict[str, Any]:
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 12, "max_length_k": 12}


def block_mask(*, causal: bool, window: int | None, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    place = torch.arange(sum(lengths))
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = place[:, None] - place[None]
    seen = sample[:, None] == sample[None]
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance.abs() < window
    return seen[None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_it_equals_dense_attention_under_a_block_mask(
    dtype: torch.dtype, causal: bool, window: int | None, key_heads: int
) -> None:
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=4 // key_heads)
    query, key, value = states(4, key_heads, dtype)
    mask = block_mask(causal=causal, window=window)
    exact = (tensor.float() for tensor in (query, key, value))
    wanted, _ = sdpa_attention_forward(module, *exact, mask, scaling=0.3)
    got, weights = flat_attention(module, query, key, value, None, scaling=0.3, sliding_window=window, **boxes())
    assert weights is None
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.float(),
        wanted,
        **({"rtol": 0.02, "atol": 0.02} if dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-5}),
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_long_samples_in_bfloat16_have_the_gradients_of_dense_attention(
    causal: bool, window: int | None, key_heads: int
) -> None:
    module = SimpleNamespace(is_causal=causal)
    generator = torch.Generator().manual_seed(3)
    lengths, shapes = (300, 257, 40), ((1, 2, 597, 16), (1, key_heads, 597, 16), (1, key_heads, 597, 16))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    batch = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 300, "max_length_k": 300}
    inputs = [torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in shapes]
    weights = torch.randn(1, 597, 2, 16, generator=generator)
    got, _ = flat_attention(module, *inputs, None, sliding_window=window, **batch)
    gradients_of = torch.autograd.grad((got.float() * weights).sum(), inputs)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    mask = block_mask(causal=causal, window=window, lengths=lengths)
    wanted, _ = sdpa_attention_forward(SimpleNamespace(num_key_value_groups=2 // key_heads), *exact, mask)
    assert (got - wanted).norm() < 0.01 * wanted.norm()
    for ours, theirs in zip(gradients_of, torch.autograd.grad((wanted * weights).sum(), exact), strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_the_call_may_say_causal_otherwise_than_the_module() -> None:
    query, key, value = states(4, 4, torch.float32)
    asked, _ = flat_attention(SimpleNamespace(is_causal=True), query, key, value, None, is_causal=False, **boxes())
    plain, _ = flat_attention(SimpleNamespace(is_causal=False), query, key, value, None, **boxes())
    other, _ = flat_attention(SimpleNamespace(is_causal=True), query, key, value, None, **boxes())
    assert torch.equal(asked, plain)
    assert not torch.allclose(asked, other)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_dropout_is_applied(softcap: float | None) -> None:
    query, key, value = states(4, 4, torch.float32)
    module = nn.Module()
    module.is_causal = False
    still, _ = flat_attention(module, query, key, torch.ones_like(value), None, softcap=softcap, **boxes())
    torch.manual_seed(0)
    value = torch.ones(1, 4, sum(LENGTHS), 8)
    dropped, _ = flat_attention(module, query, key, value, None, dropout=0.5, softcap=softcap, **boxes())
    torch.testing.assert_close(still, torch.ones_like(still))
    assert dropped.std() > 0.1
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    "extra", [{"s_aux": torch.ones(4)}, {"position_bias": torch.ones(1)}, {"output_attentions": True}]
)
def test_an_argument_that_it_cannot_honour_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(extra))):
        flat_attention(SimpleNamespace(is_causal=True), *states(4, 4, torch.float32), None, **boxes(), **extra)


def test_a_padded_batch_is_refused_rather_than_attended_without_a_mask() -> None:
    model = build("llama")
    use_flat(model)
    with pytest.raises(ValueError, match="flat batches only"):
        model(**padded(samples()))


def test_boundaries_that_do_not_end_at_the_last_token_are_refused() -> None:
    wrong = {**boxes(), "cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32)}
    with pytest.raises(ValueError, match="ends at 5, the row at 26"):
        flat_attention(SimpleNamespace(is_causal=True), *states(4, 4, torch.float32), None, **wrong)


def test_a_model_with_attention_of_its_own_is_refused_and_left_as_it_was() -> None:
    config = transformers.DebertaV2Config(**{k: v for k, v in SMALL.items() if k not in ("bos_token_id",)})
    model = transformers.DebertaV2Model(config)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="AttentionInterface"):
        use_flat(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("adapted", [False, True])
def test_generation_runs_with_the_attention_from_before(adapted: bool) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)).eval()
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    batch = padded(samples())
    arguments = {"max_new_tokens": 4, "do_sample": False}
    wanted = model.generate(**batch, **arguments)
    use_flat(model)
    with padded_attention(model):
        assert torch.equal(model.generate(**batch, **arguments), wanted)
    assert model.config._attn_implementation == FLAT
    assert model(**flat(samples())).logits.shape == (1, 26, 211)


def test_generation_of_a_padded_model_changes_nothing() -> None:
    model = build("llama")
    with padded_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "sdpa"


def test_the_attention_comes_back_after_an_error_in_generation() -> None:
    model = build("llama")
    use_flat(model)
    with pytest.raises(RuntimeError, match="stop"), padded_attention(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == FLAT
    use_padded(model)
    assert model.config._attn_implementation == "sdpa"


def test_the_name_is_not_saved_with_the_model(tmp_path: Any) -> None:
    model = build("llama")
    use_flat(model)
    model.save_pretrained(tmp_path)
    assert FLAT not in (tmp_path / "config.json").read_text()
