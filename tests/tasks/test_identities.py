"""The contract of embeddings over images: a user's own task with a tiny vision model, by the oracle of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sentence_transformers.sentence_transformer import losses
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTImageProcessorPil, ViTModel

PEOPLE, IMAGES = 4, 4


def write_images(folder: Path) -> Path:
    """Folders of identities: each a color, with noise."""
    random = np.random.default_rng(0)
    for person in range(PEOPLE):
        base = random.integers(60, 200, (1, 1, 3))
        (folder / f"person-{person}").mkdir(parents=True)
        for number in range(IMAGES):
            pixels = (base + random.integers(-50, 50, (24, 24, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"person-{person}/{number}.png")
    return folder


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    images = {"path": str(write_images(tmp_path / "images")), "format": "image_folder"}
    values = tiny.settings(
        shared,
        tmp_path,
        task={"file": str(Path(__file__).with_name("identities.py")), "name": "identities"},
        model=str(tmp_path / "vit"),
        data={"train": images, "eval": images, "cache_dir": str(tmp_path / "cache")},
        batch={"global_size": PEOPLE * IMAGES},
        train={"max_steps": 4},
    )
    return tiny.write_run(tmp_path, values)


def train(file: Path, *settings: str) -> list[dict[str, Any]]:
    done = tiny.command("train", file, *settings)
    assert done.code == 0, done.stderr
    return tiny.metrics(file.parent / settings[-1].partition("=")[2])


def test_images_of_an_identity_are_compared_over_the_global_batch(run: Path, tmp_path: Path):
    lines = {}
    for size in (PEOPLE * IMAGES, 3):
        folder = tmp_path / f"run-{size}"
        lines[size] = train(run, f"batch.micro_size={size}", f"run_folder={folder}")
    whole, cut = ([line["loss"] for line in of_run if line["kind"] == "train"] for of_run in lines.values())
    assert cut == pytest.approx(whole, rel=1e-5)
    assert whole[-1] < whole[0]

    model, processor = (kind.from_pretrained(tmp_path / "vit") for kind in (AutoModel, AutoImageProcessor))
    files = sorted((tmp_path / "images").glob("*/*.png"))
    pixels = processor([Image.open(file) for file in files], return_tensors="pt")
    with torch.no_grad():
        vectors = model(**pixels).last_hidden_state.mean(dim=1)
    cosine = losses.BatchHardTripletLossDistanceFunction.cosine_distance
    theirs = losses.BatchHardTripletLoss(None, cosine, margin=0.5)
    labels = torch.arange(PEOPLE).repeat_interleave(IMAGES)
    assert whole[0] == pytest.approx(float(theirs.batch_hard_triplet_loss(labels, vectors)), rel=1e-4)

    scores = [line for line in lines[3] if line["kind"] == "eval"][-1]
    answer = tiny.command("predict", tmp_path / "run-3", tmp_path / "images", "--trust-remote-code")
    assert answer.code == 0, answer.stderr
    found = np.array([json.loads(line)["prediction"] for line in answer.stdout.splitlines()])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    near = found @ found.T - 2 * np.eye(len(found))
    assert scores["recall@1"] == pytest.approx((labels[near.argmax(axis=1)] == labels).float().mean().item())
