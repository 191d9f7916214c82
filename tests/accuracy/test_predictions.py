"""Files of predictions: whole, plain, and never taken for another's."""

from __future__ import annotations

import numpy as np
import pytest

from repro.accuracy.errors import EvaluationError
from repro.accuracy.predictions import DONE, PENDING, SKIPPED, Predictions, PredictionStore


def some():
    return Predictions(
        image=np.array(["n01440764/ä.JPEG", "n01440764/b.JPEG"]),
        target=np.array([0, 999], dtype=np.int16),
        top5=np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, -1]], dtype=np.int16),
        skipped=("n01440764/c.JPEG",),
    )


def test_round_trip(tmp_path):
    some().save(tmp_path / "deep" / "p.npz")
    loaded = Predictions.load(tmp_path / "deep" / "p.npz")
    assert loaded.image.tolist() == some().image.tolist()
    assert loaded.skipped == some().skipped
    assert np.array_equal(loaded.top5, some().top5)
    with np.load(tmp_path / "deep" / "p.npz", allow_pickle=False) as arrays:
        assert {key: arrays[key].dtype.kind + str(arrays[key].dtype.itemsize) for key in ("target", "top5")} == {
            "target": "i2",
            "top5": "i2",
        }
        assert arrays["image"].dtype.kind == "U"
        assert arrays["top5"].shape == (2, 5)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["p.npz"]


def test_what_is_no_predictions_file(tmp_path):
    file = tmp_path / "p.npz"
    for content in (b"", b"PK\x03\x04 broken", b"text"):
        file.write_bytes(content)
        with pytest.raises(EvaluationError, match="not a predictions file"):
            Predictions.load(file)
    np.savez(file, image=["a"], target=[1], top5=[[1, 2]])
    with pytest.raises(EvaluationError, match="do not fit together"):
        Predictions.load(file)
    np.savez(file, image=np.array([object()]), target=[1], top5=[[1, 2, 3, 4, 5]])
    with pytest.raises(EvaluationError, match="not a predictions file"):
        Predictions.load(file)


def test_partial_and_store(tmp_path):
    store, key = PredictionStore(tmp_path / "store"), {"images": "f", "checkpoint": "c", "protocol": {"batch": 2}}
    partial = store.load("a/b", key, 5)
    assert partial.state.tolist() == [PENDING] * 5
    store.save("a/b", key, partial)
    assert not (tmp_path / "store").exists()  # nothing known, nothing written
    partial.put(2, np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], dtype=np.int16), {1: "truncated"})
    store.save("a/b", key, partial)
    again = store.load("a/b", key, 5)
    assert np.array_equal(again.top5, partial.top5)
    assert again.state.tolist() == [PENDING, PENDING, DONE, SKIPPED, PENDING]
    assert again.top5[3].tolist() == [-1] * 5
    assert not again.finished()
    file = store.path("a/b", key)
    for other in ({**key, "images": "g"}, {**key, "protocol": {"batch": 3}}):
        assert (store.load("a/b", other, 5).state == PENDING).all()
        file.replace(store.path("a/b", other))  # even under the other's name
        assert (store.load("a/b", other, 5).state == PENDING).all()
        store.path("a/b", other).replace(file)
    assert (store.load("a/b", key, 6).state == PENDING).all()
    file.write_bytes(file.read_bytes()[:100])
    assert (store.load("a/b", key, 5).state == PENDING).all()
