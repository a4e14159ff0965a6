"""All weights under every strategy: real DeepSpeed on two processes goes the way of one plain process."""

from __future__ import annotations

import math
from pathlib import Path

import needs
import pytest
import torch
from safetensors.torch import load_file
from strategies import jobs
from strategies.jobs import HALF, STEPS, Jobs

from ftscale.train.manifest import complete_checkpoints

pytestmark = pytest.mark.slow

ZERO = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
SHARED_OUT = ("ddp", *ZERO)
THREE = ("ddp", "zero2", "zero3")
TWO = THREE if needs.ALL else ("ddp", "zero3")
SEVERAL = SHARED_OUT if needs.ALL else TWO
"""Where it is the loop's work and not the strategy's: one strategy of each kind, all of them in the campaign."""
RECOMPUTED = ("zero3", *["ddp"] * needs.ALL)
WORSE = TWO if needs.ALL else ("zero3",)
FEW = ((1, "ddp"), (3, "zero2"), (1, "zero3"), *[(3, "ddp"), (1, "zero2"), (3, "zero3")] * needs.ALL)
"""Samples of a step, fewer than ranks or than ranks have micro-batches, and a strategy."""
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
OPTIMIZERS = {  # settings, and the one of ZeRO's stages that the optimizer is tried under
    "sgd": (MOMENTUM, "zero1"),
    "lion_8bit": ({"lr": 0.001}, "zero2"),
}
if needs.ALL:
    OPTIMIZERS |= {
        "ademamix": ({"lr": 0.002}, "zero3"),
        "lion": ({"lr": 0.001}, "zero2"),
        "sgd_8bit": (MOMENTUM, "zero2"),
        "lion_8bit": ({"lr": 0.001}, "zero3"),
        "ademamix_8bit": ({"lr": 0.002}, "zero1"),
    }


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every run, made in two launches: one process, and two."""
    work = tmp_path_factory.mktemp("strategies")
    runs = Jobs(work)
    add = runs.add
    captions = jobs.captions(shared, work)
    text = captions["data"]

    add("captions-single", captions, strategy="single", processes=1, resume_from=HALF)
    unclipped = captions | {"train": {"max_steps": STEPS, "max_grad_norm": 0}}
    add("unclipped-single", unclipped, strategy="single", processes=1)
    recomputed = captions | {"train": {**captions["train"], "activation_checkpointing": True}}
    rising = jobs.captions(
        shared,
        work,
        data={**text, "test": text["eval"]},
        optimizer={"name": "adamw", "lr": 0.06, "eps": 1e-3},
        schedule={"name": "constant_with_warmup", "warmup_steps": 4},
        train={"max_steps": 5, "max_grad_norm": 0},
        evaluation={"every": 1},
    )
    proved = captions | {"checkpoint": {**captions["checkpoint"], "prove": "final"}}
    for strategy in SHARED_OUT:
        config = proved if strategy in SEVERAL else captions
        add(f"captions-{strategy}", config, strategy=strategy, resume_from=HALF)
    for strategy in SEVERAL:
        add(f"rising-{strategy}", rising, strategy=strategy)
    add("rising-single", rising, strategy="single", processes=1)
    worse = rising | {
        "optimizer": {"name": "sgd", "lr": 5.0},
        "schedule": {"name": "constant"},
        "train": {"max_steps": 1, "max_grad_norm": 0},
        "evaluation": {"before": True},
    }
    for strategy in WORSE:
        add(f"worse-{strategy}", worse, strategy=strategy)
    for strategy in RECOMPUTED:
        add(f"recomputed-{strategy}", recomputed, strategy=strategy)

    bf16 = proved | {"train": {**captions["train"], "precision": "bf16"}}
    for strategy in TWO:
        add(f"bf16-{strategy}", bf16, strategy=strategy, resume_from=HALF)

    for optimizer, (settings, strategy) in OPTIMIZERS.items():
        config = captions | {"optimizer": {"name": optimizer, **settings}}
        add(f"{optimizer}-single", config, strategy="single", processes=1)
        add(f"{optimizer}-{strategy}", config, strategy=strategy)
    eight_bits = jobs.captions(shared, work, optimizer={"name": "adamw_8bit", "lr": 0.002})
    skipping = jobs.regression(shared, work, labels={18: 1e30}, guard={"policy": "skip"})
    add("skipping-single", skipping, strategy="single", processes=1)
    for strategy in SEVERAL:
        add(f"skipping-{strategy}", skipping, strategy=strategy)
    add("8bit-single", eight_bits, strategy="single", processes=1)
    for strategy in ("zero3", *["zero2"] * needs.ALL):
        add(f"8bit-{strategy}", eight_bits, strategy=strategy, resume_from=HALF)

    for size, strategy in FEW:
        few = jobs.captions(shared, work, batch={"global_size": size, "micro_size": 1})
        add(f"few-{size}-single", few, strategy="single", processes=1)
        add(f"few-{size}-{strategy}", few, strategy=strategy)

    reviews, answers = jobs.reviews(shared, work), jobs.answers(shared, work)
    frozen = jobs.digits(shared, work, trainable={"scope": "head"})
    for name, config, strategies in (
        ("reviews", reviews, ("ddp", "zero3")),
        ("answers", answers, ("ddp", "zero3")),
        ("frozen-digits", frozen, TWO),
    ):
        add(f"{name}-single", config, strategy="single", processes=1)
        for strategy in strategies:
            add(f"{name}-{strategy}", config, strategy=strategy)
    for strategy in TWO:
        add(f"digits-{strategy}", jobs.digits(shared, work), strategy=strategy)

    runs.run()
    return runs.folders


# ---------------------------------------------------------------- one number


@pytest.mark.parametrize("strategy", ZERO)
def test_zero_is_a_deepspeed_engine(done: dict[str, Path], strategy: str):
    assert jobs.seen(done[f"captions-{strategy}"])["kind"] == "DeepSpeedEngine"


def test_ddp_is_distributed_data_parallel(done: dict[str, Path]):
    assert jobs.seen(done["captions-ddp"])["kind"] == "DistributedDataParallel"


@pytest.mark.parametrize("strategy", SHARED_OUT)
def test_losses_and_gradient_norms_are_those_of_one_process(done: dict[str, Path], strategy: str):
    single, other = done["captions-single"], done[f"captions-{strategy}"]
    assert len(jobs.losses(other)) == STEPS
    assert jobs.losses(other) == pytest.approx(jobs.losses(single), rel=1e-5)
    assert jobs.grad_norms(other) == pytest.approx(jobs.grad_norms(single), rel=1e-5)


def test_clipping_was_active_in_these_runs(done: dict[str, Path]):
    single = done["captions-single"]
    assert min(jobs.grad_norms(single)) > jobs.MAX_GRAD_NORM
    last, unclipped = jobs.losses(single)[-1], jobs.losses(done["unclipped-single"])[-1]
    assert abs(last - unclipped) > 1e-3 * last


@pytest.mark.parametrize("strategy", SHARED_OUT)
def test_evaluation_on_two_ranks_gives_the_metrics_of_one(done: dict[str, Path], strategy: str):
    def evaluations(name: str) -> list[float]:
        lines = [line for line in jobs.lines(done[name]) if line["kind"] == "eval"]
        assert [line["step"] for line in lines] == [HALF, STEPS]
        return [line[metric] for line in lines for metric in ("loss", "perplexity", "token_accuracy")]

    assert evaluations(f"captions-{strategy}") == pytest.approx(evaluations("captions-single"), rel=1e-5)


@pytest.mark.parametrize("strategy", SHARED_OUT)
def test_a_resumed_second_half_is_the_uninterrupted_one(done: dict[str, Path], strategy: str):
    whole = done[f"captions-{strategy}"]
    half = whole.with_name(whole.name + "-resumed")
    assert [item.step for item in complete_checkpoints(whole / "checkpoints")] == [HALF, STEPS]
    assert jobs.losses(half) == pytest.approx(jobs.losses(whole), rel=1e-6)
    assert jobs.grad_norms(half) == pytest.approx(jobs.grad_norms(whole), rel=1e-5)
    assert jobs.result(half)["metrics"]["loss"] == pytest.approx(jobs.result(whole)["metrics"]["loss"], rel=1e-6)


@pytest.mark.parametrize("strategy", RECOMPUTED)
def test_recomputed_activations_change_no_loss(done: dict[str, Path], strategy: str):
    assert jobs.losses(done[f"recomputed-{strategy}"]) == pytest.approx(jobs.losses(done["captions-single"]), rel=1e-5)


@pytest.mark.parametrize(("size", "strategy"), FEW)
def test_ranks_without_a_sample_change_nothing(done: dict[str, Path], strategy: str, size: int):
    single, other = done[f"few-{size}-single"], done[f"few-{size}-{strategy}"]
    assert jobs.losses(other) == pytest.approx(jobs.losses(single), rel=1e-5)
    assert jobs.grad_norms(other) == pytest.approx(jobs.grad_norms(single), rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_classification_is_that_of_one_process(done: dict[str, Path], strategy: str):
    single, other = done["reviews-single"], done[f"reviews-{strategy}"]
    assert jobs.losses(other) == pytest.approx(jobs.losses(single), rel=1e-5)
    assert jobs.result(other)["metrics"] == pytest.approx(jobs.result(single)["metrics"], rel=1e-4)


# ---------------------------------------------------------------- precision and optimizers


@pytest.mark.parametrize("strategy", TWO)
def test_bf16_stays_near_fp32_and_resumes(done: dict[str, Path], strategy: str):
    whole = done[f"bf16-{strategy}"]
    assert jobs.losses(whole) == pytest.approx(jobs.losses(done["captions-single"]), rel=0.01)
    assert jobs.losses(whole) != pytest.approx(jobs.losses(done["captions-single"]), rel=1e-5)
    assert jobs.losses(whole.with_name(whole.name + "-resumed")) == pytest.approx(jobs.losses(whole), rel=1e-6)
    assert _load(whole).dtype == torch.bfloat16
    # a norm in bfloat16 would come in steps of 1/16 here
    assert jobs.grad_norms(whole)[0] == pytest.approx(jobs.grad_norms(done["captions-single"])[0], rel=0.003)
    assert jobs.grad_norms(whole)[0] * 16 % 1


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "8bit" not in name])
def test_an_optimizer_by_element_goes_the_way_of_one_process(done: dict[str, Path], name: str):
    other = done[f"{name}-{OPTIMIZERS[name][1]}"]
    assert jobs.losses(other) == pytest.approx(jobs.losses(done[f"{name}-single"]), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "8bit" in name])
def test_an_8bit_optimizer_stays_near_one_process(done: dict[str, Path], name: str):
    other = done[f"{name}-{OPTIMIZERS[name][1]}"]
    assert jobs.losses(other) == pytest.approx(jobs.losses(done[f"{name}-single"]), rel=1e-3)


@pytest.mark.parametrize("strategy", ["zero3", *["zero2"] * needs.ALL])
def test_8bit_adam_goes_its_way_under_zero(done: dict[str, Path], strategy: str):
    whole = done[f"8bit-{strategy}"]
    # states are quantised in blocks, and a rank's share of the weights is cut into other blocks than the whole
    assert jobs.losses(whole) == pytest.approx(jobs.losses(done["8bit-single"]), rel=0.01)
    assert jobs.losses(whole.with_name(whole.name + "-resumed")) == pytest.approx(jobs.losses(whole), rel=1e-6)
    kinds = {value.dtype for value in jobs.tensors(_optimizer_states(whole))}
    assert torch.uint8 in kinds


@pytest.mark.parametrize("strategy", SEVERAL)
def test_nothing_of_a_batch_that_is_left_out_stays_behind(done: dict[str, Path], strategy: str):
    single, other = jobs.losses(done["skipping-single"]), jobs.losses(done[f"skipping-{strategy}"])
    assert [not math.isfinite(float(loss)) for loss in other] == [step == 5 for step in range(1, 9)]
    finite = [(one, two) for one, two in zip(other, single, strict=True) if math.isfinite(float(one))]
    assert [one for one, _ in finite] == pytest.approx([two for _, two in finite], rel=1e-4)


# ---------------------------------------------------------------- models that come out


@pytest.mark.parametrize("strategy", SHARED_OUT)
def test_the_saved_model_loads_in_transformers_and_answers_as_the_trained_one(
    done: dict[str, Path], shared: Path, strategy: str
):
    folder = done[f"captions-{strategy}"]
    assert _caption_loss(folder, shared) == pytest.approx(jobs.result(folder)["metrics"]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", [*(f"captions-{name}" for name in SEVERAL), *(f"bf16-{name}" for name in TWO)])
def test_a_fresh_process_proves_the_saved_model(done: dict[str, Path], name: str):
    [event] = [line for line in jobs.lines(done[name]) if line.get("event") == "proved"]
    assert event["largest_difference"] <= event["tolerance"] == (0.05 if name.startswith("bf16") else 1e-3)


@pytest.mark.parametrize("strategy", ["single", *SEVERAL])
def test_a_run_ends_with_the_weights_of_its_best_evaluation(done: dict[str, Path], strategy: str):
    folder = done[f"rising-{strategy}"]
    found = [line["loss"] for line in jobs.lines(folder) if line["kind"] == "eval" and "loss" in line]
    best = jobs.result(folder)["best"]
    assert best["value"] == min(found)
    assert best["step"] == 1 + found.index(min(found)) < 5
    assert found[-1] > 1.01 * min(found)
    assert jobs.result(folder)["metrics"]["test/loss"] == pytest.approx(min(found), rel=1e-6)


@pytest.mark.parametrize("strategy", WORSE)
def test_the_best_weights_can_be_those_before_the_first_step(done: dict[str, Path], shared: Path, strategy: str):
    folder = done[f"worse-{strategy}"]
    assert jobs.result(folder)["best"]["step"] == 0
    before = load_file(shared / "weights/stories260K/model.safetensors")
    after = load_file(folder / "model/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_answers_written_on_two_ranks_score_as_on_one(done: dict[str, Path], strategy: str):
    single, other = (jobs.result(done[name])["metrics"] for name in ("answers-single", f"answers-{strategy}"))
    assert {"exact_match", "rougeL"} <= single.keys()
    assert single["rougeL"] > 0.1
    assert other == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("strategy", TWO)
def test_a_frozen_body_with_batch_norm_is_left_alone(done: dict[str, Path], shared: Path, strategy: str):
    single, other = done["frozen-digits-single"], done[f"frozen-digits-{strategy}"]
    assert jobs.losses(other) == pytest.approx(jobs.losses(single), rel=1e-5)
    before = load_file(shared / "weights/mobilenet_v1_0.25_224/model.safetensors")
    after = load_file(other / "model/model.safetensors")
    body = [name for name in before if not name.startswith("classifier")]
    assert sum("running_mean" in name for name in body) > 20
    assert all(torch.equal(after[name], before[name]) for name in body)
    assert after["classifier.weight"].shape[0] == 10


@pytest.mark.parametrize("strategy", TWO)
def test_batch_norm_statistics_are_saved_as_they_were_evaluated(done: dict[str, Path], shared: Path, strategy: str):
    from ftscale.run.evaluate import evaluate_run

    folder = done[f"digits-{strategy}"]
    before = load_file(shared / "weights/mobilenet_v1_0.25_224/model.safetensors")
    after = load_file(folder / "model/model.safetensors")
    assert all(not torch.equal(after[name], before[name]) for name in before if "running_mean" in name)
    assert evaluate_run(folder)["loss"] == pytest.approx(jobs.result(folder)["metrics"]["loss"], rel=1e-4)


# ---------------------------------------------------------------- helpers


def _load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto")


@torch.no_grad()
def _caption_loss(folder: Path, shared: Path) -> float:
    """Mean loss of the evaluated captions, by transformers alone, one caption at a time."""
    import gzip

    from transformers import AutoTokenizer

    model, tokenizer = _load(folder), AutoTokenizer.from_pretrained(folder / "model")
    with gzip.open(shared / "data/translation/multi30k_de-en/val.en.gz", "rt") as file:
        texts = [next(file).rstrip("\n") for _ in range(21)]
    total = count = 0.0
    for text in texts:
        ids = tokenizer(text).input_ids
        ids += [] if ids[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
        tokens = torch.tensor([ids])
        total += float(model(tokens, labels=tokens).loss) * (len(ids) - 1)
        count += len(ids) - 1
    return total / count


def _optimizer_states(folder: Path) -> list[dict]:
    last = complete_checkpoints(folder / "checkpoints")[-1].folder
    files = sorted((last / "deepspeed").glob("*optim_states.pt"))
    assert len(files) == 2
    return [torch.load(file, map_location="cpu", weights_only=False) for file in files]
