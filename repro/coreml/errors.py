"""What can be wrong with a Core ML package or a conversion, each said in one line."""

from __future__ import annotations

from repro.errors import ReproError


class PackageError(ReproError):
    """A package that cannot be read: missing, truncated, of another kind or newer than this program."""


class ProgramError(ReproError):
    """A program that cannot be executed as asked: a wrong input, or an op whose result is not what it declares."""


class UnknownOpError(ProgramError):
    """A program with an op, or an op with a parameter, that the interpreter does not know; the message names it."""


class ConversionError(ReproError):
    """A module that coremltools does not convert; the message ends with coremltools' own last words."""
