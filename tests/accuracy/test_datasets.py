"""The four layouts hold the same images with the same targets; whatever would shift a class is refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from repro.accuracy.datasets import natural_key, open_dataset
from repro.accuracy.errors import DatasetError
from repro.accuracy.labels import imagenet_synsets
from repro.accuracy.matlab import MatlabError, read_mat, read_synset_ids
from tests.accuracy import made

CLASSES = 14
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.image_folder(tmp_path_factory.mktemp("images") / "val", classes=CLASSES, per_class=2)


def contents(dataset):
    """What the data set says of each image, by its bytes."""
    return {sample.data: sample.target for sample in dataset}


def images(folder):
    """Path and class of each image, in the order of their numbers."""
    files = sorted(folder.glob("*/*"), key=lambda file: file.name)
    return [(file, int(file.parent.name[1:]) // 37 - 1440764 // 37) for file in files]


def devkit(folder, shift=0):
    """The development kit's label file and table, whose class numbers are in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DATA / "meta.mat", folder / "meta.mat")
    number = {wnid: key for key, wnid in read_synset_ids((DATA / "meta.mat").read_bytes()).items()}
    return folder, number


def write_truth(folder, numbers):
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))


def flat(folder, target, mapping=str):
    target.mkdir(parents=True)
    for file, _ in images(folder):
        shutil.copy(file, target / file.name)
    return target


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_image_folder(folder):
    dataset = open_dataset(folder, classes=CLASSES)
    assert dataset.layout == "imagefolder"
    assert len(dataset) == 28
    name, target, data = dataset[5]
    assert name == f"{made.wnid(2)}/ILSVRC2012_val_00000006.png"
    assert target == 2
    assert data == (folder / name).read_bytes()
    assert dataset.targets.tolist() == [n // 2 for n in range(28)]


def test_the_split_is_found_below_the_folder(folder):
    assert contents(open_dataset(folder.parent, classes=CLASSES)) == contents(open_dataset(folder, classes=CLASSES))


def test_flat_folder_with_the_development_kit(folder, tmp_path):
    root = flat(folder, tmp_path / "val")
    kit, number = devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data")
    write_truth(kit, [number[file.parent.name] for file, _ in images(folder)])
    dataset = open_dataset(root, classes=CLASSES)
    assert dataset.layout == "flat"
    assert dataset.names[5] == "ILSVRC2012_val_00000006.png"
    assert contents(dataset) == contents(open_dataset(folder, classes=CLASSES))
    moved = tmp_path / "elsewhere"
    (tmp_path / "ILSVRC2012_devkit_t12").rename(moved)
    with pytest.raises(DatasetError, match="no labels near them"):
        open_dataset(root, classes=CLASSES)
    for labels in (moved, moved / "data", moved / "data" / "ILSVRC2012_validation_ground_truth.txt"):
        assert contents(open_dataset(root, classes=CLASSES, labels=labels)) == contents(dataset)


def test_flat_folder_with_the_kit_as_archive(folder, tmp_path):
    root = flat(folder, tmp_path / "val")
    kit, number = devkit(tmp_path / "kit")
    write_truth(kit, [number[file.parent.name] for file, _ in images(folder)])
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for file in kit.iterdir():
            tar.add(file, f"ILSVRC2012_devkit_t12/data/{file.name}")
    shutil.rmtree(kit)
    assert contents(open_dataset(root, classes=CLASSES)) == contents(open_dataset(folder, classes=CLASSES))


def test_flat_folder_with_other_label_files(folder, tmp_path):
    expected = contents(open_dataset(folder, classes=CLASSES))
    root = flat(folder, tmp_path / "val")
    synsets = tmp_path / "imagenet_2012_validation_synset_labels.txt"
    synsets.write_text("".join(f"{file.parent.name}\n" for file, _ in images(folder)))
    assert contents(open_dataset(root, classes=CLASSES)) == expected
    synsets.unlink()
    rows = [f"{file.stem},{file.parent.name} 1 2 3 4 {file.parent.name} 5 6 7 8" for file, _ in images(folder)]
    random.Random(0).shuffle(rows)
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    assert contents(open_dataset(root, classes=CLASSES)) == expected


@pytest.mark.parametrize("form", ["cls", "json", "folders", "one file"])
def test_tar_shards(folder, tmp_path, form):
    root = tmp_path / "shards"
    root.mkdir()
    listed = images(folder)
    random.Random(1).shuffle(listed)
    halves = (listed,) if form == "one file" else (listed[:15], listed[15:])
    for number, half in enumerate(halves):
        with tarfile.open(root / f"imagenet-val-{number:06d}.tar", "w") as tar:
            for file, target in half:
                if form == "cls":
                    add(tar, f"{file.stem}.cls", str(target).encode())
                elif form == "json":
                    add(tar, f"{file.stem}.json", json.dumps({"label": target, "filename": file.name}).encode())
                below = f"./{file.parent.name}/" if form in ("folders", "one file") else ""
                extension = {".JPEG": ".jpg"}.get(file.suffix, file.suffix)
                add(tar, f"{below}{file.stem}{extension}", file.read_bytes())
    with tarfile.open(root / "imagenet-train-000000.tar", "w") as tar:
        add(tar, "n00000000/other.jpg", b"not of this split")
    place = root / "imagenet-val-000000.tar" if form == "one file" else root
    dataset = open_dataset(place, classes=CLASSES)
    assert dataset.layout == "tar"
    assert contents(dataset) == contents(open_dataset(folder, classes=CLASSES))
    first = listed[0][0]
    prefix = "" if form == "one file" else "imagenet-val-000000.tar/"
    assert dataset.names[0].startswith(prefix)
    assert Path(dataset.names[0]).stem == first.stem
    assert len(set(dataset.names)) == len(dataset)


def test_the_validation_archive_as_it_is_published(folder, tmp_path):
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for file, _ in images(folder):
            add(tar, file.name, file.read_bytes())
    kit, number = devkit(tmp_path / "devkit")
    write_truth(kit, [number[file.parent.name] for file, _ in images(folder)])
    assert contents(open_dataset(tmp_path, classes=CLASSES)) == contents(open_dataset(folder, classes=CLASSES))


def write_parquet(pa, path, rows, row_group_size=4, paths=True):
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "image": [{"bytes": file.read_bytes(), "path": file.name if paths else None} for file, _ in rows],
            "label": [target for _, target in rows],
        },
        schema=pa.schema(
            [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
        ),
    )
    pq.write_table(table, path, row_group_size=row_group_size)


def test_parquet(folder, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="reading parquet is an optional extra")
    data = tmp_path / "data"
    data.mkdir()
    listed = images(folder)
    write_parquet(pa, data / "validation-00000-of-00002.parquet", listed[:15])
    write_parquet(pa, data / "validation-00001-of-00002.parquet", listed[15:], paths=False)
    write_parquet(pa, data / "train-00000-of-00001.parquet", listed[:2])
    dataset = open_dataset(tmp_path, classes=CLASSES)
    assert dataset.layout == "parquet"
    assert contents(dataset) == contents(open_dataset(folder, classes=CLASSES))
    assert dataset.names[0] == "validation-00000-of-00002.parquet/ILSVRC2012_val_00000001.JPEG"
    assert dataset.names[15] == "validation-00001-of-00002.parquet/00000000"
    backwards = pickle.loads(pickle.dumps(dataset))
    assert [backwards.read(i) for i in reversed(range(28))] == [dataset.read(i) for i in range(28)][::-1]
    one = open_dataset(data / "validation-00000-of-00002.parquet", classes=CLASSES)
    assert one.names[:1] == ["ILSVRC2012_val_00000001.JPEG"]
    write_parquet(pa, data / "validation-00001-of-00002.parquet", [(listed[0][0], -1)])
    with pytest.raises(DatasetError, match="has class -1, expected 0 to 13"):
        open_dataset(tmp_path, classes=CLASSES)
    (data / "validation-00001-of-00002.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(DatasetError, match=r"validation-00001.*not a readable parquet file"):
        open_dataset(tmp_path, classes=CLASSES)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "validation.parquet").write_bytes(b"")
    with pytest.raises(DatasetError, match="needs pyarrow"):
        open_dataset(tmp_path)


def test_fingerprint(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = open_dataset(folder, classes=CLASSES).fingerprint
    assert open_dataset(copy, classes=CLASSES).fingerprint == first
    victim = next(copy.glob("*/*"))
    victim.write_bytes(victim.read_bytes() + b"\0")
    assert open_dataset(copy, classes=CLASSES).fingerprint != first
    victim.write_bytes(victim.read_bytes()[:-1])
    victim.rename(victim.with_name("renamed.png"))
    assert open_dataset(copy, classes=CLASSES).fingerprint != first


def test_classes_are_numbered_as_timm_numbers_them():
    assert sorted(["class_10", "class_9", "Class_1"], key=natural_key) == ["Class_1", "class_9", "class_10"]
    synsets = imagenet_synsets()
    assert len(synsets) == 1000
    assert synsets == sorted(synsets, key=natural_key)
    assert synsets[0] == "n01440764"
    assert synsets[-1] == "n15075141"


def refused(path, pattern, **options):
    with pytest.raises(DatasetError, match=pattern) as caught:
        open_dataset(path, **options)
    assert len(caught.value.lines) == 1
    assert "\n" not in str(caught.value)


def copy_of(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def test_too_few_class_folders(tmp_path):
    for wnid in imagenet_synsets()[:-1]:
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / "a.JPEG").write_bytes(b"x")
    refused(tmp_path, r"999 class folders, expected 1000 \(n15075141 is missing\)")


def test_broken_class_folders(folder, tmp_path):
    root = copy_of(folder, tmp_path)
    refused(root, "14 class folders, expected 15", classes=15)
    (root / made.wnid(3) / ".DS_Store").write_bytes(b"")
    assert len(open_dataset(root, classes=CLASSES)) == 28
    (root / made.wnid(3) / "notes.txt").write_text("no image")
    refused(root, f"{made.wnid(3)}: notes.txt is no image", classes=CLASSES)
    (root / made.wnid(3) / "notes.txt").unlink()
    (root / made.wnid(3) / "deeper").mkdir()
    refused(root, "deeper is no image", classes=CLASSES)
    shutil.rmtree(root / made.wnid(3))
    (root / made.wnid(3)).mkdir()
    refused(root, f"{made.wnid(3)}: class folder without images", classes=CLASSES)


def test_not_a_data_set(tmp_path):
    refused(tmp_path, "the folder is empty")
    refused(tmp_path / "absent", "no such folder")
    refused(tmp_path / "absent", "no such file or folder", layout="tar")
    refused(tmp_path, "no images", layout="tar")
    refused(tmp_path, "no images", layout="flat")
    refused(tmp_path, "unknown layout 'webdataset'", layout="webdataset")
    (tmp_path / "readme.txt").write_text("hello")
    refused(tmp_path, "no images, class folders")
    refused(tmp_path / "readme.txt", "neither a folder nor")
    refused(tmp_path / "readme.txt", "expected a folder", layout="imagefolder")


def test_labels_that_do_not_fit(folder, tmp_path):
    root = flat(folder, tmp_path / "val")
    kit, number = devkit(tmp_path / "devkit")
    numbers = [number[file.parent.name] for file, _ in images(folder)]
    write_truth(kit, numbers[:-1])
    refused(root, "27 labels for 28 images", classes=CLASSES)
    write_truth(kit, [*numbers[:-1], 99])
    refused(root, "99 is no class number of meta.mat", classes=CLASSES)
    write_truth(kit, [*numbers[:-1], "x"])
    refused(root, "invalid literal", classes=CLASSES)
    write_truth(kit, numbers)
    refused(root, "14 classes, expected 1000")
    (root / "ILSVRC2012_val_00000006.png").rename(root / "ILSVRC2012_val_00000099.png")
    refused(root, "not numbered 1 to 28", classes=CLASSES)
    (root / "ILSVRC2012_val_00000099.png").rename(root / "ILSVRC2012_val_00000006.png")
    (kit / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    refused(root, "meta.mat: not a MAT-file of level 5", classes=CLASSES)
    (kit / "meta.mat").unlink()
    refused(root, "meta.mat is not beside it", classes=CLASSES)
    refused(root, "no such file or folder", classes=CLASSES, labels=tmp_path / "absent")


def test_broken_shards(folder, tmp_path):
    shard = tmp_path / "val-0.tar"
    with tarfile.open(shard, "w") as tar:
        for file, target in images(folder):
            add(tar, f"{file.stem}.cls", str(target).encode())
            add(tar, f"{file.stem}.jpg", file.read_bytes())
    whole = shard.read_bytes()
    assert len(open_dataset(shard, classes=CLASSES)) == 28
    for length in (len(whole) // 2, len(whole) // 2 // 512 * 512, 700):
        shard.write_bytes(whole[:length])
        refused(shard, "cut short|unexpected end of data", classes=CLASSES)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # all members, but no end of archive
    shard.write_bytes(whole[:end])
    refused(shard, "the end of the archive is missing", classes=CLASSES)
    shard.write_bytes(b"x" * 2000)
    refused(shard, "not a whole, uncompressed tar file", classes=CLASSES)
    with tarfile.open(shard, "w") as tar:
        add(tar, "a.cls", b"cat")
        add(tar, "a.jpg", b"x")
    refused(shard, "a label that cannot be read", classes=CLASSES)
    with tarfile.open(shard, "w") as tar:
        add(tar, "a.cls", b"14")
        add(tar, "a.jpg", b"x")
    refused(shard, "a.jpg has class 14, expected 0 to 13", classes=CLASSES)
    with tarfile.open(shard, "w") as tar:
        add(tar, "a.cls", b"1")
        add(tar, "a.jpg", b"x")
        add(tar, "b.jpg", b"x")
    refused(shard, "b.jpg has no label", classes=CLASSES)


def test_mat_files_of_both_forms():
    first, second = (read_synset_ids((DATA / name).read_bytes()) for name in ("meta.mat", "meta_plain.mat"))
    assert first == second
    assert sorted(first) == list(range(1, 15))
    assert first[1] == "n01441245"  # by scipy, which wrote them; the first class is not the first synset
    plain = read_mat((DATA / "meta_plain.mat").read_bytes())
    assert plain["other"] == [1.0, 0.0, 0.0, 1.0]
    assert plain["synsets"][4]["words"] == "é à"
    assert plain["synsets"][14]["children"] == [1.0, 2.0]


def test_damaged_mat_files_are_refused_not_misread():
    whole = (DATA / "meta.mat").read_bytes()
    good = read_synset_ids(whole)
    for at in range(128, len(whole), 3):
        broken = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        try:
            assert read_synset_ids(broken) == good
        except MatlabError:
            continue
    with pytest.raises(MatlabError):
        read_synset_ids(whole[:400])
    with pytest.raises(MatlabError, match="no struct array"):
        read_synset_ids(whole[:128])
