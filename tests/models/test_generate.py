"""Generation is the run's own: a model's generation config says which token may follow, not how many texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, T5Config, T5ForConditionalGeneration

from ftscale.base.errors import UserError
from ftscale.config.tasks.base import GenerationSettings
from ftscale.models.generate import OBEYED, TOKENS, check_options, generate
from ftscale.models.save import save_model
from ftscale.run.predict import open_predictor

PROMPTS = ["once upon", "one day a girl", "the cat", "tom had a big red ball and"]
OWN = {  # of a model's file: nothing of it may change number, form and length
    "num_return_sequences": 2,
    "num_beams": 2,
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 3,
    "max_length": 5,
    "max_new_tokens": 2,
    "max_time": 1e-9,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "stop_strings": ["a"],
    "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 3,
    "guidance_scale": 2.0,
    "token_healing": True,
    "cache_implementation": "static",
    "use_cache": False,
    "watermarking_config": {"bias": 9.0},
}


@pytest.fixture
def model(shared: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K").eval()


@pytest.fixture
def inputs(shared: Path) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def plain(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", OWN)
def test_number_form_and_length_are_the_runs(model: Any, inputs: dict[str, torch.Tensor], name: str):
    expected = plain(model, inputs, pad_token_id=2)
    own = model.generation_config
    setattr(own, name, OWN[name])
    written, _ = generate(model, inputs, GenerationSettings(max_new_tokens=6), scored=False, pad_token_id=2)
    assert torch.equal(written, expected)
    assert model.generation_config is own


def test_every_field_of_transformers_is_the_runs_or_obeyed():
    """A new version's fields show here: is it a matter of which token may follow, or of number, form and length?"""
    own = {"max_new_tokens", "num_beams", "num_return_sequences", "do_sample", "use_cache"}
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known >= own | set(OBEYED) | set(TOKENS)


@pytest.mark.parametrize(
    ("name", "value"), [("repetition_penalty", 3.0), ("min_new_tokens", 6), ("suppress_tokens", [4])]
)
def test_what_may_follow_is_obeyed_and_can_be_set(model: Any, inputs: dict[str, torch.Tensor], name: str, value: Any):
    expected = plain(model, inputs, pad_token_id=2, **{name: value})
    neutral = plain(model, inputs, pad_token_id=2)
    options = {"scored": True, "pad_token_id": 2}
    written, chances = generate(model, inputs, GenerationSettings(max_new_tokens=6, options={name: value}), **options)
    assert torch.equal(written, expected)
    found = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, output_scores=True, return_dict_in_generate=True, **{name: value}
    )
    steps = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    torch.testing.assert_close(chances, steps, rtol=1e-4, atol=1e-5)
    setattr(model.generation_config, name, value)
    assert torch.equal(generate(model, inputs, GenerationSettings(max_new_tokens=6), **options)[0], expected)
    off = GenerationSettings(max_new_tokens=6, options={name: OBEYED[name]})
    assert torch.equal(generate(model, inputs, off, **options)[0], neutral)


@pytest.mark.parametrize("own", [{"num_return_sequences": 2}, {"temperature": 0.9, "top_p": 0.6}])
def test_a_generation_config_that_transformers_refuses_to_save_is_mended(
    model: Any, tmp_path: Path, own: dict[str, Any]
):
    for name, value in {**own, "do_sample": False, "repetition_penalty": 1.3}.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match="invalid|Greedy"):
        model.save_pretrained(tmp_path / "plain")
    save_model(model, None, tmp_path / "ours")
    saved = GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (saved.repetition_penalty, saved.eos_token_id) == (1.3, model.generation_config.eos_token_id)


def test_options_that_are_the_runs_own_are_refused():
    check_options(GenerationSettings(options={"min_length": 3}))
    with pytest.raises(UserError, match="task.generate.options = 'num_return_sequences' is not known"):
        check_options(GenerationSettings(options={"num_return_sequences": 2}))


def test_a_decoder_writes_no_more_than_it_has_positions_for():
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(vocab_size=40, d_model=16, max_position_embeddings=12, **sizes)
    torch.manual_seed(0)
    model = BartForConditionalGeneration(config).eval()
    model.generation_config.forced_eos_token_id = None
    inputs = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    written, _ = generate(model, inputs, GenerationSettings(max_new_tokens=64), scored=False, eos_token_id=None)
    assert written.shape == (1, 12)


@pytest.mark.parametrize(("kind", "beams"), [("causal_lm", 2), ("seq2seq", 1)])
def test_predict_gives_a_text_a_row_whatever_the_model_asks(shared: Path, tmp_path: Path, kind: str, beams: int):
    folder, own = tmp_path / "base", {"num_return_sequences": 2, "num_beams": 2}
    if kind == "causal_lm":
        shutil.copytree(shared / "weights/stories260K", folder)
        rows = [{"prompt": prompt, "completion": " a time"} for prompt in PROMPTS]
    else:
        config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(shared / "weights/tokenizers/t5").save_pretrained(folder)
        rows = [{"source": prompt, "target": "a time"} for prompt in PROMPTS]
    file = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**file, **own, "repetition_penalty": 1.3}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")}
    task = {"name": kind, "generate": {"max_new_tokens": 4, "num_beams": beams}}
    settings = tiny.settings(shared, tmp_path, task=task, model=str(folder), data=data, train={"max_steps": 1})
    path = tiny.write_run(tmp_path, settings)
    assert "generation: repetition_penalty 1.3 (of the model's" in tiny.command("check", path).stdout
    assert tiny.command("train", path).code == 0
    prompts = [{**{name: value for name, value in row.items() if name in ("prompt", "source")}} for row in rows]
    with open_predictor(tmp_path / "run") as predictor:
        answers = [answer.as_dict() for answer in predictor.answers([{**row, "_columns": {}} for row in prompts])]
        alone = [next(predictor.answers([{**row, "_columns": {}}])).as_dict() for row in prompts]
    assert [answer["prediction"] for answer in answers] == [answer["prediction"] for answer in alone]


def test_a_file_that_transformers_refuses_is_told_before_the_run(shared: Path, tmp_path: Path):
    shutil.copytree(shared / "weights/stories260K", tmp_path / "base")
    (tmp_path / "base/generation_config.json").write_text('{"num_return_sequences": 2}')
    (tmp_path / "rows.jsonl").write_text('{"text": "once upon"}\n')
    data = {"train": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")}
    settings = tiny.settings(shared, tmp_path, task={"name": "causal_lm"}, model=str(tmp_path / "base"), data=data)
    outcome = tiny.command("check", tiny.write_run(tmp_path, settings))
    assert outcome.code == 2
    assert "transformers refuses its generation_config.json (Greedy methods" in outcome.stdout + outcome.stderr
