"""Language, length and memory to a model, and what fits where no plan can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan.worlds import config_of, llama, run_of

from ftscale.init import models
from ftscale.init.device import Machine, like
from ftscale.init.fit import fit_by_plan, fit_by_size
from ftscale.init.language import language_of
from ftscale.plan.devices import load_device

CPU = Machine(load_device(None), 1, "a processor")


def gpu(key: str, count: int = 1) -> Machine:
    return Machine(load_device(key), count, key)


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("the cat sat down and it was happy", True),
        ("Der Zug nach Rom fährt heute nicht, und das auch nicht mit dem Wagen", False),
        ("le train est en retard et je ne le vois pas dans la gare", False),
        ("el tren no llega por la tarde y los viajeros esperan", False),
        ("поезд опаздывает", False),
        ("列車が遅れています", False),
        ("name[Alimentum], area[city centre], familyFriendly[no]", True),
        ("", True),
    ],
)
def test_english_is_told_from_other_languages(text: str, english: bool):
    assert language_of([text]).is_english == english


def test_a_reason_has_its_number():
    assert language_of(["the cat and the dog", "il"]).why == "50% of the words are common English ones"
    assert language_of(["да yes"]).why == "40% of the letters are not Latin"


def test_the_model_is_chosen_by_language_length_and_memory():
    short, long = {"english": True, "tokens": 60.0}, {"english": True, "tokens": 900.0}
    assert models.encoder(CPU, **short) is models.MINILM
    assert models.encoder(gpu("h100"), **short) is models.MODERNBERT
    assert models.encoder(CPU, **long) is models.MODERNBERT
    assert models.encoder(CPU, english=False, tokens=900) is models.MMBERT
    assert models.cased_encoder(CPU, english=False, tokens=60) is models.CASED_MANY
    chats = {key: models.language_model(gpu(key), english=True, chat=True) for key in ("t4", "l4", "h100")}
    assert chats == {"t4": models.QWEN_1B_CHAT, "l4": models.QWEN_7B_CHAT, "h100": models.QWEN_7B_CHAT}
    assert models.language_model(CPU, english=True, chat=True) is models.SMOL_CHAT
    assert models.language_model(CPU, english=True, chat=True, tools=True) is models.QWEN_CHAT
    assert models.language_model(CPU, english=False, chat=False) is models.QWEN
    translated = models.encoder_decoder(CPU, english=False, languages=("de", "en"))
    assert translated.name == "Helsinki-NLP/opus-mt-de-en"
    assert models.encoder_decoder(CPU, english=False, languages=("de", "fr")) is models.M2M100
    assert models.encoder_decoder(CPU, english=False, languages=None) is models.MT5


def test_without_its_files_a_model_fits_by_its_parameters():
    full = fit_by_size(models.QWEN_1B, gpu("h100"), may_adapt=True)
    assert (full.settings, full.adapts) == ({}, False)
    assert full.why.startswith("about 23.0 of 79.6 GiB beside activations, by its 1544 M parameters")  # 1543.7e6 x 16 B
    lora = fit_by_size(models.QWEN_7B, gpu("l4"), may_adapt=True)
    assert lora.adapts
    assert "model.quantization" not in lora.settings
    assert fit_by_size(models.QWEN_7B, gpu("t4"), may_adapt=True).settings["model.quantization"][0] == "nf4"


@pytest.mark.campaign
def test_a_plan_takes_lora_where_all_weights_do_not_fit(shared: Path, tmp_path: Path):
    config = config_of(run_of(llama("7b", tmp_path / "model", shared), tmp_path))
    lora = fit_by_plan(config, gpu("l4"))
    assert lora.adapts
    assert "model.quantization" not in lora.settings
    assert lora.settings["adapter.method"][1].startswith("all weights would take 1")  # 6.7e9 x 16 B = 100 GiB, and more
    assert "of 22.5 GiB of l4 by ftscale plan" in lora.why


@pytest.mark.parametrize(
    ("name", "memory_gib", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.5, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx4090"),
        ("Tesla T4", 14.6, "t4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA Something New", 48.0, "l40s"),
        ("NVIDIA GeForce RTX 2060", 6.0, "t4"),
    ],
)
def test_a_device_is_found_in_the_table_by_name_and_memory(name: str, memory_gib: float, key: str):
    assert like(name, memory_gib).key == key
