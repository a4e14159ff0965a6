"""Every shipped recipe parses, names the schema, and runs: a few steps offline, on small real models and data.

Those that are like another one run in the campaign.
"""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import needs
import pytest
import tiny

from ftscale.base.resources import resource
from ftscale.config.load import config_schema, load_config
from ftscale.config.stages import STAGES, stages_of

RECIPES = {path.stem: path for path in sorted(resource("launch", "recipes").glob("*.yaml"))}
STEPS = 2
ROWS = 64
FEW = 8  # test rows: too few for intervals, which take seconds
QUICK = {"train.max_steps": STEPS, "batch.global_size": 8}


@dataclass(frozen=True)
class Places:
    """Where the real data and weights lie, and where small models and files of the tests do."""

    shared: Path
    minilm: Path
    work: Path

    def data(self, path: str, **settings: Any) -> dict[str, Any]:
        """A source of ../shared: its first rows."""
        return {"path": str(self.shared / "data" / path), "limit": ROWS, **settings}

    def weights(self, name: str) -> str:
        return str(self.shared / "weights" / name)


Overrides = dict[str, Any]

TEXT_LABEL = {"header": False, "columns": {"text": 0, "label": 1}}


def ag_news(at: Places) -> Overrides:
    source = at.data("text_classification/ag_news_7k/train.csv", **TEXT_LABEL)
    return {
        "model": str(at.minilm),
        "data.train": source,
        "data.test": source | {"limit": FEW},
        "data.eval_ratio": 0.25,
    }


def alpaca_lora(at: Places) -> Overrides:
    rows = at.data("sft/llamafactory_demo/identity.json")  # short: 150,000 logits a token take their time
    return {"model": qwen2(at), "data.train": rows, "data.eval_ratio": 0.05, "batch.global_size": 4}


def banking77(at: Places) -> Overrides:
    # sorted by class: enough rows for some classes, and test rows of the first of them
    columns = {"columns": {"label": "category"}}
    return {
        "model": str(at.minilm),
        "data.train": at.data("text_classification/banking77/train.csv", **columns) | {"limit": 400},
        "data.test": at.data("text_classification/banking77/test.csv", **columns) | {"limit": FEW},
    }


def captions(at: Places) -> Overrides:
    return {
        "model": at.weights("stories260K"),
        "data.train": at.data("translation/multi30k_de-en/train.en.gz", format="text"),
        "data.eval": at.data("translation/multi30k_de-en/val.en.gz", format="text"),
        "schedule.warmup_steps": 1,
    }


def cifar10(at: Places) -> Overrides:
    return {
        "model.name": at.weights("mobilenet_v1_0.25_224"),
        "data.train": {"path": str(pictures(at) / "train")},
        "data.eval_ratio": 0.25,
        "data.test": {"path": str(pictures(at) / "test"), "limit": FEW},
    }


def full_zero3(at: Places) -> Overrides:
    rows = at.data("sft/llamafactory_demo/identity.json")
    return {"model": qwen2(at), "data.train": rows, "data.eval": rows | {"limit": 4}}


def go_emotions(at: Places) -> Overrides:
    rows = {"path": str(several_labels(at)), "columns": {"label": "labels"}}
    return {"model": bert(at), "data.train": rows, "data.eval": rows}


def gsm8k(at: Places) -> Overrides:
    columns = {"columns": {"prompt": "question", "completion": "answer"}}
    return {
        "model": at.weights("stories260K"),
        "data.train": at.data("math/gsm8k/train.jsonl", **columns),
        "data.test": at.data("math/gsm8k/test.jsonl", **columns) | {"limit": 4},
        "task.generate.max_new_tokens": 8,
    }


def help_desk(at: Places) -> Overrides:
    return {"model": str(at.minilm)}


def llama_qlora_zero2(at: Places) -> Overrides:
    rows = at.data("sft/llamafactory_demo/alpaca_en_demo.json")
    return {
        "model.name": str(llama3(at)),
        "data.train": rows,
        "data.eval": rows | {"limit": 8},
        "task.max_length": 256,
    }


def masked_lm(at: Places) -> Overrides:
    return {
        "model": str(at.minilm),
        "data.train": at.data("text_classification/banking77/train.csv"),
        "data.eval": at.data("text_classification/banking77/test.csv") | {"limit": FEW},
    }


def multi30k_translation(at: Places) -> Overrides:
    return {
        "model": t5(at),
        "data.train": at.data("translation/multi30k_de-en/train.{de,en}.gz", format="parallel"),
        "data.eval": at.data("translation/multi30k_de-en/val.{de,en}.gz", format="parallel") | {"limit": 8},
        "task.generate.max_new_tokens": 8,
    }


def msmarco_reranking(at: Places) -> Overrides:
    """Questions of SQuAD with their paragraph and the one before stand in for it."""
    document = json.loads((at.shared / "data/qa/squad_v1/test-v1.1.json").read_text())
    paragraphs = document["data"][0]["paragraphs"]
    rows = [
        {"query": asked["question"], "positive": part["context"], "negative": paragraphs[place - 1]["context"]}
        for place, part in enumerate(paragraphs)
        for asked in part["qas"]
    ]
    path = at.work / "reranking.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[:ROWS]))
    source = {"path": str(path), "columns": {"anchor": "query"}}
    return {"model": str(at.minilm), "data.train": source, "data.eval": source | {"limit": FEW}, "data.eval_ratio": 0.0}


def ncbi_disease(at: Places) -> Overrides:
    parts = {"train": "train", "eval": "devel", "test": "test"}
    files = {
        f"data.{part}": at.data(f"ner/ncbi_disease/{name}.tsv", format="conll", limit=24 if part != "train" else 200)
        for part, name in parts.items()
    }
    return {"model": str(at.minilm), **files}


def sick(at: Places, *, label: str) -> Overrides:
    columns = {"text": "sentence_A", "text_pair": "sentence_B", "label": label}
    parts = {"train": "train", "eval": "trial", "test": "test_annotated"}
    files = {
        f"data.{part}": at.data(f"text_pair/sick/SICK_{name}.txt", format="tsv", columns=columns)
        for part, name in parts.items()
    }
    return {"model": str(at.minilm), **files}


def squad(at: Places) -> Overrides:
    rows = {"rows": "data.paragraphs.qas"}
    return {
        "model": str(at.minilm),
        "data.train": at.data("qa/squad_v1/test-v1.1.json", **rows),
        "data.eval": at.data("qa/xquad_en/xquad.en.json", **rows) | {"limit": FEW},
    }


def squad_retrieval(at: Places) -> Overrides:
    found = squad(at)
    columns = {"columns": {"anchor": "question", "positive": "context"}}
    return {name: value if name == "model" else {**value, **columns} for name, value in found.items()}


def sst2(at: Places) -> Overrides:
    return {
        "model": str(at.minilm),
        "data.train": at.data("text_classification/sst2/train.tsv", **TEXT_LABEL),
        "data.eval": at.data("text_classification/sst2/dev.tsv", **TEXT_LABEL),
    }


def swag(at: Places) -> Overrides:
    """Balanced COPA stands in for it: columns of choices too."""
    items = ElementTree.parse(at.shared / "data/multiple_choice/balanced_copa/balacopa-dev-all.xml").getroot()[:ROWS]
    rows = [
        {name: item.findtext(name) for name in ("p", "a1", "a2")} | {"label": item.get("most-plausible-alternative")}
        for item in items
    ]
    path = at.work / "copa.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"path": str(path), "columns": {"question": "p", "choices": ["a1", "a2"]}}
    return {"model": str(at.minilm), "data.train": source, "data.eval": source | {"limit": FEW}}


def streamed_pretraining(at: Places) -> Overrides:
    return {
        "model": at.weights("stories260K"),
        "data.train": {"path": str(at.shared / "data/causal_text/tinyshakespeare/input.txt")},
        "task.max_length": 128,
        "schedule.warmup_steps": 1,
    }


OVERRIDES: dict[str, Callable[[Places], Overrides]] = {
    "ag_news": ag_news,
    "alpaca_lora": alpaca_lora,
    "banking77": banking77,
    "banking77_two_stages": banking77,
    "captions": captions,
    "cifar10_frozen": cifar10,
    "cifar10_full": cifar10,
    "full_zero3": full_zero3,
    "go_emotions": go_emotions,
    "gsm8k": gsm8k,
    "help_desk": help_desk,
    "llama_qlora_zero2": llama_qlora_zero2,
    "masked_lm": masked_lm,
    "msmarco_reranking": msmarco_reranking,
    "multi30k_translation": multi30k_translation,
    "ncbi_disease": ncbi_disease,
    "sick_entailment": lambda at: sick(at, label="entailment_judgment"),
    "sick_relatedness": lambda at: sick(at, label="relatedness_score"),
    "squad": squad,
    "squad_retrieval": squad_retrieval,
    "sst2": sst2,
    "streamed_pretraining": streamed_pretraining,
    "swag": swag,
}
LAUNCHED = {"full_zero3": "zero3", "llama_qlora_zero2": "zero2"}
"""Recipes for several processes, and the strategy of each."""

CAMPAIGN = (
    "ag_news",
    "banking77",
    "banking77_two_stages",
    "cifar10_frozen",
    "full_zero3",
    "help_desk",
    "sick_entailment",
    "sst2",
)
"""Recipes that run in the campaign alone: another one has the same task, method and strategy."""

MOST_LOSS = {
    "llama_qlora_zero2": 25.0,  # the little Llama has never seen a special token, and hardly a capital
    "sick_relatedness": 25.0,  # squares of up to 5
}


def test_every_recipe_has_overrides_here():
    assert sorted(OVERRIDES) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_names_the_schema(name: str):
    first, about, *_ = RECIPES[name].read_text().splitlines()
    assert first == "# yaml-language-server: $schema=../ftscale.schema.json"
    assert about.startswith("# ")
    config = load_config(RECIPES[name])
    assert config.distributed.strategy == LAUNCHED.get(name)
    assert config.run_folder.startswith("runs/")


def test_run_folders_of_recipes_differ():
    folders = [load_config(path).run_folder for path in RECIPES.values()]
    assert len(set(folders)) == len(folders)


def test_the_shipped_schema_is_that_of_the_program():
    shipped = resource("launch", "ftscale.schema.json").read_text()
    current = json.dumps(config_schema(), indent=2) + "\n"
    assert shipped == current, "run: ftscale schema > launch/ftscale.schema.json"


@pytest.fixture(scope="session")
def at(shared: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(shared, minilm, tmp_path_factory.mktemp("recipes"))


def run_here(names: Iterable[str]) -> list[Any]:
    return [needs.in_campaign(name) if name in CAMPAIGN else name for name in names]


@pytest.mark.parametrize("name", run_here(name for name in RECIPES if name not in LAUNCHED))
def test_a_recipe_runs(name: str, at: Places, tmp_path: Path):
    outcome = tiny.command("train", RECIPES[name], *words(OVERRIDES[name](at), tmp_path))
    assert outcome.code == 0, outcome.stderr
    check_run(tmp_path / "run", name, processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", run_here(LAUNCHED))
def test_a_recipe_runs_under_its_strategy(name: str, at: Places, tmp_path: Path):
    outcome = tiny.forked("train", RECIPES[name], *words(OVERRIDES[name](at), tmp_path), processes=2)
    assert outcome.code == 0, outcome.stderr[-4000:]
    check_run(tmp_path / "run", name, processes=2)


def words(overrides: Overrides, tmp_path: Path) -> list[str]:
    """Settings as the command line takes them; JSON is YAML."""
    own = {"run_folder": str(tmp_path / "run"), "data.cache_dir": str(tmp_path / "cache")}
    return [f"{name}={json.dumps(value)}" for name, value in {**QUICK, **overrides, **own}.items()]


def check_run(folder: Path, name: str, *, processes: int) -> None:
    """Of a run of several stages, the last."""
    recipe = load_config(RECIPES[name])
    if stages := stages_of(recipe):
        recipe, folder = stages[-1].config, folder / STAGES / stages[-1].name
    config = load_config(folder / "config.yaml")
    kept = ("adapter", "trainable", "head", "optimizer")
    assert {part: getattr(config, part) for part in kept} == {part: getattr(recipe, part) for part in kept}
    assert config.train.precision == recipe.train.precision
    steps = tiny.steps(folder)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    most = MOST_LOSS.get(name, 12.5)  # somewhat more than log(vocabulary): 11.9 for Qwen2's
    assert all(0 < step["loss"] < most and 0 < step["grad_norm"] < 100 for step in steps), steps
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", STEPS)
    scored = [line for line in tiny.metrics(folder) if line["kind"] == "eval"]
    assert bool(scored) == bool(recipe.data.eval or recipe.data.eval_ratio or recipe.data.test)
    if recipe.data.test:
        assert math.isfinite(result["metrics"]["test/loss"])
    about = json.loads((folder / "run.json").read_text())
    assert (about["world_size"], about["strategy"]) == (processes, LAUNCHED.get(name, "single"))
    weights = "adapter_model.safetensors" if recipe.adapter.method != "none" else "model.safetensors"
    assert (folder / "model" / weights).is_file()


# ---------------------------------------------------------------- small models and files


def bert(at: Places) -> dict[str, Any]:
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return random_model(at, "bert-base-uncased", lambda: BertConfig(**sizes))


def qwen2(at: Places) -> dict[str, Any]:
    from transformers import Qwen2Config

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return random_model(at, "qwen2", lambda: Qwen2Config(num_key_value_heads=2, tie_word_embeddings=True, **sizes))


def llama3(at: Places) -> Path:
    """The real 260 K Llama, and its tokenizer with the special tokens of Llama 3's chats."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = at.work / "llama3"
    if not folder.exists():
        model, tokenizer = (
            kind.from_pretrained(at.weights("stories260K")) for kind in (AutoModelForCausalLM, AutoTokenizer)
        )
        names = ("begin_of_text", "start_header_id", "end_header_id", "eot_id")
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for part in (model, tokenizer):
            part.save_pretrained(folder)
    return folder


def t5(at: Places) -> dict[str, Any]:
    from transformers import T5Config

    def config() -> T5Config:
        return T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)

    return random_model(at, "t5", config)


def random_model(at: Places, tokenizer: str, build: Callable[[], Any]) -> dict[str, Any]:
    """A real vocabulary, and a small config to make random weights of."""
    folder = at.work / tokenizer
    if not folder.exists():
        shutil.copytree(at.weights(f"tokenizers/{tokenizer}"), folder)
        build().save_pretrained(folder)
    return {"name": str(folder), "init": "random"}


def pictures(at: Places) -> Path:
    """8 training and 2 test images of each of the ten classes."""
    folder = at.work / "cifar10"
    if not folder.exists():
        with tarfile.open(at.shared / "data/image_classification/cifar10_subset.tar.gz") as archive:
            groups: dict[str, list[tarfile.TarInfo]] = {}
            for item in archive:
                if item.isfile():
                    groups.setdefault(item.name.rpartition("/")[0], []).append(item)
            few = [item for place, items in groups.items() for item in items[: 8 if "/train/" in place else 2]]
            archive.extractall(at.work, members=few, filter="data")
    return folder


def several_labels(at: Places) -> Path:
    """Real reviews with one, two or no labels each."""
    file = at.work / "several-labels.jsonl"
    if not file.exists():
        with open(at.shared / "data/text_classification/sst2/train.tsv") as lines:
            rows = [line.rstrip("\n").split("\t") for line in islice(lines, ROWS)]
        found = [
            {"text": text, "labels": ["praise"] * (label == "1") + ["long"] * (len(text.split()) > 15)}
            for text, label in rows
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file
