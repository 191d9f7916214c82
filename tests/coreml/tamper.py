"""Damage a saved package on purpose: a copy of it with its specification or its weights changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from repro.coreml import _proto

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


def read(package: Path) -> Any:
    """The package's specification."""
    spec = _proto.model_message()
    spec.ParseFromString((package / MODEL).read_bytes())
    return spec


def block(spec: Any) -> Any:
    """The main function's block."""
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def ops(spec: Any, kind: str) -> Iterator[Any]:
    """Every op of a type, in order."""
    return (op for op in block(spec).operations if op.type == kind)


def argument(spec: Any, op: Any, parameter: str) -> Any:
    """The tensor message of a constant argument, to be changed in place."""
    name = op.inputs[parameter].arguments[0].name
    const = next(item for item in ops(spec, "const") if item.outputs[0].name == name)
    return const.attributes["val"].immediateValue.tensor


def tampered(package: Path, copy: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the package whose specification is changed."""
    shutil.copytree(package, copy)
    spec = read(copy)
    change(spec)
    (copy / MODEL).write_bytes(spec.SerializeToString())
    return copy


def rewrite_manifest(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest in place."""
    manifest = json.loads((package / "Manifest.json").read_text())
    change(manifest)
    (package / "Manifest.json").write_text(json.dumps(manifest))
