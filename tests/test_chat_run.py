"""What a run with a chat template leaves behind: the template, where a turn ends, and the same answers elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from ftscale.base.errors import UserError
from ftscale.config import load_config, parse_config
from ftscale.data.chat import read_template
from ftscale.run.export import export_run
from ftscale.run.train import train

QUESTIONS = ["What is it?", "Who are you?", "Why?"]
ANSWERS = ["It is a dog.", "I am Tom.", "She was sad."]
ENDS_WITH_BEGINNING = (  # a turn ends with a token that no other text of this tokenizer ends with
    "{%- for m in messages %}{{- m.role + ':\n' + m.content + '<s>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def base(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama with the tokens of ChatML, and a generation config as published ones are: samples, no end."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM.from_pretrained(shared / "weights/stories260K").save_pretrained(folder)
    published = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(published))
    return folder


def run_of(base: Path, work: Path, template: str, **changes: Any) -> dict[str, Any]:
    """Settings by which three answers are learned by heart."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    (work / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"name": "causal_lm", "chat_template": template, "generate": {"max_new_tokens": 24}},
        "run_folder": str(work / "run"),
        "model": str(base),
        "data": {"train": str(work / "chats.jsonl"), "cache_dir": str(work / "cache")},
        "batch": {"global_size": 3},
        "optimizer": {"lr": 1e-2},
        "train": {"max_steps": 40},
        "checkpoint": {"prove": "never"},
        **changes,
    }


def predictions(run_folder: Path, chats: Path) -> list[str]:
    outcome = tiny.command("predict", run_folder, chats)
    assert outcome.code == 0, outcome.stderr
    return [json.loads(line)["prediction"] for line in outcome.stdout.splitlines()]


def answers_of_transformers(model: Any, folder: Path, **options: Any) -> list[str]:
    """Its own template, its own ends: nothing is told but the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, **options)
        told.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return told


def test_the_saved_folder_answers_by_transformers_own_means_as_predict_does(base: Path, tmp_path: Path):
    train(parse_config(run_of(base, tmp_path, "chatml"), source="test"))
    model, run = tmp_path / "run/model", tmp_path / "run"
    assert predictions(run, tmp_path / "chats.jsonl") == ANSWERS
    assert answers_of_transformers(LlamaForCausalLM.from_pretrained(model), model) == ANSWERS
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.chat_template == read_template("chatml")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert GenerationConfig.from_pretrained(model).eos_token_id == ends
    export_run(run, tmp_path / "out", dtype="bf16")
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert answers_of_transformers(exported, tmp_path / "out") == ANSWERS


def test_an_adapter_and_its_exports_have_template_and_ends_too(base: Path, tmp_path: Path):
    (tmp_path / "mine.jinja").write_text(ENDS_WITH_BEGINNING)
    adapter = {"method": "lora", "r": 16, "target_modules": "all-linear"}
    train(parse_config(run_of(base, tmp_path, str(tmp_path / "mine.jinja"), adapter=adapter), source="test"))
    (tmp_path / "mine.jinja").unlink()  # what was learned does not hang on the file any more
    run = tmp_path / "run"
    expected = predictions(run, tmp_path / "chats.jsonl")
    assert len(set(expected)) == 3
    export_run(run, tmp_path / "adapter")
    export_run(run, tmp_path / "merged", merge=True)
    for folder in (run / "model", tmp_path / "adapter"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == ENDS_WITH_BEGINNING
        model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
        config = GenerationConfig.from_pretrained(folder)
        assert config.eos_token_id == [1, 2]
        assert answers_of_transformers(model, folder, generation_config=config) == expected
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert answers_of_transformers(merged, tmp_path / "merged") == expected


def test_a_template_file_that_was_edited_counts_as_another_setting(base: Path, tmp_path: Path):
    template = tmp_path / "mine.jinja"
    template.write_text(ENDS_WITH_BEGINNING)
    settings = run_of(base, tmp_path, str(template), train={"max_steps": 1})
    config = parse_config(settings, source="test")
    train(config)
    first = tiny.steps(tmp_path / "run")[0]["loss"]
    assert load_config(tmp_path / "run/config.yaml").task.chat_template == ENDS_WITH_BEGINNING
    again = {**settings, "run_folder": str(tmp_path / "again")}
    train(parse_config(again, source="test"))
    assert tiny.steps(tmp_path / "again")[0]["loss"] == first
    template.write_text(ENDS_WITH_BEGINNING.replace(":\n", " says:\n"))
    with pytest.raises(UserError, match="the text of task.chat_template is not what it was"):
        train(config, resume=True)
    fresh = [{**settings, "run_folder": str(tmp_path / name)} for name in ("cached", "anew")]
    fresh[1]["data"] = {**settings["data"], "cache_dir": str(tmp_path / "other")}
    losses = []
    for values in fresh:
        train(parse_config(values, source="test"))
        losses.append(tiny.steps(Path(values["run_folder"]))[0]["loss"])
    assert losses[0] == losses[1] != first


def test_a_base_model_that_changed_between_stop_and_resume_is_named(base: Path, tmp_path: Path):
    own = tmp_path / "base"
    LlamaForCausalLM.from_pretrained(base).save_pretrained(own)
    AutoTokenizer.from_pretrained(base).save_pretrained(own)
    config = parse_config(run_of(own, tmp_path, "chatml", train={"max_steps": 1}), source="test")
    train(config)
    train(config, resume=True)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        before = (own / name).read_bytes()
        changed = before[:-1] + bytes([before[-1] ^ 1]) if name.endswith(".safetensors") else before + b" "
        (own / name).write_bytes(changed)
        with pytest.raises(UserError, match=rf"model.name: .*{name} has changed; put the model back"):
            train(config, resume=True)
        (own / name).write_bytes(before)
    train(config, resume=True)


def test_check_and_train_say_what_the_template_leaves_out(base: Path, tmp_path: Path):
    cuts = ENDS_WITH_BEGINNING.replace("m.content +", "m.content.split('</think>')[-1] +").replace(
        "'assistant:\n' }}", "'assistant:\n<think>\n' }}"
    )
    settings = run_of(base, tmp_path, cuts, train={"max_steps": 1})
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    for row in rows:
        row["messages"][1]["content"] = "<think>Hm, well</think>" + row["messages"][1]["content"]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 3 x 22 of 3 x 22 + 9 + 7 + 10 characters, white space aside
    expected = [
        "data.train: the chat template leaves out 66 of 92 characters that the model's turns hold (71.7%)",
        "data.train: the template's generation prompt ends with '<think>\\n', which training does not see",
    ]
    checked = tiny.command("check", tiny.write_run(tmp_path, settings), "--json")
    warnings = json.loads(checked.stdout)["warnings"]
    for sentence in expected:
        assert [warning for warning in warnings if warning.startswith(sentence)], warnings
    trained = tiny.command("train", tiny.write_run(tmp_path, settings))
    assert trained.code == 0
    for sentence in expected:
        assert sentence in trained.stderr
