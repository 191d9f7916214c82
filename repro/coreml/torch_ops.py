"""What coremltools lacks for networks that are otherwise within its reach, each with its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def workarounds() -> Iterator[None]:
    """Trace and convert inside of this; coremltools is imported already.

    - ``torch.swapaxes`` and ``torch.swapdims`` are other names of ``torch.transpose`` that the converter does not know
      (torchvision's MaxViT). https://pytorch.org/docs/2.7/generated/torch.swapaxes.html
    - ``nn.MultiheadAttention`` in evaluation mode takes a fused path for which there is no conversion (torchvision's
      vision transformers); without it, the same arithmetic is traced. https://github.com/apple/coremltools/issues/2311
    """
    import torch
    from coremltools.converters.mil.frontend.torch import torch_op_registry

    registry: Any = torch_op_registry._TORCH_OPS_REGISTRY
    transpose = registry.get_func("transpose")
    for name in ("swapaxes", "swapdims"):
        if name not in registry:
            registry.set_func_by_name(transpose, name)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
