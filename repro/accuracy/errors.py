"""What can be wrong with a data set or an evaluation; each message is one line."""

from __future__ import annotations

from repro.errors import ReproError


class DatasetError(ReproError):
    """A data set that is not what it should be: too few classes, no images, labels that do not fit."""


class CorruptImageError(DatasetError):
    """An image that cannot be decoded.

    Attributes
    ----------
    name
        The image's path relative to the data set.
    reason
        What the decoder said.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: cannot be decoded: {reason} (corrupt images can be skipped and counted on request)")


class EvaluationError(ReproError):
    """An evaluation that cannot run or did not finish."""
