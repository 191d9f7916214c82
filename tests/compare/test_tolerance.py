from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from repro.compare.tolerance import Bound, decimals, exact, parse_tolerance, rounds_to, truncates_to
from repro.errors import UsageError

printed = st.decimals(0, 1000, allow_nan=False, allow_infinity=False, places=3).flatmap(
    lambda value: st.integers(0, 3).map(lambda places: f"{value:.{places}f}")
)


def test_differences_are_not_taken_in_floats():
    assert 1.21 - 1.10 < 0.11
    assert Bound(value=Decimal("0.11")).allows(exact(1.21) - Decimal("1.10"), Decimal("1.10"))
    assert not Bound(value=Decimal("0.10")).allows(exact(1.21) - Decimal("1.10"), Decimal("1.10"))


@given(printed)
def test_every_printed_number_matches_itself(text):
    assert rounds_to(Decimal(text), text)
    assert truncates_to(Decimal(text), text)


@given(printed, st.decimals(0, 1000, allow_nan=False, allow_infinity=False, places=6))
def test_a_match_is_within_half_of_the_last_decimal(text, value):
    half = Decimal(5).scaleb(-decimals(text) - 1)
    assert rounds_to(value, text) == (Decimal(text) - half <= value < Decimal(text) + half) or value < 0


@given(printed, st.decimals(-5, 5, allow_nan=False, places=4), st.decimals(0, 5, allow_nan=False, places=3))
def test_a_wider_tolerance_never_refuses_what_a_narrower_allowed(text, difference, bound):
    reported = Decimal(text)
    narrow, wide = Bound(value=bound), Bound(value=bound * 2)
    assume(narrow.allows(difference, reported))
    assert wide.allows(difference, reported)
    assert wide.allows(-difference, reported)


@pytest.mark.parametrize(
    ("value", "text", "match"),
    [
        ("8.879", "8.9", True),
        ("6.5", "6.5", True),
        ("6.55", "6.6", True),  # half away from zero
        ("6.55", "6.5", False),
        ("1.6399", "1.64", True),
        ("13.6", "14", True),
        ("2.827", "2.63", False),
        ("6.770", "6.7", False),
    ],
)
def test_rounding(value, text, match):
    assert rounds_to(Decimal(value), text) is match


def test_per_metric_tolerances():
    tolerance = parse_tolerance("0.1, top1=0.5, params = 1%")
    assert tolerance.of("gmacs") == Bound(value=Decimal("0.1"))
    assert tolerance.of("top1") == Bound(value=Decimal("0.5"))
    assert tolerance.of("params").allows(Decimal("0.089"), Decimal("8.9"))
    assert not tolerance.of("params").allows(Decimal("0.09"), Decimal("8.9"))
    assert str(parse_tolerance("params=1%")) == "params=1%"


@pytest.mark.parametrize(
    "text", ["", "x", "-0.1", "nan", "inf", "0.1,0.2", "top2=1", "top1=", "params=1,params=2", "%"]
)
def test_what_is_no_tolerance_is_refused_in_one_line(text):
    with pytest.raises(UsageError) as caught:
        parse_tolerance(text)
    assert len(caught.value.lines) == 1
