"""Published figures of memory, on paper and through `ftscale plan`."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan.worlds import config_of, llama, run_of

from ftscale.config import Config
from ftscale.config.strategies import STRATEGIES
from ftscale.plan import plan_run
from ftscale.plan.dry_run import DryStep, Sizes
from ftscale.plan.memory import forecast_memory

GB = 1e9
RUN = {
    "task": "causal_lm",
    "run_folder": "run",
    "model": "m",
    "data": {"train": "rows.jsonl"},
    "train": {"precision": "bf16"},
}


def states_gb(parameters: float, strategy: str, world_size: int) -> float:
    """Weights, gradients and optimizer of a device when all gradients are there, bf16 and AdamW, in GB."""
    sizes = Sizes(parameters, 2 * parameters, parameters, 2 * parameters, 0, 0, 1, 0, 1, 0)
    moment = {"weights": 2 * parameters, "gradients": 2 * parameters, "activations": 1e12, "logits": 0.0}
    step = DryStep([moment], 0.0, "flat", sizes)
    memory = forecast_memory(
        Config.model_validate(RUN), step, strategy=STRATEGIES[strategy], world_size=world_size, on_gpu=True
    )
    return sum(memory.kinds[kind] for kind in ("weights", "gradients", "optimizer")) / GB


def test_seven_billion_weights_take_sixteen_bytes_each():
    """Mixed precision and Adam: 2 + 2 + 4 + 4 + 4 bytes (ZeRO, arXiv:1910.02054, section 3.1)."""
    assert states_gb(7e9, "single", 1) / 7 == pytest.approx(16, rel=0.002)


@pytest.mark.parametrize(("strategy", "published"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_the_figures_of_the_zero_paper(strategy: str, published: float):
    """7.5 B on 64 devices, arXiv:1910.02054, figure 1."""
    assert states_gb(7.5e9, strategy, 64) == pytest.approx(published, abs=0.1)


@pytest.mark.campaign
def test_a_65_b_model_fits_one_card_of_48_gb_by_qlora(shared: Path, tmp_path: Path):
    """arXiv:2305.14314: a 65 B model fine-tuned on a single 48 GB GPU (batch 1, rank 64, all linear layers)."""
    model = llama("65b", tmp_path / "65b", shared)
    values = run_of(
        model,
        tmp_path,
        model={"name": str(model), "quantization": "nf4"},
        adapter={"method": "lora", "r": 64, "target_modules": "all-linear"},
        optimizer={"name": "paged_adamw_8bit"},
        train={"precision": "bf16", "epochs": 1, "activation_checkpointing": True},
    )
    plan = plan_run(config_of(values), gpu="l40s", compare=False)
    assert plan.fits
    assert 65e9 < plan.step.sizes.elements < 67e9
    assert 36 < plan.memory.total / GB < 48


def test_all_weights_of_a_7_b_model_do_not_fit_24_gb(shared: Path, tmp_path: Path):
    plan = plan_run(config_of(run_of(llama("7b", tmp_path / "7b", shared), tmp_path)), gpu="rtx4090", compare=False)
    assert not plan.fits
    assert plan.largest_micro_size == 0
    assert 6.6e9 < plan.step.sizes.elements < 6.8e9
    assert plan.memory.total > 16 * plan.step.sizes.elements
