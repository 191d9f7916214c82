"""Which value of a protocol wins: the row over its printed resolution over the table, a metric's section over all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from repro.spec.metrics import METRICS
from repro.spec.tables import Protocol, Table, plain_size, printed_size
from tests.spec.conftest import SPEC

Load = Callable[[str], Table]


def spec(table: str = "{}", row: str = "{}", resolution: str | None = None) -> str:
    text = SPEC.replace("columns:\n", f"protocol: {table}\ncolumns:\n- {{metric: latency}}\n", 1)
    text = text.replace("  line: 8\n", f"  line: 8\n  protocol: {row}\n")
    return text.replace('params: "21.8"', f'resolution: "{resolution}", params: "21.8"') if resolution else text


def of(table: Table, metric: str) -> dict[str, object]:
    return table.protocol_of(table.rows[1], metric)


def test_nothing_said_is_nothing_known(load: Load) -> None:
    for metric in METRICS:
        assert of(load(spec()), metric) == {}


def test_the_table_speaks_for_its_rows(load: Load) -> None:
    table = load(spec("{input_size: 224, form: folded}"))
    assert of(table, "params") == {"input_size": 224, "form": "folded"}


@pytest.mark.parametrize(
    ("general", "resolution", "row", "expected"),
    [
        ("{input_size: 224}", None, "{}", 224),
        ("{input_size: 224}", "256", "{}", 256),
        ("{}", "256", "{}", 256),
        ("{input_size: 224}", "480x640", "{}", [480, 640]),
        ("{input_size: 224}", "256", "{input_size: 288}", 288),
        ("{input_size: 224}", None, "{input_size: 512x512}", 512),
        # a metric's own section wins over every general value, wherever that stands
        ("{input_size: 224, gmacs: {input_size: 160}}", None, "{}", 160),
        ("{input_size: 224, gmacs: {input_size: 160}}", "256", "{}", 160),
        ("{input_size: 224, gmacs: {input_size: 160}}", "256", "{input_size: 288}", 160),
        ("{input_size: 224, gmacs: {input_size: 160}}", "256", "{gmacs: {input_size: 320}}", 320),
        ("{input_size: 224}", "256", "{input_size: 288, gmacs: {input_size: 320}}", 320),
        # a word that is no size, such as "multi-scale", leaves the table's
        ("{input_size: 224}", "multi-scale", "{}", 224),
    ],
)
def test_input_size(load: Load, general: str, resolution: str | None, row: str, expected: object) -> None:
    assert of(load(spec(general, row, resolution)), "gmacs")["input_size"] == expected


def test_a_metrics_section_leaves_other_metrics_alone(load: Load) -> None:
    table = load(spec("{input_size: 224, precision: float32, latency: {input_size: 512, precision: float16}}"))
    assert of(table, "gmacs") == {"input_size": 224}
    assert of(table, "latency") == {"input_size": 512, "precision": "float16"}
    assert of(table, "top1") == {"input_size": 224, "precision": "float32"}


def test_a_rows_section_of_a_metric_adds_to_the_tables(load: Load) -> None:
    table = load(spec("{latency: {precision: float16, device: iPhone 13}}", "{latency: {device: iPhone 15}}"))
    assert of(table, "latency") == {"precision": "float16", "device": "iPhone 15"}
    assert table.protocol_of(table.rows[0], "latency") == {"precision": "float16", "device": "iPhone 13"}


def test_a_metric_only_knows_what_changes_it(load: Load) -> None:
    everything = (
        "{input_size: 224, batch_size: 2, precision: float32, form: as_trained, counting: fvcore, device: D,"
        " compute_units: cpu_only, dataset: I, split: validation, crop: '0.875', interpolation: bicubic,"
        " detection_dataset: C, detection_head: M, segmentation_dataset: A, segmentation_head: S}"
    )
    table = load(spec(everything))
    keys = {metric: set(of(table, metric)) for metric in METRICS}
    assert keys["params"] == {"input_size", "form"}
    assert keys["gmacs"] == {"input_size", "batch_size", "form", "counting"}
    assert keys["latency"] == {"input_size", "batch_size", "precision", "form", "device", "compute_units"}
    assert keys["top1"] == {"input_size", "precision", "dataset", "split", "crop", "interpolation"}
    assert keys["ap_box"] == keys["ap75_mask"] == {"detection_dataset", "detection_head", "precision"}
    assert keys["miou"] == {"segmentation_dataset", "segmentation_head", "precision"}
    assert keys["epochs"] == keys["resolution"] == keys["year"] == keys["setting"] == set()


def test_over_keeps_both_sides_metrics() -> None:
    base = Protocol(batch_size=1, metrics={"latency": Protocol(device="a"), "top1": Protocol(crop="0.9")})
    own = Protocol(batch_size=8, metrics={"latency": Protocol(precision="int8")})
    both = own.over(base)
    assert both.batch_size == 8
    assert both.metrics["latency"] == Protocol(device="a", precision="int8")
    assert both.metrics["top1"] == Protocol(crop="0.9")
    assert base.metrics["latency"] == Protocol(device="a")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("224", (224, 224)), ("480x640", (480, 640)), ("480×640", (480, 640)), ("480 x 640", (480, 640))),
        *((None, None), ("", None), ("x", None), ("224x", None), ("-1", None), ("2.5", None), ("٢٢٤", None)),
    ],
)
def test_printed_size(text: str | None, size: tuple[int, int] | None) -> None:
    assert printed_size(text) == size


def test_plain_size() -> None:
    assert plain_size((224, 224)) == 224
    assert plain_size((480, 640)) == [480, 640]
