"""Causal language modelling, on a real small Llama."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftscale.config.schema import CausalLMSettings, GenerationSettings
from ftscale.errors import UserError
from ftscale.models.attention import use_flat
from ftscale.tasks.base import model_inputs
from ftscale.tasks.causal_lm import CausalLM

STORIES = [
    {"text": "Once upon a time, there was a little girl named Lily. She loved to play."},
    {"text": "Tom had a dog."},
    {"text": "The sun was hot, so they sat in the shade of the big tree and ate ice cream until it was dark."},
]


@pytest.fixture(scope="module")
def tokenizer(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "weights/stories260K")


@pytest.fixture(scope="module")
def model(shared: Path):
    return AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K").eval()


@pytest.fixture
def flat_model(shared: Path):
    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K").eval()
    use_flat(model)
    return model


def task_of(**settings) -> CausalLM:
    return CausalLM(CausalLMSettings(**settings))


def batch_of(task, samples, tokenizer, *, layout="padded", train=False):
    rows = [{**sample, "row": row} for row, sample in enumerate(samples)]
    return task.collator(tokenizer, layout=layout, train=train)(rows)


def learned(sample, tokenizer) -> str:
    return tokenizer.decode([label for label in sample["labels"] if label != -100])


# ---------------------------------------------------------------- the loss


def own_loss(model, sample) -> float:
    """The sum of transformers' own loss of one sample, alone in its batch."""
    loss = model(input_ids=torch.tensor([sample["input_ids"]]), labels=torch.tensor([sample["labels"]])).loss
    return loss.item() * sample["targets"]


def test_the_loss_is_the_sum_of_the_models_own_losses_padded_and_flat(model, flat_model, tokenizer):
    rows = [*STORIES, {"prompt": "Tom saw a big", "completion": " red ball in the park."}]
    task = task_of()
    samples = [sample for row in rows for sample in task.prepare([row], tokenizer)]
    expected = sum(own_loss(model, sample) for sample in samples)
    padded, flat = (batch_of(task, samples, tokenizer, layout=layout) for layout in ("padded", "flat"))
    assert task.count(padded).item() == task.count(flat).item() == sum(sample["targets"] for sample in samples)
    assert task.loss(model, padded).item() == pytest.approx(expected, rel=1e-5)
    assert task.loss(flat_model, flat).item() == pytest.approx(expected, rel=1e-5)


def test_padding_and_neighbours_do_not_change_the_loss_of_a_sample(model, tokenizer):
    task = task_of()
    short, _, long = task.prepare(STORIES, tokenizer)
    alone = task.outputs(model, batch_of(task, [short], tokenizer), tokenizer)["losses"]
    beside = task.outputs(model, batch_of(task, [short, long], tokenizer), tokenizer)["losses"]
    assert beside[0].item() == pytest.approx(alone[0].item(), rel=1e-5)


def test_batches_hold_at_each_position_the_label_of_the_next(tokenizer):
    task = task_of()
    first = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "length": 3, "targets": 2}
    second = {"input_ids": [4, 5], "labels": [-100, 5], "length": 2, "targets": 1}
    padded = batch_of(task, [first, second], tokenizer)
    assert padded["labels"].tolist() == [[2, 3, -100], [5, -100, -100]]
    assert padded["input_ids"].tolist() == [[1, 2, 3], [4, 5, tokenizer.eos_token_id]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    flat = batch_of(task, [first, second], tokenizer, layout="flat")
    assert flat["labels"].tolist() == [[2, 3, -100, 5, -100]]  # 3 does not predict the 4 of another sample
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert flat["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert set(model_inputs(flat)) == set(flat) - {"labels", "row"}


# ---------------------------------------------------------------- rows to samples


def test_every_token_of_a_text_is_a_target_but_the_first_and_an_end_token_is_added(tokenizer):
    (sample,) = task_of().prepare([{"text": "Tom had a dog."}], tokenizer)
    ids = [*tokenizer("Tom had a dog.")["input_ids"], tokenizer.eos_token_id]
    assert sample == {
        "input_ids": ids,
        "labels": [-100, *ids[1:]],
        "length": len(ids),
        "targets": len(ids) - 1,
        "note": "",
    }
    assert ids[0] == tokenizer.bos_token_id


def test_a_completion_and_its_end_are_the_targets(tokenizer):
    row = {"prompt": "Q: 2+2?\nA:", "completion": " 4"}
    (sample,) = task_of().prepare([row], tokenizer)
    assert tokenizer.decode(sample["input_ids"], skip_special_tokens=True) == "Q: 2+2?\nA: 4"
    assert learned(sample, tokenizer) == "4</s>"
    assert sample["targets"] == 3  # " ", "4" and the end
    (everything,) = task_of(targets="all").prepare([row], tokenizer)
    assert everything["targets"] == len(everything["input_ids"]) - 1


def test_a_completion_that_would_join_the_prompts_last_token_is_tokenised_apart(shared):
    gpt2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    (sample,) = task_of().prepare([{"prompt": "The answer is ", "completion": "yes"}], gpt2)
    prompt = gpt2("The answer is ")["input_ids"]
    assert sample["input_ids"] == [*prompt, *gpt2("yes")["input_ids"], gpt2.eos_token_id]
    assert learned(sample, gpt2) == "yes<|endoftext|>"


def test_turns_in_a_prompt_are_given_and_those_of_the_completion_learned(shared):
    qwen2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "2+2?"},
    ]
    (sample,) = task_of().prepare([{"prompt": prompt, "completion": [{"role": "assistant", "content": "4"}]}], qwen2)
    assert learned(sample, qwen2) == "4<|im_end|>"


def test_real_alpaca_rows_learn_exactly_their_outputs(shared, tokenizer):
    rows = json.loads((shared / "data/sft/llamafactory_demo/alpaca_en_demo.json").read_text())[:200]
    gpt2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    task = task_of(chat_template="alpaca")
    for row, sample in zip(rows, task.prepare(rows, gpt2), strict=True):
        assert learned(sample, gpt2) == row["output"] + "<|endoftext|>"
        assert sample["targets"] == len(gpt2(row["output"])["input_ids"]) + 1


def test_rows_with_nothing_to_learn_say_so(tokenizer):
    rows = [{"text": ""}, {"prompt": "Hi", "completion": ""}, {"instruction": "Hi", "output": " "}]
    samples = task_of(chat_template="alpaca").prepare(rows, tokenizer)
    assert [(sample["targets"], sample["note"]) for sample in samples] == [(0, "no_target")] * 3


def test_too_long_rows_are_cut_at_the_end_dropped_or_refused(tokenizer):
    (whole,) = task_of().prepare(STORIES[:1], tokenizer)
    (cut,) = task_of(max_length=8).prepare(STORIES[:1], tokenizer)
    assert (cut["input_ids"], cut["targets"], cut["note"]) == (whole["input_ids"][:8], 7, "truncated")
    (dropped,) = task_of(max_length=8, too_long="drop").prepare(STORIES[:1], tokenizer)
    assert dropped["note"] == "too_long"
    with pytest.raises(UserError, match="more than task.max_length = 8"):
        task_of(max_length=8, too_long="raise").prepare([{**STORIES[0], "_where": "a.txt line 1"}], tokenizer)
    prompt = {"prompt": STORIES[0]["text"], "completion": "x"}
    assert task_of(max_length=8).prepare([prompt], tokenizer)[0]["note"] == "no_target"


def test_joined_texts_fill_blocks_and_keep_every_token_in_order(tokenizer):
    task = task_of(join_texts=True, max_length=16)
    blocks = task.prepare([*STORIES, {"text": ""}], tokenizer)
    assert [block["length"] for block in blocks[:-1]] == [16] * (len(blocks) - 1)
    separate = [token for sample in task_of().prepare(STORIES, tokenizer) for token in sample["input_ids"]]
    assert [token for block in blocks for token in block["input_ids"]] == separate
    assert blocks[0]["targets"] == 15
    with pytest.raises(UserError, match="task.join_texts = true joins plain texts"):
        task.prepare([{"prompt": "a", "completion": "b"}], tokenizer)


def test_a_problem_names_the_row(tokenizer):
    row = {"messages": [{"role": "usr", "content": "x"}], "_where": "chats.jsonl line 7"}
    with pytest.raises(UserError, match="chats.jsonl line 7: messages: role = 'usr' is not known; did you mean 'user'"):
        task_of(chat_template="alpaca").prepare([row], tokenizer)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="task.answer_pattern = 'x' needs generated texts"):
        task_of(answer_pattern="x")
    with pytest.raises(UserError, match=r"task.answer_pattern = '\(' is not a regular expression"):
        task_of(answer_pattern="(", generate=GenerationSettings())
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        task_of(chat_template="alpacca")


# ---------------------------------------------------------------- evaluation


def scores_of(task, model, rows, tokenizer, *, layout="padded") -> dict[str, float]:
    evaluator = task.evaluator()
    batch = batch_of(task, task.prepare(rows, tokenizer), tokenizer, layout=layout)
    evaluator.update(task.outputs(model, batch, tokenizer), batch)
    return evaluator.compute()


def test_metrics_are_per_target_not_means_of_means(model, flat_model, tokenizer):
    task = task_of()
    samples = task.prepare(STORIES, tokenizer)
    loss = sum(own_loss(model, sample) for sample in samples) / sum(sample["targets"] for sample in samples)
    right = 0
    for sample in samples:
        guesses = model(input_ids=torch.tensor([sample["input_ids"]])).logits[0, :-1].argmax(-1)
        right += (guesses == torch.tensor(sample["input_ids"][1:])).sum().item()
    expected = {
        "loss": loss,
        "perplexity": math.exp(loss),
        "token_accuracy": right / sum(sample["targets"] for sample in samples),
    }
    assert scores_of(task, model, STORIES, tokenizer) == pytest.approx(expected, rel=1e-5)
    assert scores_of(task, flat_model, STORIES, tokenizer, layout="flat") == pytest.approx(expected, rel=1e-5)


def test_ranks_together_score_as_one_and_a_row_seen_twice_counts_once(model, tokenizer):
    task = task_of()
    samples = [{**sample, "row": row} for row, sample in enumerate(task.prepare(STORIES, tokenizer))]
    collate = task.collator(tokenizer, layout="padded", train=False)
    ranks = []
    for share in (samples[:2], [samples[2], samples[0]]):
        evaluator = task.evaluator()
        batch = collate(share)
        evaluator.update(task.outputs(model, batch, tokenizer), batch)
        ranks.append(evaluator)
    ranks[0].merge(pickle.loads(pickle.dumps(ranks[1].records)))
    assert ranks[0].compute() == pytest.approx(scores_of(task, model, STORIES, tokenizer), rel=1e-5)


def greedy(model, tokenizer, prompt: str, tokens: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_generation_from_prompts_of_unequal_length_scores_against_the_completions(model, flat_model, tokenizer):
    prompts = ["Once upon a time, there was a", "Tom had a big"]
    rows = [
        {"prompt": prompts[0], "completion": greedy(model, tokenizer, prompts[0], 12)},
        {"prompt": prompts[1], "completion": greedy(model, tokenizer, prompts[1], 12)},
        {"prompt": prompts[1], "completion": "zebra"},
    ]
    task = task_of(generate=GenerationSettings(max_new_tokens=12))
    for of_layout, layout in ((model, "padded"), (flat_model, "flat")):
        batch = batch_of(task, task.prepare(rows, tokenizer), tokenizer, layout=layout)
        predictions = task.outputs(of_layout, batch, tokenizer)["predictions"]
        assert predictions[:2] == [row["completion"] for row in rows[:2]]
        scores = scores_of(task, of_layout, rows, tokenizer, layout=layout)
        assert scores["exact_match"] == pytest.approx(2 / 3)
        assert scores["rouge1"] == scores["rouge2"] == scores["rougeL"] == pytest.approx(2 / 3)
        assert set(scores) == {"loss", "perplexity", "token_accuracy", "exact_match", "rouge1", "rouge2", "rougeL"}
    assert "prompts" not in batch_of(task, task.prepare(rows, tokenizer), tokenizer, train=True)


def test_a_generated_text_ends_at_the_end_token_which_is_not_part_of_it(shared, model, tokenizer):
    ending = AutoTokenizer.from_pretrained(shared / "weights/stories260K", eos_token=".")
    prompt = "Once upon a time, there was a little girl named"
    unended = greedy(model, tokenizer, prompt, 40)
    assert "." in unended
    task = task_of(generate=GenerationSettings(max_new_tokens=40))
    batch = batch_of(task, task.prepare([{"prompt": prompt}], ending, labelled=False), ending)
    assert task.outputs(model, batch, ending)["predictions"] == [unended.partition(".")[0]]


def test_the_answers_of_real_problems_are_compared_by_the_pattern(shared, model, tokenizer):
    lines = (shared / "data/math/gsm8k/test.jsonl").read_text().splitlines()[:4]
    rows = [{"instruction": row["question"], "output": row["answer"]} for row in map(json.loads, lines)]
    settings = {"generate": GenerationSettings(max_new_tokens=4), "chat_template": "alpaca", "max_length": 480}
    task = task_of(answer_pattern=r"#### (.+)", **settings)
    batch = batch_of(task, task.prepare(rows, tokenizer), tokenizer)
    outputs = task.outputs(model, batch, tokenizer)
    outputs["predictions"] = ["She sells 16.\n#### 18", "3", "#### 70000 or\n#### 7", "I think\n#### 540"]
    evaluator = task.evaluator()
    evaluator.update(outputs, batch)
    assert evaluator.compute()["exact_match"] == 0.5  # 18 and 540; the others have no mark or another number
    with pytest.raises(UserError, match="must match each reference"):
        task.prepare([{**rows[0], "output": "no mark"}], tokenizer)


def test_a_chat_that_the_user_ends_is_not_generated_and_a_text_cannot_be(model, tokenizer):
    task = task_of(generate=GenerationSettings(max_new_tokens=2), chat_template="alpaca")
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    ]
    scores = scores_of(task, model, [{"messages": turns}], tokenizer)
    assert set(scores) == {"loss", "perplexity", "token_accuracy"}
    with pytest.raises(UserError, match="task.generate needs a turn or a completion"):
        task.prepare([{"text": "Hi"}], tokenizer)


# ---------------------------------------------------------------- prediction


def test_prediction_needs_no_labels_and_scores_what_it_wrote(model, flat_model, tokenizer):
    task = task_of(generate=GenerationSettings(max_new_tokens=6))
    rows = [{"prompt": "Tom had a big"}, {"text": "Once upon a time, there was a little"}]
    samples = [sample for row in rows for sample in task.prepare([row], tokenizer, labelled=False)]
    for of_layout, layout in ((model, "padded"), (flat_model, "flat")):
        batch = batch_of(task, samples, tokenizer, layout=layout)
        assert "labels" not in batch
        first, second = task.predictions(task.outputs(of_layout, batch, tokenizer), batch, tokenizer)
        assert first["prediction"] == greedy(model, tokenizer, "Tom had a big", 6)
        assert second["prediction"] == greedy(model, tokenizer, rows[1]["text"], 6)
        prompt = tokenizer("Tom had a big", return_tensors="pt")["input_ids"]
        ids = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=2)
        log_probabilities = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        scores = log_probabilities.gather(1, ids[0, 1:, None])[prompt.shape[1] - 1 :]
        assert first["score"] == pytest.approx(scores.mean().item(), rel=1e-4)


def test_a_long_prompt_keeps_its_end(tokenizer):
    (sample,) = task_of(max_length=8).prepare([{"text": STORIES[0]["text"]}], tokenizer, labelled=False)
    assert sample["input_ids"] == tokenizer(STORIES[0]["text"])["input_ids"][-8:]
    assert sample["note"] == "truncated"


def test_the_task_and_its_collator_go_to_other_processes(tokenizer):
    task = pickle.loads(pickle.dumps(task_of(chat_template="alpaca", generate=GenerationSettings())))
    row = {"instruction": "Hi", "output": "Yo"}
    samples = [{**sample, "row": 5} for sample in task.prepare([row], tokenizer)]
    collate = pickle.loads(pickle.dumps(task.collator(tokenizer, layout="flat", train=False)))
    assert collate(samples)["row"].tolist() == [5]
