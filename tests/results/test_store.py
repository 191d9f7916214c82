from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.errors import UsageError
from repro.measure.needs import count_need
from repro.results.record import SCHEMA, DamagedRecordError, NewerRecordError, parse
from repro.results.sources import source_of
from repro.results.store import Store
from repro.spec.tables import Variant
from tests.conftest import counted

LINE = Variant(id="line", builder="python", model="nowhere:line")


def find(store, variant=LINE, metric="params"):
    need = count_need(variant, metric, (224, 224))
    return store.find(need.subject, need.metric, need.protocol, need.versions)


def test_a_record_is_found_again_whole(store):
    record = counted(LINE, "params", 1234)
    path = store.put(record)
    assert find(Store(store.folder)).record == record
    assert not find(store).stale
    assert find(store, metric="gmacs") is None
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_putting_a_record_twice_keeps_one_file(store):
    assert store.put(counted(LINE, "params", 1)) == store.put(counted(LINE, "params", 1))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_details_survive_the_file(details):
    record = replace(counted(LINE, "params", 1), details={"x": details})
    assert parse(record.text(), "here").id == record.id


def test_the_newest_record_wins_and_a_failure_never_hides_a_value(store):
    old = counted(LINE, "params", 1)
    new = replace(counted(LINE, "params", 2), provenance={"time": "2026-02-01"})
    failed = replace(new, value=None, error={"reason": "raised", "message": "x"}, provenance={"time": "2026-03-01"})
    for record in (new, old, failed):
        store.put(record)
    assert find(store).record == new


def test_other_versions_are_stale(store):
    record = counted(LINE, "params", 1)
    store.put(replace(record, versions={**record.versions, "torch": "1.0"}))
    found = find(store)
    assert found.stale
    store.put(record)
    assert not find(store).stale


def test_another_protocol_or_argument_is_another_measurement(store):
    store.put(counted(LINE, "params", 1))
    assert find(store, replace(LINE, arguments={"width": 2})) is None
    need = count_need(LINE, "params", (256, 256))
    assert store.find(need.subject, need.metric, need.protocol, need.versions) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("1234", "4321", 1),
        lambda text: json.dumps({**json.loads(text), "extra": 1}),
        lambda text: json.dumps([1]),
        lambda text: "\x00\xff",
    ],
)
def test_a_damaged_record_is_reported_and_missing(store, spoil):
    path = store.put(counted(LINE, "params", 1234))
    path.write_text(spoil(path.read_text()), encoding="utf-8")
    again = Store(store.folder)
    assert find(again) is None
    assert len(again.warnings) == 1
    assert str(path) in again.warnings[0]
    with pytest.raises(DamagedRecordError):
        parse(path.read_text(), str(path))


def test_a_newer_schema_is_not_guessed_at(store):
    path = store.put(counted(LINE, "params", 1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(NewerRecordError, match=f"schema {SCHEMA + 1}"):
        find(Store(store.folder))


def test_a_record_that_cannot_be_read_is_one_line(store):
    path = store.put(counted(LINE, "params", 1))
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        find(Store(store.folder))


def test_an_interrupted_write_leaves_nothing(store, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(counted(LINE, "params", 1))
    assert [name for _, _, names in os.walk(store.folder) for name in names] == []


def test_the_code_behind_a_variant_is_named(tmp_path, monkeypatch):
    assert source_of("timm", "mobilenetv2_100").startswith("timm ")
    assert source_of("torchvision", "resnet18").startswith("torchvision ")
    module = tmp_path / "paper_models_for_sources.py"
    module.write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert source_of("python", "paper_models_for_sources:x").startswith("python paper_models_for_sources ")
    assert source_of("python", "no_such_module:x") == "python no_such_module"
