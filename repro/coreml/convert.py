"""Convert a torch module to a saved ML program, on any machine, without a word on the screen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repro import __version__
from repro.coreml.errors import ConversionError
from repro.coreml.quiet import import_coremltools, muffled
from repro.coreml.torch_ops import workarounds
from repro.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["float16", "float32"]
InputKind = Literal["tensor", "image"]
TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18")
#: Name of the input and of a network's output in every package made here.
INPUT, OUTPUT = "image", "logits"
#: Keys of the metadata written here begin with this.
METADATA_PREFIX = "repro."


def convert(
    module: nn.Module,
    path: str | Path,
    *,
    input_size: int | tuple[int, int, int],
    precision: Precision = "float16",
    target: str = "iOS15",
    input_kind: InputKind = "tensor",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_labels: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Trace a module and save it as an ML program (``.mlpackage``).

    The input is called ``image``. As a tensor it is the float array (1, C, H, W) that the module itself takes. As an
    image it is an RGB image, and ``(pixel / 255 - mean) / std`` is part of the program, channel by channel. The output
    is called ``logits``; with class labels the package is a classifier, whose probabilities are the softmax.

    Two conversions of the same module have the same :meth:`repro.coreml.package.Package.content_hash`.

    Parameters
    ----------
    module
        A network that takes one tensor and returns one, on the CPU in float32. It is traced in evaluation mode.
    path
        Where to save; an existing package is replaced once the new one is complete.
    input_size
        Pixels of a square RGB input, or (channels, height, width).
    precision
        Of the program's arithmetic and constants. What coremltools leaves in float32 at float16, because a constant
        would overflow, stays so.
    target
        Oldest system that can run it, iOS15 to iOS18; newer ones have more operators (attention from iOS18).
    input_kind
        tensor or image.
    mean, std
        Normalisation for values from 0 to 1, per channel; wanted for an image, noted in the metadata for a tensor.
    class_labels
        One for each output, in order.
    metadata
        Further entries for the package's user-defined metadata (variant, checkpoint's hash); versions are added.

    Returns
    -------
    Path
        The saved package.

    Raises
    ------
    UsageError
        An option that does not exist, or an image without its normalisation.
    ConversionError
        The module cannot be traced, or coremltools cannot convert it.
    """
    path = Path(path)
    size = (3, input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    _check(path, precision, target, input_kind, mean, std, size)
    ct = import_coremltools()
    import torch

    name = type(module).__name__
    example = torch.rand((1, *size))
    wrapped = _wrap(module.eval(), input_kind, mean, std, softmax=class_labels is not None)
    arguments: dict[str, Any] = {}
    if class_labels is not None:
        arguments["classifier_config"] = ct.ClassifierConfig(list(class_labels))
    kind = ct.ImageType if input_kind == "image" else ct.TensorType
    colour = {"color_layout": ct.colorlayout.RGB} if input_kind == "image" else {}
    with muffled(), workarounds():
        try:
            with torch.no_grad():
                scores = wrapped(example)
                _check_output(name, scores, class_labels)
                trace: Any = torch.jit.trace
                traced = trace(wrapped, example, check_trace=False)
            model = ct.convert(
                traced,
                convert_to="mlprogram",
                inputs=[kind(name=INPUT, shape=tuple(example.shape), **colour)],
                outputs=[ct.TensorType(name=OUTPUT)],
                compute_precision=getattr(ct.precision, precision.upper()),
                minimum_deployment_target=getattr(ct.target, target),
                skip_model_load=True,
                **arguments,
            )
        except ConversionError:
            raise
        except Exception as error:  # whatever a tracer and a converter raise: the boundary to their code is here
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise ConversionError(f"{name} cannot be converted: {reason}") from error
        notes = {
            "version": __version__,
            "torch": torch.__version__,
            "coremltools": ct.__version__,
            "precision": precision,
            "target": target,
            "input": input_kind,
            **({"mean": _numbers(mean), "std": _numbers(std)} if mean and std else {}),
            **(metadata or {}),
        }
        for key, value in sorted(notes.items()):
            model.user_defined_metadata[METADATA_PREFIX + key] = str(value)
        _save(model, path)
    return path


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(repr(float(value)) for value in values)


def _check(
    path: Path,
    precision: str,
    target: str,
    input_kind: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: tuple[int, ...],
) -> None:
    for what, value, allowed in (
        ("precision", precision, ("float16", "float32")),
        ("target", target, TARGETS),
        ("input kind", input_kind, ("tensor", "image")),
    ):
        if value not in allowed:
            raise UsageError(f"no {what} '{value}': one of {', '.join(allowed)}")
    if path.suffix != ".mlpackage":
        raise UsageError(f"{path}: a package's name ends in .mlpackage")
    if (mean is None) != (std is None) or (input_kind == "image" and mean is None):
        raise UsageError("a normalisation needs mean and std, and an image input needs a normalisation")
    if len(size) != 3 or (mean is not None and not len(mean) == len(std or ()) == size[0]):
        raise UsageError(f"input size is (channels, height, width), with a mean and std for each channel, not {size}")
    if input_kind == "image" and size[0] != 3:
        raise UsageError(f"an image input has 3 channels, not {size[0]}")


def _check_output(name: str, scores: Any, class_labels: Sequence[str] | None) -> None:
    if not hasattr(scores, "shape"):
        raise ConversionError(f"{name} cannot be converted: it returns a {type(scores).__name__}, not one tensor")
    if class_labels is not None and scores.numel() != len(class_labels):
        raise ConversionError(f"{name} cannot be converted: {len(class_labels)} labels for {scores.numel()} outputs")


def _wrap(
    module: nn.Module,
    input_kind: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    softmax: bool,
) -> nn.Module:
    """The module with what the package does besides: normalisation before it, softmax after it."""
    import torch
    from torch import Tensor, nn

    class Normalise(nn.Module):
        def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
            super().__init__()
            deviation = torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1, 1)
            offset = -torch.tensor(mean, dtype=torch.float64).reshape(1, -1, 1, 1) / deviation
            self.register_buffer("scale", (1 / (255 * deviation)).float())
            self.register_buffer("offset", offset.float())

        def forward(self, x: Tensor) -> Tensor:
            scaled: Tensor = x * self.get_buffer("scale") + self.get_buffer("offset")
            return scaled

    parts: list[nn.Module] = [module]
    if input_kind == "image" and mean is not None and std is not None:
        parts.insert(0, Normalise(mean, std))
    if softmax:
        parts.append(nn.Softmax(-1))
    return nn.Sequential(*parts).eval()


def _save(model: Any, path: Path) -> None:
    """Beside its place first, so that a package is either the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        fresh = Path(folder) / path.name
        model.save(str(fresh))
        if path.exists():
            path.rename(Path(folder) / "old.mlpackage")
        shutil.move(str(fresh), path)
