"""Which model, stages and output norms the detector of a row has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from repro.errors import ModelError

__all__ = ["Backbone", "backbone"]

Rename = Callable[[str], str]


class Backbone(nn.Module):
    """A model's four stages and the norms on their outputs.

    Parameters
    ----------
    body
        A timm model, its head removed.
    indices
        Of ``forward_intermediates``: the stages of strides 4, 8, 16 and 32.
    channels
        Of the four maps.
    norms
        One for each map; None for maps that go out as they are.
    official
        From a key of this module to the key in the family's own detection code.
    """

    def __init__(
        self,
        body: nn.Module,
        indices: Sequence[int],
        channels: Sequence[int],
        norms: Sequence[nn.Module] | None = None,
        official: Rename = lambda key: key.removeprefix("body."),
    ) -> None:
        super().__init__()
        self.body = body
        self.indices, self.channels = tuple(indices), tuple(channels)
        self.norms = nn.ModuleList(norms) if norms is not None else None
        self._official = official

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to maps (B, channels[i], H / stride, W / stride)."""
        body: Any = self.body
        maps = body.forward_intermediates(x, indices=list(self.indices), intermediates_only=True)
        if self.norms is not None:
            maps = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return maps

    def official_keys_of(self, model: nn.Module) -> dict[str, str]:
        """Each released key of a detector or segmenter whose ``backbone`` this is, with the key in ``model``."""
        prefix = "backbone."
        return {
            prefix + self._official(key.removeprefix(prefix)) if key.startswith(prefix) else key: key
            for key in model.state_dict()
        }


def _resnet50(deep_stem: bool = False) -> Backbone:
    import timm

    body = timm.create_model("resnet50c" if deep_stem else "resnet50", num_classes=0)

    def official(key: str) -> str:
        key = key.removeprefix("body.")
        if deep_stem:  # timm calls the stem's last norm bn1
            key = key.replace("conv1.", "stem.", 1) if key.startswith("conv1.") else key
            key = key.replace("bn1.", "stem.7.", 1) if key.startswith("bn1.") else key
        return key

    return Backbone(body, (1, 2, 3, 4), (256, 512, 1024, 2048), official=official)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet50": _resnet50,
    "resnet50_v1c": partial(_resnet50, deep_stem=True),
}


def backbone(name: str) -> Backbone:
    """Build the backbone of a row's detector, with random weights.

    Raises
    ------
    ModelError
        For a name that no row has.
    """
    if name not in BACKBONES:
        raise ModelError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]()
