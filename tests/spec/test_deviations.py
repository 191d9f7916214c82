from __future__ import annotations

from collections.abc import Callable

import pytest

from repro.spec.metrics import METRICS
from repro.spec.parse import REASONS
from repro.spec.tables import Protocol, Table
from tests.spec.conftest import SPEC

DEVIATION = """\
deviations:
- row: ResNet-34
  metric: gmacs
  reason: protocol_mismatch
  says: The row's cost is that of 256 px.
  evidence: {measure: gmacs, input_size: 256, equals: "4.80"}
"""
START = SPEC.count("\n") + 1


@pytest.fixture
def broken(mistakes: Callable[[str], list[str]]) -> Callable[[str, str], list[str]]:
    def _broken(old: str, new: str) -> list[str]:
        assert DEVIATION.count(old) == 1
        return mistakes(SPEC + DEVIATION.replace(old, new))

    return _broken


def test_a_deviation_with_evidence(load: Callable[[str], Table]) -> None:
    (found,) = load(SPEC + DEVIATION).deviations
    assert (found.row, found.metric, found.reason) == ("ResNet-34", "gmacs", "protocol_mismatch")
    assert found.measure == "gmacs"
    assert found.equals == "4.80"
    assert found.protocol == Protocol(input_size=(256, 256))
    assert (found.variant, found.unit, found.truncated) == (None, None, False)
    assert found.spec_line == START + 1


def test_evidence_of_another_variant_in_another_unit(load: Callable[[str], Table]) -> None:
    evidence = (
        'evidence: {measure: gmacs, variant: resnet18, form: as_trained, unit: M, truncated: yes, equals: "1814"}'
    )
    text = SPEC + DEVIATION.replace(DEVIATION[DEVIATION.index("evidence") :], evidence + "\n")
    (found,) = load(text).deviations
    assert found.variant is not None
    assert found.variant.id == "resnet18"
    assert found.protocol == Protocol(form="as_trained")
    assert (found.unit, found.truncated, found.equals) == ("M", True, "1814")


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason(load: Callable[[str], Table], reason: str) -> None:
    (found,) = load(SPEC + DEVIATION.replace("protocol_mismatch", reason)).deviations
    assert found.reason == reason


COMPARED = [name for name, metric in METRICS.items() if not metric.descriptive]
KNOWN = "; known: params, gmacs, top1"
SIZE = "an input size is '224' or '480x640' (height x width), not 'big'"
EVIDENCE = '  evidence: {measure: gmacs, input_size: 256, equals: "4.80"}\n'


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "row: ResNet-34",
            "row: ResNet-43",
            1,
            ".row: no row 'ResNet-43' in this table; did you mean ResNet-34 or ResNet-18?",
        ),
        ("metric: gmacs", "metric: gmac", 2, ".metric: unknown value 'gmac'; did you mean gmacs?" + KNOWN),
        ("metric: gmacs", "metric: latency", 2, ".metric: unknown value 'latency'" + KNOWN),
        ("metric: gmacs", "metric: resolution", 2, ".metric: unknown value 'resolution'" + KNOWN),
        ("protocol_mismatch", "because", 3, f".reason: unknown value 'because'; known: {', '.join(REASONS)}"),
        ("says: The row's cost is that of 256 px.", "says:", 4, ".says: must not be empty"),
        (EVIDENCE, "", 1, ": missing key 'evidence'"),
        ("measure: gmacs, ", "", 5, ".evidence: missing key 'measure'"),
        (', equals: "4.80"', "", 5, ".evidence: missing key 'equals'"),
        ('"4.80"', "about 4.8", 5, ".evidence.equals: must be a number, not 'about 4.8'"),
        (
            "measure: gmacs",
            "measure: epochs",
            5,
            ".evidence.measure: unknown value 'epochs'; known: " + ", ".join(COMPARED),
        ),
        ("input_size: 256", "input_size: big", 5, ".evidence.input_size: " + SIZE),
        (
            "input_size: 256",
            "inputsize: 256",
            5,
            ".evidence.inputsize: unknown key 'inputsize'; did you mean input_size?",
        ),
        (
            "input_size: 256",
            "variant: resnet19",
            5,
            ".evidence.variant: unknown variant 'resnet19'; did you mean resnet18?",
        ),
        ("input_size: 256", "unit: ms", 5, ".evidence.unit: unknown value 'ms'; did you mean M?; known: G, M"),
        ("input_size: 256", "truncated: perhaps", 5, ".evidence.truncated: must be true or false, not 'perhaps'"),
    ],
)
def test_mistakes(broken: Callable[[str, str], list[str]], old: str, new: str, line: int, message: str) -> None:
    assert broken(old, new) == [f"table_03.yaml:{START + line}: deviations[0]{message}"]


def test_two_deviations_of_one_cell(mistakes: Callable[[str], list[str]]) -> None:
    again = DEVIATION.replace("deviations:\n", "")
    assert mistakes(SPEC + DEVIATION + again) == [
        f"table_03.yaml:{START + 6}: deviations[1]: a second deviation for ResNet-34 gmacs"
    ]
