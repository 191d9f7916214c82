"""Read weight files without running any code in them, and load them so that nothing is half loaded or guessed.

A file is safetensors, or what ``torch.save`` writes, read with ``weights_only``: tensors and plain containers, and of
classes only ``argparse.Namespace``, in which many official files keep their training arguments and which is a bag of
attributes. Training notes of the detection toolkits (histories of losses, as numpy arrays) are read as empty
placeholders. Any other class in the file is an error. No class is imported.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repro.errors import ModelError
from repro.models.official import StateDictError, load_official

# Under which name a file keeps its weights, the averaged ones first: what timm's own reader prefers, and what the
# families' official evaluations load.
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model", "net", "module")
_DEEPEST = 3  # a wrapper in a wrapper in a wrapper: {"ema": {"module": {...}}}
_CLASS = re.compile(r"Unsupported (?:global|class|type)[^:]*?:? (?:GLOBAL )?([\w.]+)|GLOBAL ([\w.]+)")


class _Ignored:
    """Stands for an object of a file's training notes: it takes anything, keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> _Ignored:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What MMDetection 3 and MMSegmentation 1 keep beside the weights.
_NOTES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)


class CheckpointError(ModelError):
    """A weight file that cannot be read, or that holds something else than weights."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a file, by their names in it; ``wrapper`` is the path to them inside the file."""

    tensors: Mapping[str, torch.Tensor]
    wrapper: tuple[str, ...] = ()


def read_weights(path: Path, wrapper: str | None = None) -> Weights:
    """Read the weights of a file.

    Parameters
    ----------
    wrapper
        The name under which the file keeps the wanted weights, where it keeps several; by rule when None.

    Raises
    ------
    CheckpointError
        For a file that is absent, cut short, of another kind, or that holds anything but tensors and plain values.
        No code of the file is run.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty")
    content = _safetensors(path) if _is_safetensors(head, path) else _torch(path, head)
    return _unwrap(path, content, wrapper)


def _is_safetensors(head: bytes, path: Path) -> bool:
    """Eight bytes with the length of a JSON object, then the object."""
    if path.suffix == ".safetensors":
        return True
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {_one_line(error)}") from error


def _torch(path: Path, head: bytes) -> Any:
    # A zip, or the stream of pickles that torch wrote before 1.6; anything else (a web page, say) is told as such.
    if not (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"):
        raise CheckpointError(f"{path}: not a weight file: it starts with {head[:8]!r}")
    try:
        # A released file may have been saved on a GPU, and is moved.
        known: list[Any] = [argparse.Namespace, *((_Ignored, name) for name in _NOTES)]
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch itself does not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if found := _CLASS.search(text):
            name = found[1] or found[2]
            raise CheckpointError(f"{path}: refused: the file asks for {name}, and code in weight files is never run; "
                                  "save its state dict alone, or as safetensors") from None  # fmt: skip
        reason = text[text.find("WeightsUnpickler error: ") :].splitlines()[0] if "WeightsUnpickler" in text else text
        raise CheckpointError(f"{path}: not a weight file: {_one_line(reason)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError,
            AssertionError, struct.error, zipfile.BadZipFile, UnicodeDecodeError) as error:  # fmt: skip
        raise CheckpointError(f"{path}: not a whole weight file: {_one_line(error)}") from error


def _one_line(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + "..."


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) for key in content)
        and any(isinstance(value, torch.Tensor) for value in content.values())
    )


def _unwrap(path: Path, content: Any, wrapper: str | None) -> Weights:
    found: tuple[str, ...] = ()
    if wrapper is not None:
        if not isinstance(content, Mapping) or wrapper not in content:
            have = ", ".join(map(str, content)) if isinstance(content, Mapping) and len(content) < 20 else "other keys"
            raise CheckpointError(f"{path}: no {wrapper!r} in the file; it has {have}")
        content, found = content[wrapper], (wrapper,)
    while not _is_state_dict(content):
        name = next(
            (name for name in WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)), None
        )
        if name is None or len(found) == _DEEPEST:
            kind = f"a mapping with {', '.join(map(str, list(content)[:10]))}" if isinstance(content, Mapping) else (
                f"a {type(content).__name__}")  # fmt: skip
            raise CheckpointError(f"{path}: no state dict in the file: it holds {kind}")
        content, found = content[name], (*found, name)
    odd = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(f"{path}: {odd[0]} is a {type(content[odd[0]]).__name__}, not a tensor")
    for prefix in ("module.", "_orig_mod."):  # what DistributedDataParallel and torch.compile put in front
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return Weights(tensors=content, wrapper=found)


def load_weights(model: nn.Module, path: Path, wrapper: str | None = None) -> nn.Module:
    """Load a file, in the model's own layout or the family's official one, strictly, and leave the model in eval mode.

    A distilled checkpoint needs a model that has both heads; ``repro.models.reparam`` then averages them.

    Raises
    ------
    CheckpointError
        As :func:`read_weights`, and with every missing, unexpected and misshapen key when the weights do not fit. The
        model is not changed then.
    """
    weights = read_weights(path, wrapper)
    tensors = dict(weights.tensors)
    own = model.state_dict()
    if tensors.keys() == own.keys() and all(tensors[name].shape == own[name].shape for name in own):
        model.load_state_dict(tensors, strict=True)
    else:
        try:
            _load_official(model, tensors)
        except StateDictError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return model.eval()  # again, though it was in eval mode: SBCFormer gathers its biases when it enters it


def _load_official(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    try:
        load_official(model, tensors)
    except StateDictError:
        raise
    except Exception as error:
        # A family's filter reads the keys it expects; of another architecture's file it says only what broke first.
        faults = "; ".join(_faults(model, tensors))
        raise StateDictError(f"the state dict does not fit {type(model).__name__}: {faults}") from error


def _faults(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    own = model.state_dict()
    faults = [f"missing key {name}" for name in own if name not in tensors]
    faults += [f"unexpected key {name}" for name in tensors if name not in own]
    faults += [
        f"{name} has shape {list(value.shape)}, the model {list(own[name].shape)}"
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    ]
    return faults
