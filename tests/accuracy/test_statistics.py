"""Figures against published examples, identities and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.accuracy.errors import EvaluationError
from repro.accuracy.predictions import Predictions
from repro.accuracy.statistics import EXACT_UP_TO, accuracy, difference, mcnemar, wilson


def predictions(top5, target):
    return Predictions(
        image=np.array([f"{i}.JPEG" for i in range(len(target))]),
        target=np.array(target, dtype=np.int16),
        top5=np.array(top5, dtype=np.int16).reshape(-1, 5),
    )


def test_top1_and_top5():
    given_predictions = predictions(
        [[1, 2, 3, 4, 5], [2, 1, 3, 4, 5], [9, 8, 7, 6, 5], [5, -1, -1, -1, -1]], [1, 1, 1, 5]
    )
    top1, top5 = accuracy(given_predictions), accuracy(given_predictions, 5)
    assert (top1.correct, top1.total, top1.percent) == (2, 4, 50.0)
    assert (top5.correct, top5.percent) == (3, 75.0)
    assert top1.low < 0.5 < top1.high


def test_no_images_no_figure():
    with pytest.raises(EvaluationError, match="no image"):
        accuracy(predictions([], []))
    with pytest.raises(EvaluationError, match="no image"):
        difference(predictions([], []), predictions([], []))


def test_wilson_against_published_values():
    # Newcombe (1998), Statistics in Medicine 17, 857-872, Table I, method 3
    for correct, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 60000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_shares_that_the_count_does_not_reject(case):
    correct, total = case
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    z = 1.959963984540054
    for bound in (low, high):  # its ends solve |p - p0| = z sqrt(p0 (1 - p0) / n)
        if 0 < bound < 1:
            assert abs(correct / total - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), rel=1e-6)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_of_nothing(correct, total):
    with pytest.raises(ValueError, match="no share"):
        wilson(correct, total)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 1), (2, 2), (6, 1), (0, 9), (5, 5)])
def test_mcnemar_against_counting_all_outcomes(first, second):
    total = first + second
    at_least = sum(
        abs(2 * sum(outcome) - total) >= abs(first - second) for outcome in itertools.product((0, 1), repeat=total)
    )
    assert mcnemar(first, second) == (pytest.approx(at_least / 2**total), True)


def test_mcnemar_approximation_meets_the_exact_value():
    for first, second in ((520, 481), (560, 441), (600, 402)):
        approximate, exact = mcnemar(first, second)
        assert not exact
        total = first + second
        summed = min(1.0, 2 * sum(math.comb(total, k) for k in range(min(first, second) + 1)) / 2**total)
        assert approximate == pytest.approx(summed, abs=1e-4)
    assert mcnemar(EXACT_UP_TO, 0)[1]
    assert mcnemar(30000, 20000)[0] == pytest.approx(0, abs=1e-300)
    with pytest.raises(ValueError, match="not negative"):
        mcnemar(-1, 3)


def test_difference_of_two_models():
    target = [0] * 10
    first = predictions([[0, 1, 2, 3, 4]] * 8 + [[1, 0, 2, 3, 4]] * 2, target)
    second = predictions([[1, 2, 3, 4, 5]] * 5 + [[0, 1, 2, 3, 4]] * 4 + [[1, 2, 3, 4, 0]], target)
    result = difference(first, second)
    assert (result.only_first, result.only_second, result.total) == (5, 1, 10)
    assert result.points == pytest.approx(40.0)
    assert result.p_value == pytest.approx(2 * 7 / 64)
    assert difference(second, first).points == pytest.approx(-40.0)
    assert difference(first, first).p_value == 1.0
    assert difference(first, second, k=5).only_first == 5
    other = predictions(first.top5, [1] * 10)
    with pytest.raises(EvaluationError, match="not evaluated on the same images"):
        difference(first, other)
