"""Figures from per-image predictions: accuracies, how sure they are, and whether two models really differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from repro.accuracy.errors import EvaluationError

if TYPE_CHECKING:
    from repro.accuracy.predictions import Predictions

# Up to this many differing images the binomial test is summed; beyond, its normal approximation is off by less
# than 1e-4 in the p-value.
EXACT_UP_TO = 1000


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of images, with its interval.

    Attributes
    ----------
    correct, total
        Counts of images.
    low, high
        Wilson interval at 95%, as shares.
    """

    correct: int
    total: int
    low: float
    high: float

    @property
    def percent(self) -> float:
        """The accuracy in percent, as tables print it."""
        return 100 * self.correct / self.total


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two models on the same images.

    Attributes
    ----------
    only_first, only_second
        Images that one model alone has right.
    total
        Images compared.
    p_value
        Two-sided, of McNemar's test: how often models of equal accuracy would differ this much.
    exact
        Whether the p-value is the binomial test's own, not its approximation.
    """

    only_first: int
    only_second: int
    total: int
    p_value: float
    exact: bool

    @property
    def points(self) -> float:
        """Accuracy of the first minus that of the second, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.total


def wilson(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a share, as shares; ``z`` is the normal quantile, 95% by default.

    Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22(158), 209-212.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is no share")
    share, weight = correct / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    # at the ends the interval touches 0 or 1, where rounding would leave it a little inside
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)


def mcnemar(only_first: int, only_second: int) -> tuple[float, bool]:
    """Two-sided p-value of McNemar's test, and whether it is exact.

    The images that both models have right or both wrong say nothing; of the others, each model has half when they
    are equally good: a binomial test. For many images the chi-square form with continuity correction.

    McNemar (1947), Psychometrika 12(2), 153-157; Edwards (1948), Psychometrika 13(3), 185-187.
    """
    fewer, total = min(only_first, only_second), only_first + only_second
    if fewer < 0:
        raise ValueError("counts are not negative")
    if total == 0:
        return 1.0, True
    if total <= EXACT_UP_TO:
        # int / int, not a product of floats: neither sum nor power need fit a float
        return min(1.0, 2 * sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total), True
    chi_square = max(0, abs(only_first - only_second) - 1) ** 2 / total
    return math.erfc(math.sqrt(chi_square / 2)), False


def _hits(predictions: Predictions, k: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray((predictions.top5[:, :k] == predictions.target[:, None]).any(axis=1))


def accuracy(predictions: Predictions, k: int = 1) -> Accuracy:
    """Top-``k`` accuracy, ``k`` up to 5.

    Raises
    ------
    EvaluationError
        When there are no predictions.
    """
    if not len(predictions):
        raise EvaluationError("no image was evaluated: no accuracy")
    correct, total = int(_hits(predictions, k).sum()), len(predictions)
    low, high = wilson(correct, total)
    return Accuracy(correct=correct, total=total, low=low, high=high)


def difference(first: Predictions, second: Predictions, k: int = 1) -> Difference:
    """Compare two models image by image.

    Raises
    ------
    EvaluationError
        When the two were not evaluated on the same images.
    """
    if not (np.array_equal(first.image, second.image) and np.array_equal(first.target, second.target)):
        raise EvaluationError("the two models were not evaluated on the same images")
    if not len(first):
        raise EvaluationError("no image was evaluated: no difference")
    right, other = _hits(first, k), _hits(second, k)
    only_first, only_second = int((right & ~other).sum()), int((other & ~right).sum())
    p_value, exact = mcnemar(only_first, only_second)
    return Difference(only_first=only_first, only_second=only_second, total=len(first), p_value=p_value, exact=exact)
