"""One pass, whatever happens in it: corrupt images, failing models, killed processes, little memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest

from repro.accuracy.datasets import open_dataset
from repro.accuracy.engine import Evaluation, prediction_key
from repro.accuracy.engine import evaluate as evaluate_in_child
from repro.accuracy.errors import CorruptImageError, DatasetError, EvaluationError
from repro.accuracy.executor import DirectExecutor, child_environment
from repro.accuracy.job import Options
from repro.accuracy.predictions import PredictionStore
from tests.accuracy import kill_me, made

CLASSES = 12
SMALL = Options(batch_size=4, workers=0)


def evaluate(dataset, entries, **arguments) -> Evaluation:
    """Evaluate in this process: a child takes seconds to start, and only some tests are about it."""
    return evaluate_in_child(dataset, entries, executor=DirectExecutor(), **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.image_folder(tmp_path_factory.mktemp("images") / "val", classes=CLASSES, per_class=5)


@pytest.fixture(scope="module")
def dataset(folder):
    return open_dataset(folder, classes=CLASSES)


@pytest.fixture
def broken(folder, tmp_path):
    """The same images, one cut short and one no image at all."""
    import shutil

    root = tmp_path / "val"
    shutil.copytree(folder, root)
    data = open_dataset(root, classes=CLASSES)
    short = root / data.names[17]
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    (root / data.names[42]).write_text("not a picture")
    return data


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name].image, second[name].image)
        assert np.array_equal(first[name].target, second[name].target)
        assert np.array_equal(first[name].top5, second[name].top5)


def test_predictions_by_hand(dataset):
    entries = [made.cheap("a", CLASSES), made.cheap("b", CLASSES, 0.5, crop_pct=1.0, interpolation="nearest")]
    told = []
    result = evaluate(dataset, entries, options=SMALL, progress=told.append)
    assert (result.passes, result.evaluated, result.failures, result.skipped) == (1, 60, {}, {})
    predictions = result.predictions["a"]
    assert predictions.image.tolist() == dataset.names
    assert predictions.target.tolist() == dataset.targets.tolist()
    assert predictions.top5.dtype == np.int16
    from PIL import Image

    transform = entries[0].preprocessing.transform()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for sample, row in zip(dataset, predictions.top5, strict=True):
        import io

        pixels = transform(Image.open(io.BytesIO(sample.data)).convert("RGB")).numpy().transpose(1, 2, 0) / 255
        value = ((pixels - mean) / std).mean()
        assert row[0] == np.abs(np.linspace(-2, 2, CLASSES) - value).argmin()
        assert len(set(row.tolist())) == 5
    assert (told[0].done, told[0].total, told[0].seconds_left) == (0, 60, None)
    assert (told[-1].done, told[-1].total, told[-1].seconds_left) == (60, 60, 0)
    assert told[-1].images_per_second > 0
    assert told[-1].models == ("a", "b") or told[-1].models == ("b", "a")
    assert [status.done for status in told] == sorted(status.done for status in told)


def test_every_number_of_workers_gives_the_same(dataset):
    entries = [made.cheap("a", CLASSES), made.cheap("b", CLASSES, 0.5)]
    results = [
        run(dataset, entries, options=Options(batch_size=7, workers=workers)).predictions
        for run, workers in ((evaluate, 0), (evaluate_in_child, 1), (evaluate_in_child, 3))
    ]
    equal(results[0], results[1])
    equal(results[0], results[2])


def test_fewer_than_five_classes(tmp_path):
    root = made.image_folder(tmp_path / "two", classes=2, per_class=2)
    result = evaluate(open_dataset(root, classes=2), [made.cheap("a", 2)], options=SMALL)
    assert (result.predictions["a"].top5[:, 2:] == -1).all()
    assert sorted(result.predictions["a"].top5[0, :2].tolist()) == [0, 1]


def test_a_corrupt_image_stops_the_run_by_name(broken, tmp_path):
    store = PredictionStore(tmp_path / "store")
    with pytest.raises(CorruptImageError) as caught:
        evaluate(broken, [made.cheap("a", CLASSES)], options=SMALL, store=store)
    assert caught.value.name in (broken.names[17], broken.names[42])
    assert len(caught.value.lines) == 1
    assert caught.value.name in str(caught.value)


def test_corrupt_images_are_skipped_and_counted_on_request(broken, dataset, tmp_path):
    store = PredictionStore(tmp_path / "store")
    entries = [made.cheap("a", CLASSES), made.cheap("b", CLASSES, 0.5)]
    skipping = Options(batch_size=4, workers=0, skip_corrupt=True)
    result = evaluate(broken, entries, options=skipping, store=store)
    assert list(result.skipped) == [broken.names[17], broken.names[42]]
    assert "truncated" in result.skipped[broken.names[17]]
    assert result.skipped[broken.names[42]] == "not an image"
    whole = evaluate(dataset, entries, options=SMALL).predictions
    kept = [index for index in range(60) if index not in (17, 42)]
    for name, predictions in result.predictions.items():
        assert predictions.skipped == (broken.names[17], broken.names[42])
        assert predictions.image.tolist() == [dataset.names[index] for index in kept]
        assert np.array_equal(predictions.top5, whole[name].top5[kept])
    again = evaluate(broken, entries, options=skipping, store=store)
    assert again.evaluated == 0
    assert list(again.skipped) == list(result.skipped)
    equal(again.predictions, result.predictions)
    with pytest.raises(CorruptImageError):  # who does not skip is told, whatever an earlier run did
        evaluate(broken, entries, options=SMALL, store=store)


def test_a_file_that_cannot_be_read_is_never_skipped(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "val")
    data = open_dataset(tmp_path / "val", classes=CLASSES)
    (tmp_path / "val" / data.names[10]).unlink()
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        evaluate(data, [made.cheap("a", CLASSES)], options=Options(batch_size=4, workers=0, skip_corrupt=True))


def test_failing_models_do_not_end_the_others(dataset):
    kinds = ("shape", "type", "raises late", "nan")
    entries = [made.entry(kind, partial(made.Broken, CLASSES, kind)) for kind in kinds]
    entries += [made.entry("refused", partial(made.refuses, "x.pth: no such file")), made.cheap("good", CLASSES)]
    entries += [made.entry("misfolded", partial(made.Misfolded, CLASSES))]
    result = evaluate(dataset, entries, options=SMALL)
    assert list(result.predictions) == ["good"]
    assert result.failures["refused"] == "x.pth: no such file"
    assert result.failures["shape"] == "the model returns 2 x 11 values for 2 images of 12 classes"
    assert result.failures["type"] == "the model returns list, expected logits"
    assert result.failures["raises late"] == "RuntimeError: the second batch is too much"
    assert "are not finite" in result.failures["nan"]
    assert "the folded model's logits differ" in result.failures["misfolded"]


def test_models_that_do_not_fit_together_take_turns(dataset):
    entries = [made.entry(f"heavy {i}", partial(made.Heavy, CLASSES, 300)) for i in range(3)]
    entries.append(made.cheap("light", CLASSES))
    little = Options(batch_size=4, workers=0, memory=1000 * 2**20)
    told = []
    result = evaluate(dataset, entries, options=little, progress=told.append)
    assert result.passes == 2
    assert result.evaluated == 120
    assert sorted({len(status.models) for status in told}) == [1, 3] or sorted(
        {len(status.models) for status in told}
    ) == [2]
    assert told[-1].passes == 2
    assert told[-1].seconds_left == 0
    equal(result.predictions, evaluate(dataset, entries, options=SMALL).predictions)


@pytest.mark.parametrize("parent", [False, True], ids=["worker", "child"])
def test_a_killed_process_changes_nothing(dataset, tmp_path, parent):
    entries = [made.entry("deadly", partial(made.Deadly, CLASSES, str(tmp_path), 2, parent, 2))]
    result = evaluate_in_child(dataset, entries, options=Options(batch_size=4, workers=1))
    assert (tmp_path / "1").exists()
    quiet = [made.entry("deadly", partial(made.mean_colour, CLASSES))]
    equal(result.predictions, evaluate(dataset, quiet, options=SMALL).predictions)
    assert result.passes == 1
    assert result.evaluated == 60


def test_what_always_dies_is_said(dataset, tmp_path):
    (tmp_path / "store").mkdir()
    entries = [made.entry("deadly", partial(made.Deadly, CLASSES, str(tmp_path / "store"), 1000, True, 1))]
    with pytest.raises(EvaluationError, match="ended three times without a result; the last time: killed by SIGKILL"):
        evaluate_in_child(dataset, entries, options=Options(batch_size=60, workers=1, skip_corrupt=True, fold=False))


def start(folder, store):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.accuracy.kill_me", str(folder), str(store), str(CLASSES)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def progress_of(store, dataset):
    kept = PredictionStore(store)
    done = []
    for entry in kill_me.entries(CLASSES):
        key = prediction_key(dataset, entry, Options(batch_size=4))
        done.append(int((kept.load(entry.name, key, len(dataset)).state != 0).sum()))
    return done


def test_killed_twice_and_resumed(folder, dataset, tmp_path):
    store = tmp_path / "store"
    before = [0, 0]
    for _ in range(2):
        run = start(folder, store)
        deadline = time.monotonic() + 120
        while sum(progress_of(store, dataset)) < sum(before) + 16 and time.monotonic() < deadline:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.02)
        family = psutil.Process(run.pid).children(recursive=True)
        assert family
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, "processes outlive the run that was killed"
        after = progress_of(store, dataset)
        assert sum(before) < sum(after) < 120
        before = after
    run = start(folder, store)
    out, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    assert int(out) == 60 - min(before)
    entries = kill_me.entries(CLASSES)
    resumed = evaluate(dataset, entries, options=SMALL, store=PredictionStore(store))
    assert (resumed.evaluated, resumed.passes) == (0, 0)
    equal(resumed.predictions, evaluate(dataset, entries, options=SMALL).predictions)
    assert not list(store.glob(".*")) or all(file.suffix == ".tmp" for file in store.glob(".*"))


def test_a_resume_never_mixes(folder, dataset, tmp_path):
    store = PredictionStore(tmp_path)
    entries = [made.cheap("a", CLASSES)]
    options = SMALL
    assert evaluate(dataset, entries, options=options, store=store).evaluated == 60
    assert evaluate(dataset, entries, options=options, store=store).evaluated == 0
    for other in (
        evaluate(dataset, [made.cheap("a", CLASSES, 0.5)], options=options, store=store),  # other weights
        evaluate(dataset, [made.cheap("a", CLASSES, crop_pct=1.0)], options=options, store=store),
        evaluate(dataset, entries, options=Options(batch_size=5, workers=0), store=store),
        evaluate(dataset, entries, options=Options(batch_size=4, workers=0, precision="amp-bfloat16"), store=store),
        evaluate(open_dataset(made.image_folder(tmp_path / "other", classes=CLASSES, seed=9), classes=CLASSES), entries,
                 options=options, store=store),
    ):  # fmt: skip
        assert other.evaluated in (60, 12)
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_new_models_join_known_ones(dataset, tmp_path):
    store = PredictionStore(tmp_path)
    first = evaluate(dataset, [made.cheap("a", CLASSES)], options=SMALL, store=store)
    told = []
    both = evaluate(
        dataset,
        [made.cheap("a", CLASSES), made.cheap("b", CLASSES, 0.5)],
        options=SMALL,
        store=store,
        progress=told.append,
    )
    assert told[-1].models == ("b",)
    equal({"a": both.predictions["a"]}, first.predictions)


def test_bad_options(dataset):
    for options in ({"device": "tpu"}, {"precision": "int8"}, {"batch_size": 0}, {"workers": -1}, {"memory": 0}):
        with pytest.raises(EvaluationError):
            Options(**options)
    with pytest.raises(EvaluationError, match="same name"):
        evaluate(dataset, [made.cheap("a", CLASSES), made.cheap("a", CLASSES)])
    assert evaluate(dataset, []).predictions == {}


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_accelerators(dataset, device):
    import torch

    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    entries = [made.cheap("a", CLASSES), made.cheap("b", CLASSES, 0.5, crop_pct=1.0)]
    options = Options(batch_size=16, workers=2, device=device)
    if not there:
        with pytest.raises(EvaluationError, match=f"no {device} device"):
            evaluate_in_child(dataset, entries, options=options)
        return
    equal(
        evaluate_in_child(dataset, entries, options=options).predictions,
        evaluate(dataset, entries, options=SMALL).predictions,
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    code = (
        "import resource, sys\n"
        "from repro.accuracy.datasets import open_dataset\n"
        "from repro.accuracy.engine import evaluate\n"
        "from repro.accuracy.job import Options\n"
        "from tests.accuracy import made\n"
        "images = open_dataset(sys.argv[1], classes=4)\n"
        "evaluate(images, [made.cheap('a', 4)], options=Options(batch_size=4, workers=2))\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    peaks = []
    for count in (4, 120):
        root = made.image_folder(tmp_path / str(count), classes=4, per_class=count, scale=2)
        command = [sys.executable, "-c", code, str(root)]
        peaks.append(int(subprocess.check_output(command, env=child_environment(), text=True)))
    assert peaks[1] < 1.1 * peaks[0]


def test_ray_is_asked_for_by_name(dataset, monkeypatch):
    from repro.accuracy.ray_executor import RayExecutor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvaluationError, match="needs ray, which is not installed"):
        evaluate_in_child(dataset, [made.cheap("a", CLASSES)], executor=RayExecutor())


def test_importing_the_room_is_light():
    code = "import sys, repro.accuracy.engine; print(sorted({'torch', 'timm', 'PIL'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
