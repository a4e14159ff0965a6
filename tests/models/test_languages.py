"""Languages of translation models: written, forced and started with as plain transformers does, and saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiny
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    M2M100Config,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
    T5Config,
)

from ftscale.run.predict import open_predictor

PIECES = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "\u2581": 4, "a": 5, "b": 6, "\u2581a": 7, "\u2581b": 8}
ROWS = [{"source": source, "target": target} for source, target in (("a b", "b a"), ("b b a", "a a b"), ("a", "b"))]
SIZES = {
    "d_model": 16,
    "max_position_embeddings": 40,
    "init_std": 0.5,
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
}


def m2m100_tokenizer(work: Path) -> M2M100Tokenizer:
    (work / "text.txt").write_text("a b\nb b a\na b b a\n" * 40)
    prefix = str(work / "spm")
    sentencepiece.SentencePieceTrainer.train(input=work / "text.txt", model_prefix=prefix, vocab_size=8, minloglevel=2)
    (work / "vocab.json").write_text(json.dumps(PIECES))
    return M2M100Tokenizer(vocab_file=str(work / "vocab.json"), spm_file=f"{prefix}.model")


FAMILIES: dict[str, tuple[Any, type, tuple[str, str], bool]] = {  # tokenizer, config, languages, code in front
    "nllb": (lambda _: NllbTokenizer(vocab=dict(PIECES), merges=[]), M2M100Config, ("deu_Latn", "fra_Latn"), True),
    "m2m100": (m2m100_tokenizer, M2M100Config, ("de", "fr"), True),
    "mbart": (lambda _: MBartTokenizer(vocab=[(p, 0.0) for p in PIECES]), MBartConfig, ("de_DE", "fr_XX"), False),
    "mbart50": (lambda _: MBart50Tokenizer(vocab=[(p, 0.0) for p in PIECES]), MBartConfig, ("de_DE", "fr_XX"), True),
}


def folder_of(name: str, work: Path) -> Path:
    """A tiny model of the family beside its tokenizer, which has no languages set."""
    make, config, _, _ = FAMILIES[name]
    tokenizer = make(work)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config(vocab_size=240, **SIZES))
    model.save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    return work / "base"


def translation(work: Path, model: Path, *, beams: int = 1, **languages: Any) -> Path:
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    generate = {"max_new_tokens": 6, "num_beams": beams}
    settings = {
        "task": {"name": "seq2seq", "generate": generate, **languages},
        "run_folder": str(work / "run"),
        "model": str(model),
        "data": {"train": str(work / "rows.jsonl"), "cache_dir": str(work / "cache")},
        "batch": {"global_size": 3},
        "train": {"max_steps": 1},
        "checkpoint": {"prove": "never"},
    }
    return tiny.write_run(work, settings)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_saved_folder_translates_by_plain_transformers_as_predict_does(tmp_path: Path, name: str):
    _, _, (source, target), in_front = FAMILIES[name]
    beams = 3 if name == "nllb" else 1
    languages = {"source_language": source, "target_language": target}
    outcome = tiny.command("train", translation(tmp_path, folder_of(name, tmp_path), beams=beams, **languages))
    assert outcome.code == 0, outcome.stderr
    shutil.rmtree(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run/model").eval()
    code = tokenizer.convert_tokens_to_ids(f"__{target}__" if name == "m2m100" else target)
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == (source, target)
    assert tokenizer(text_target="a b")["input_ids"][0 if in_front else -1] == code
    assert model.generation_config.forced_bos_token_id == (code if in_front else None)
    assert model.config.decoder_start_token_id == (2 if in_front else code)
    inputs = tokenizer([row["source"] for row in ROWS], padding=True, return_tensors="pt")
    options = {"max_new_tokens": 6, "num_beams": beams, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(**inputs, **options)
    assert set(found.sequences[:, 1 if in_front else 0].tolist()) == {code}
    beam = {"beam_indices": found.beam_indices} if beams > 1 else {}
    steps = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=beams == 1, **beam)
    rows = [{"source": row["source"], "_columns": {}} for row in ROWS]
    with open_predictor(tmp_path / "run") as predictor:
        answers = [answer.as_dict() for answer in predictor.answers(rows)]
    for answer, sequence, chances in zip(answers, found.sequences[:, 1:].tolist(), steps.tolist(), strict=True):
        length = sequence.index(2) + 1 if 2 in sequence else len(sequence)
        assert answer["prediction"] == tokenizer.decode(sequence, skip_special_tokens=True)
        assert answer["score"] == pytest.approx(sum(chances[:length]) / length, rel=1e-4)


def test_languages_are_asked_for_and_held_against_the_tokenizers_codes(tmp_path: Path):
    folder = folder_of("nllb", tmp_path)
    outcome = tiny.command("check", translation(tmp_path, folder, source_language="deu_latn"))
    assert outcome.code == 2
    said = outcome.stdout + outcome.stderr
    assert "task.source_language = 'deu_latn' is not known; did you mean 'deu_Latn'?" in said
    assert "task.target_language = null, and NllbTokenizer writes the code of a language" in said
    tokenizer = AutoTokenizer.from_pretrained(folder, src_lang="deu_Latn", tgt_lang="fra_Latn")
    tokenizer.save_pretrained(folder)  # files that name both need no settings
    assert tiny.command("check", translation(tmp_path, folder)).code == 0


def test_a_tokenizer_without_codes_takes_no_language(shared: Path, tmp_path: Path):
    T5Config(decoder_start_token_id=0).save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(shared / "weights/tokenizers/t5").save_pretrained(tmp_path / "t5")
    outcome = tiny.command("check", translation(tmp_path, tmp_path / "t5", target_language="fra_Latn"))
    assert outcome.code == 2
    said = outcome.stdout + outcome.stderr
    assert "task.target_language = 'fra_Latn' is for tokenizers that write the code of a language" in said


def test_a_decoder_without_a_start_is_told_and_the_advice_works(shared: Path, tmp_path: Path):
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32128)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(shared / "weights/tokenizers/t5").save_pretrained(tmp_path / "t5")
    file = translation(tmp_path, tmp_path / "t5")
    for command in ("check", "train"):
        outcome = tiny.command(command, file)
        assert outcome.code == 2
        assert "model.overrides: {decoder_start_token_id: 0}" in outcome.stdout + outcome.stderr
    outcome = tiny.command("train", file, "model.overrides={decoder_start_token_id: 0}")
    assert outcome.code == 0, outcome.stderr
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run/model")
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == 0


def test_generation_starts_as_training_does(shared: Path, tmp_path: Path):
    """A generation config with a start of its own: the two would differ."""
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
    GenerationConfig(decoder_start_token_id=7, eos_token_id=1, pad_token_id=0).save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(shared / "weights/tokenizers/t5").save_pretrained(tmp_path / "t5")
    assert tiny.command("train", translation(tmp_path, tmp_path / "t5")).code == 0
    assert GenerationConfig.from_pretrained(tmp_path / "run/model").decoder_start_token_id == 0
