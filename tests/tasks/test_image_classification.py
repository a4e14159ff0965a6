"""Image classification: images of every kind, sizes, augmentation and scores."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessorPil

from ftscale.base.errors import UserError
from ftscale.config.tasks.image_classification import AugmentationSettings, ImageClassificationSettings
from ftscale.modalities.augment import Augment
from ftscale.tasks.batch import Batch
from ftscale.tasks.image_classification import ImageClassification
from ftscale.tasks.rows import prepare_rows

LABELS = ("blue", "red")


def build(processor=None, **settings) -> ImageClassification:
    return ImageClassification(ImageClassificationSettings(**{"labels": LABELS, **settings}), processor)


def noise(seed: int = 0, *, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def collate(task: ImageClassification, rows: list[dict], *, train=False, epoch=0, first_row=0) -> Batch:
    samples = enumerate(task.prepare(rows), start=first_row)
    numbered = [replace(sample, number=number, epoch=epoch, seed=7) for number, sample in samples]
    return task.collate(numbered, layout="padded", train=train)


def pixels(*arguments, **options) -> torch.Tensor:
    return collate(*arguments, **options).inputs["pixel_values"]


@pytest.fixture
def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def test_a_path_bytes_an_image_and_an_undecoded_image_give_the_same_pixels(tmp_path: Path, processor):
    image = noise()
    path = tmp_path / "noise.png"
    image.save(path)
    forms = [
        str(path),
        encoded(image),
        image,
        {"bytes": encoded(image), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    batch = collate(build(processor), [{"image": form, "label": "red"} for form in forms])
    found = batch.inputs["pixel_values"]
    assert found.shape == (5, 3, 16, 16)
    assert batch.labels.tolist() == [1] * 5
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(found[0].numpy() - expected).max() < 1e-5


def test_samples_hold_the_path_or_the_encoded_bytes_and_no_pixels(tmp_path: Path):
    path = tmp_path / "noise.jpg"
    noise().save(path)
    samples = build().prepare([{"image": str(path), "label": "red"}, {"image": noise(), "label": "red"}])
    assert samples[0].inputs == {"image_path": str(path), "image_bytes": b""}
    assert samples[1].inputs["image_bytes"][1:4] == b"PNG"
    assert all(sample.cost == sample.targets == 1 for sample in samples)


def test_grey_palette_and_transparent_images_become_rgb(processor):
    for mode in ("1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr"):
        image = noise(size=(16, 16)).convert(mode)
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1) / 127.5 - 1
        found = pixels(build(processor), [{"image": image, "label": "red"}])
        assert np.abs(found[0].numpy() - expected).max() < 1e-5, mode


def test_a_photo_taken_sideways_is_turned_upright(processor):
    upright = noise(size=(16, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    buffer = io.BytesIO()
    upright.rotate(180).save(buffer, "PNG", exif=exif)
    forms = [encoded(upright), buffer.getvalue(), Image.open(buffer)]
    [found, *others] = pixels(build(processor), [{"image": form, "label": "red"} for form in forms])
    assert all(torch.equal(found, other) for other in others)


@pytest.mark.parametrize("content", [b"", b"no image at all", encoded(noise(size=(200, 200)))[:3000]])
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        build().prepare([{"image": str(path), "label": "red", "_where": "list.csv:4"}])


def test_a_cut_jpeg_a_missing_file_and_broken_bytes_are_named(tmp_path: Path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encoded(noise(size=(200, 200)), "JPEG")[:-500])
    for path in (cut, tmp_path / "missing.jpg"):
        with pytest.raises(UserError, match=rf"{path.name}: not a readable image"):
            build().prepare([{"image": str(path), "label": "red"}])
    with pytest.raises(UserError, match=r"x\.parquet:9: not a readable image"):
        build().prepare([{"image": b"garbage", "label": "red", "_where": "x.parquet:9"}])
    with pytest.raises(UserError, match=r"x\.parquet:9: image = 5 must be a path or the bytes"):
        build().prepare([{"image": 5, "label": "red", "_where": "x.parquet:9"}])


def test_unreadable_images_are_left_out_where_their_source_says_so(tmp_path: Path):
    noise().save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = ("good.png", "broken.png", "missing.png")
    rows = [{"image": str(tmp_path / name), "label": "red", "_drop": ("unreadable",)} for name in names]
    assert [sample.drop for sample in prepare_rows(build(), rows)] == ["", "unreadable", "unreadable"]
    assert [sample.drop for sample in prepare_rows(build(), rows, labelled=False)] == ["", "unreadable", "unreadable"]
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        build().prepare([{**row, "_drop": ("missing",)} for row in rows])
    with pytest.raises(UserError, match=r"has 480 pixels, and task\.max_pixels = 100"):  # it could be read
        build(max_pixels=100).prepare(rows)


def test_an_image_that_is_broken_after_preparation_is_named(tmp_path: Path, processor):
    path = tmp_path / "late.png"
    noise().save(path)
    task = build(processor)
    [sample] = task.prepare([{"image": str(path), "label": "red"}])
    path.write_bytes(b"overwritten")
    with pytest.raises(UserError, match=r"late\.png: not a readable image"):
        task.collate([sample], layout="padded", train=True)


def test_an_unknown_class_is_named():
    with pytest.raises(UserError, match=r"l\.csv:2: label = 'rad' is not known; did you mean 'red'\?"):
        build().prepare([{"image": noise(), "label": "rad", "_where": "l.csv:2"}])


def test_the_image_size_can_be_set_with_and_without_a_centre_crop(shared: Path, processor):
    rows = [{"image": noise(size=(60, 40)), "label": "red"}]
    assert pixels(build(processor, image_size=32), rows).shape == (1, 3, 32, 32)
    mobilenet = AutoImageProcessor.from_pretrained(shared / "weights/mobilenet_v1_0.25_224")
    assert pixels(build(mobilenet), rows).shape == (1, 3, 224, 224)
    small = pixels(build(mobilenet, image_size=56), rows)
    theirs = mobilenet(
        rows[0]["image"], size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, return_tensors="pt"
    )["pixel_values"]
    assert torch.equal(small, theirs)  # the same margin of 256 to 224


ALL_CHANGES = AugmentationSettings(crop=0.5, flip=True, color=0.4, rand_augment=2)


def test_augmentation_depends_on_row_and_epoch_and_not_on_the_batch(processor):
    task = build(processor, augment=ALL_CHANGES)
    rows = [{"image": noise(seed), "label": "red"} for seed in range(4)]
    state = torch.get_rng_state()
    whole = pixels(task, rows, train=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    half = pixels(task, rows[2:], train=True, first_row=2)
    assert torch.equal(whole[2:], half)
    again = pixels(task, rows, train=True, epoch=1)
    assert all(not torch.equal(one, other) for one, other in zip(whole, again, strict=True))


def test_evaluation_is_not_augmented(processor):
    rows = [{"image": noise(), "label": "red"}]
    plain, task = pixels(build(processor), rows), build(processor, augment=ALL_CHANGES)
    assert torch.equal(pixels(task, rows), plain)
    assert not torch.equal(pixels(task, rows, train=True), plain)


def changed(image: Image.Image, row: int, **settings) -> np.ndarray:
    augment = Augment(AugmentationSettings(**settings), size=(16, 16))
    return np.asarray(augment(image, seed=0, epoch=0, row=row)).astype(int)


def test_a_flip_mirrors_about_half_of_the_images_and_changes_nothing_else():
    image = noise()
    plain = np.asarray(image)
    results = [changed(image, row, flip=True) for row in range(40)]
    mirrored = sum(np.array_equal(result, plain[:, ::-1]) for result in results)
    kept = sum(np.array_equal(result, plain) for result in results)
    assert mirrored + kept == 40
    assert 10 <= mirrored <= 30


def test_a_crop_has_the_size_of_the_model_and_at_least_the_asked_share():
    image = Image.linear_gradient("L").convert("RGB")  # brightness tells the height, 0 to 255
    for row in range(20):
        result = changed(image, row, crop=0.5)
        assert result.shape == (16, 16, 3)
        heights = result[:, :, 0].max() - result[:, :, 0].min()
        assert heights >= 255 * 0.5 / (4 / 3) ** 0.5 * 0.85  # the flattest crop: half the area, ratio 4 to 3


def test_colour_jitter_keeps_shapes_and_rand_augment_changes_most_images():
    image = noise()
    assert not np.array_equal(changed(image, 0, color=0.5), np.asarray(image))
    different = sum(not np.array_equal(changed(image, row, rand_augment=3), np.asarray(image)) for row in range(20))
    assert different >= 15


def test_scores_hold_top_five_only_where_there_are_more_than_five_classes():
    labels = tuple("abcdefg")
    task = build(labels=labels)
    batch = Batch({}, torch.arange(2), torch.tensor([0, 6]))
    logits = torch.tensor([[2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    outputs = {"logits": logits, "losses": torch.tensor([1.0, 2.0])}
    evaluator = task.evaluator()
    evaluator.update(outputs, batch)
    scores = evaluator.compute()
    assert scores["accuracy"] == 0.0
    assert scores["top5_accuracy"] == 0.5
    assert scores["loss"] == pytest.approx(1.5)
    evaluator = build().evaluator()
    other = replace(batch, labels=torch.tensor([1, 0]))
    evaluator.update({"logits": logits[:, :2], "losses": outputs["losses"]}, other)
    scores = evaluator.compute()
    assert scores["accuracy"] == 1.0
    assert "top5_accuracy" not in scores


def test_a_real_network_has_the_loss_and_the_classes_it_has_without_ftscale(shared: Path):
    folder = shared / "weights/mobilenet_v1_0.25_224"
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    task = build(processor, labels=tuple(model.config.id2label.values()))
    rows = [{"image": noise(seed), "label": task.labels[seed]} for seed in range(2)]
    batch = collate(task, rows)
    theirs = model(**batch.inputs, labels=batch.labels)
    torch.testing.assert_close(task.loss(model, batch), {"loss": theirs.loss * 2})
    assert task.count(batch) == {"loss": 2}
    best = task.predictions(task.outputs(model, batch), batch)
    assert [row["prediction"] for row in best] == [model.config.id2label[int(i)] for i in theirs.logits.argmax(-1)]


def test_a_network_in_bfloat16_takes_the_pixels_and_trains(shared: Path):
    folder = shared / "weights/mobilenet_v1_0.25_224"
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    task = build(processor, labels=tuple(model.config.id2label.values()))
    batch = collate(task, [{"image": noise(seed), "label": task.labels[seed]} for seed in range(2)])
    exact = task.loss(model, batch)["loss"].item()
    loss = task.loss(model.bfloat16(), batch)["loss"]
    assert loss.item() == pytest.approx(exact, rel=0.1)
    loss.backward()
    assert model.classifier.weight.grad.dtype == torch.bfloat16
    assert task.outputs(model, batch)["logits"].dtype == torch.float32
