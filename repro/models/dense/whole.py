"""Whole detectors and segmenters as models of one image, for counting what a table may have printed in a row."""

from torch import Tensor, nn

from repro.models.dense.backbones import DETECTION, SEGMENTATION, backbone
from repro.models.dense.mask_rcnn import MaskRCNN
from repro.models.dense.semantic_fpn import SemanticFPN

__all__ = ["mask_rcnn", "semantic_fpn"]


class OneRegion(nn.Module):
    """Mask R-CNN up to its proposals, and its heads on one region.

    How many regions there are depends on the image, so that a count of operations with them would be of an image and
    not of a model. Every parameter is used.
    """

    def __init__(self, detector: MaskRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the outputs of every head."""
        levels = self.detector.features(x)
        found = [output for level in levels for output in self.detector.rpn_head(level)]
        heads = self.detector.roi_head
        return [*found, *heads.bbox_head(levels[0][..., :7, :7]), heads.mask_head(levels[0][..., :14, :14])]


class Logits(nn.Module):
    """Semantic FPN up to its logits."""

    def __init__(self, segmenter: SemanticFPN) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes, H / 4, W / 4)."""
        return self.segmenter.logits(x)


def mask_rcnn(name: str, classes: int = 80) -> OneRegion:
    """Mask R-CNN over a named backbone: a spec's ``builder: python``."""
    return OneRegion(MaskRCNN(backbone(name, DETECTION), classes))


def semantic_fpn(name: str, classes: int = 150) -> Logits:
    """Semantic FPN over a named backbone: a spec's ``builder: python``."""
    return Logits(SemanticFPN(backbone(name, SEGMENTATION), classes))
