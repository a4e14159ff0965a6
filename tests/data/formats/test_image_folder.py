"""Image folders, and tables of image paths."""

from __future__ import annotations

import os

from PIL import Image

ROLES = ("image", "label")


def _image(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)


def test_the_class_is_the_folder_and_the_order_is_that_of_the_names(tmp_path, read):
    for name in ("dog/b.png", "cat/2.jpg", "cat/1.JPG", "dog/deep/a.png", ".hidden/x.png"):
        _image(tmp_path / name)
    (tmp_path / "README.txt").write_text("Animals.")
    rows = read(tmp_path, ROLES)
    assert [(os.path.relpath(row["image"], tmp_path), row["label"]) for row in rows] == [
        ("cat/1.JPG", "cat"),
        ("cat/2.jpg", "cat"),
        ("dog/b.png", "dog"),
        ("dog/deep/a.png", "dog"),
    ]
    assert all(row["_where"] == row["image"] for row in rows)
    assert Image.open(rows[0]["image"]).size == (2, 2)


def test_images_without_class_folders_will_do_where_no_label_is_needed(tmp_path, read, refused):
    _image(tmp_path / "a.png")
    assert read(tmp_path, ROLES, absent={"label"}) == [
        {"image": str(tmp_path / "a.png"), "_where": str(tmp_path / "a.png")}
    ]
    message = refused(tmp_path, ROLES)
    assert "has no column for 'label'" in message
    assert "put each image into a folder that has the name of its class" in message


def test_paths_in_a_table_are_relative_to_its_folder_wherever_one_works(tmp_path, read, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.csv").write_text("image,label\nimages/1.png,cat\n/data/2.png,dog\ns3://bucket/3.png,dog\n")
    monkeypatch.chdir(tmp_path)
    assert [row["image"] for row in read("sub/a.csv", ROLES)] == [
        str(tmp_path / "sub/images/1.png"),
        "/data/2.png",
        "s3://bucket/3.png",
    ]


def test_a_folder_with_a_table_beside_images_must_be_told_apart(tmp_path, read, refused):
    _image(tmp_path / "images/1.png")
    (tmp_path / "a.csv").write_text("image,label\nimages/1.png,cat\n")
    assert "several formats (csv, image_folder)" in refused(tmp_path, ROLES)
    assert read(tmp_path, ROLES, format="csv")[0]["label"] == "cat"
    assert read(tmp_path, ROLES, format="image_folder")[0]["label"] == "images"


def test_the_real_cifar_folders_are_read(shared, tmp_path, read):
    import tarfile

    with tarfile.open(shared / "data/image_classification/cifar10_subset.tar.gz") as archive:
        members = [member for member in archive.getmembers() if "/test/" in member.name]
        archive.extractall(tmp_path, members=members, filter="data")
    rows = read(tmp_path / "cifar10/test", ROLES)
    assert len(rows) == 2000
    assert [row["label"] for row in rows[::200]] == [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    assert Image.open(rows[-1]["image"]).size == (32, 32)
