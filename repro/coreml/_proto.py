"""coremltools' protobuf classes without coremltools.

``import coremltools`` takes seconds, prints a page of complaints on Linux and loads torch. The message classes that
describe a package are a folder of generated files inside it that needs protobuf alone: importing that folder under
a name of its own takes a tenth of a second. protobuf keeps one descriptor for a file, however often it is imported,
so these classes and those of a later ``import coremltools`` are the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

from repro.coreml.errors import PackageError

_ALIAS = "repro.coreml._coremltools_proto"


@cache
def _module(name: str) -> types.ModuleType:
    loaded = sys.modules.get(f"coremltools.proto.{name}")
    if loaded is not None:
        return loaded
    if _ALIAS not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or not spec.submodule_search_locations:
            raise PackageError("coremltools is not installed: its protobuf files are needed to read a Core ML package")
        package = types.ModuleType(_ALIAS)
        package.__path__ = [str(Path(folder) / "proto") for folder in spec.submodule_search_locations]
        sys.modules[_ALIAS] = package
    return importlib.import_module(f"{_ALIAS}.{name}")


def model_message() -> Any:
    """A new, empty ``CoreML.Specification.Model`` message."""
    return _module("Model_pb2").Model()


def decode_error() -> type[Exception]:
    """Protobuf's exception for bytes that are no message."""
    error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    return error
