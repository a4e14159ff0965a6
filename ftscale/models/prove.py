"""Proof of a saved model: a fresh process without ftscale loads it and must answer as the trained one did."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.base.tensor_files import load_tensors

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Largest difference of a logit, as a share of the largest logit: kernels round differently, no more."""
QUANTIZED_TOLERANCE = 0.1
"""Of 4-bit and 8-bit bases: bitsandbytes multiplies by other kernels in inference than in training."""
LAUNCHERS = (
    "RANK",
    "LOCAL_",
    "WORLD_SIZE",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "SLURM_",
    "PMI",
)
"""Beginnings of environment variables by which a process takes itself for a part of a group."""
FOLDERS = {
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_MODULES_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "PYTHONPATH",
    "TRANSFORMERS_CACHE",
    "XDG_CACHE_HOME",
}
"""Environment variables that name folders."""
SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()  # in 3.10 the empty working folder has to do alone


@dataclass(frozen=True)
class Proof:
    """What the fresh process found."""

    largest_difference: float
    """Of a logit, as a share of the largest logit."""
    tolerance: float
    adapter_change: float | None
    """Largest change of a logit by the adapter, as a share of the largest logit; None = no adapter."""
    padding_change: float | None = None
    """Largest change of a logit of the shortest row by the longer ones beside it; None = nothing was padded."""


def prove_saved(
    folder: Path,
    inputs: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    auto_class: str,
    dtype: torch.dtype,
    device: torch.device,
    quantized: bool,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Proof:
    """Load `folder` in a fresh process and compare its outputs.

    `inputs`: of the model's forward, with (samples, ...) tensors; `expected`: every floating output of the trained
    model for them, by its name, in float32.
    `trust_remote_code`, `allow_pickle`: as the run's own configuration says of the model that it began with.
    Raises RuntimeError: the folder does not load, or answers otherwise; UserError: an adapter that changes nothing.
    """
    name = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="ftscale-proof-") as made:
        work = Path(made)
        content = io.BytesIO()  # torch's own writer does not say why a file cannot be written
        torch.save({key: value.cpu() for key, value in inputs.items()}, content)
        (work / "inputs.pt").write_bytes(content.getvalue())
        request = {
            "auto_class": auto_class,
            "dtype": name,
            "device": str(device),
            "trust_remote_code": trust_remote_code,
            "allow_pickle": allow_pickle,
        }
        (work / "request.json").write_text(json.dumps(request))
        program = Path(__file__).with_name("reload.py").read_text()  # by -c: no folder of ours on its path
        environment = _environment()
        environment["HF_HUB_OFFLINE"] = "1"  # the base was loaded by this run: it is here
        environment["TORCHDYNAMO_DISABLE"] = "1"  # one batch is computed sooner than torch's compiler is imported
        done = fresh_python(program, str(folder.resolve()), made, environment=environment)
        if done.returncode < 0:
            raise RuntimeError(
                f"the saved model in {folder} is not proved: the fresh process that loads it was ended by "
                f"{signal.Signals(-done.returncode).name}{_likely_cause(-done.returncode)}. The checkpoints are good; "
                "resume to save it again."
            )
        if done.returncode:
            raise RuntimeError(f"the saved model in {folder} does not load in a fresh process:\n{done.stderr[-4000:]}")
        outputs = load_tensors(work / "outputs.pt")
    found, without = outputs["with"], outputs.get("without")
    if found.keys() != expected.keys():
        raise RuntimeError(
            f"the saved model in {folder} gives other outputs ({', '.join(sorted(found))}) than the trained one "
            f"({', '.join(sorted(expected))}). The checkpoints are good; resume to save it again."
        )
    change = None
    if without is not None:
        change = max(_difference(_own_positions(found[name], without[name]), without[name]) for name in without)
    differences = {name: _difference(found[name], expected[name]) for name in expected}
    worst = max(differences, key=lambda name: differences[name])
    proof = Proof(
        largest_difference=differences[worst],
        tolerance=QUANTIZED_TOLERANCE if quantized else TOLERANCES[name],
        adapter_change=change,
        padding_change=_padding_change(outputs),
    )
    if proof.adapter_change == 0:
        raise UserError(
            f"the adapter in {folder} is empty or changes nothing: the base model alone gives the same outputs. Likely "
            "causes: optimizer.lr too small for train.precision, so few steps that nothing moved, or target_modules "
            "that this model does not use."
        )
    if not proof.largest_difference <= proof.tolerance:
        raise RuntimeError(
            f"the saved model in {folder} answers otherwise than the trained one: {worst} differ by "
            f"{proof.largest_difference:.3g} of the largest, more than {proof.tolerance}. The checkpoints are good; "
            "resume to save it again."
        )
    _check_padding(proof, outputs["pads"], folder)
    return proof


def _padding_change(outputs: Mapping[str, Tensor]) -> float | None:
    if "alone" not in outputs:
        return None
    change = (outputs["alone"] - outputs["beside"]).abs().max()
    largest = outputs["with"][outputs["scores"]].abs().max()
    return float(change / largest.clamp(min=1e-6))


def _check_padding(proof: Proof, pads: tuple[int | None, int | None] | None, folder: Path) -> None:
    """A row must have the scores that it has alone; a few models (ConvBERT, Nystromformer) mix padding in by design."""
    if proof.padding_change is None or proof.padding_change <= proof.tolerance:
        return
    text = (
        f"the saved model in {folder} scores a row otherwise beside a longer one than alone: logits differ by "
        f"{proof.padding_change:.3g} of the largest, more than {proof.tolerance}"
    )
    if pads is not None and pads[0] != pads[1]:
        raise RuntimeError(f"{text}; its config has pad_token_id = {pads[0]}, its tokenizer pads with {pads[1]}.")
    log.warning("%s; the model mixes padding into its scores, so compare predictions of equal batches alone", text)


def _environment() -> dict[str, str]:
    """What the fresh process has: nothing of a launcher, and no folder that is named by its way from this one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    for name in FOLDERS & kept.keys():
        kept[name] = os.pathsep.join(os.path.abspath(part) for part in kept[name].split(os.pathsep) if part)
    return kept


def fresh_python(program: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python process of its own, with this environment alone, in an empty folder of its own.

    So nothing of the working folder is imported, which Python's -c looks into before its own library.
    """
    with tempfile.TemporaryDirectory(prefix="ftscale-empty-") as empty:
        return subprocess.run(
            [sys.executable, *SAFE_PATH, "-c", program, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=empty,
            stdin=subprocess.DEVNULL,
            check=False,
            start_new_session=True,  # a signal to the run's group asks the run, which waits for this
        )


def _likely_cause(number: int) -> str:
    return ", by which the system frees memory" if number == signal.SIGKILL else ""


def _own_positions(found: Tensor, without: Tensor) -> Tensor:
    """A learned prompt adds positions before those of the sample."""
    return found[:, -without.shape[1] :] if found.ndim == without.ndim == 3 else found


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
