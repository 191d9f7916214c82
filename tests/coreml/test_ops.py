"""Every op that the interpreter knows, each in a saved package of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from repro.coreml.registry import operators
from repro.coreml.steps import OWN_TYPES
from tests.coreml import cases_constexpr, cases_elementwise, cases_image, cases_nn, cases_recurrent, cases_tensor
from tests.coreml.programs import Case, check

CASES: list[Case] = [
    *cases_elementwise.CASES,
    *cases_tensor.CASES,
    *cases_nn.CASES,
    *cases_image.CASES,
    *cases_recurrent.CASES,
    *cases_constexpr.cases(),
]
#: Of the ops that the interpreter executes itself: a const is in every case, a classifier has tests of its own.
ELSEWHERE = {"const", "classify"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} == (set(operators()) | OWN_TYPES) - ELSEWHERE


def test_the_ids_tell_cases_apart() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("op", ["lstm", "rnn"])
def test_what_a_definition_leaves_open_is_refused(op: str) -> None:
    x, state, weights = torch.zeros(2, 1, 3), torch.zeros(1, 1), {"lstm": 4, "rnn": 1}[op]
    arguments = {"x": x, "initial_h": state, "weight_ih": torch.zeros(weights, 3), "weight_hh": torch.zeros(weights, 1)}
    if op == "lstm":
        arguments["initial_c"] = state
    run = operators()[op].run
    with pytest.raises(ValueError, match="order"):
        run(**arguments, direction="reverse", output_sequence=True)
    with pytest.raises(ValueError, match="direction sideways"):
        run(**arguments, direction="sideways")
    with pytest.raises(ValueError, match="activation scaled_tanh"):
        run(**arguments, activation="scaled_tanh")
