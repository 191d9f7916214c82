"""Mask R-CNN with the conventions of MMDetection's standard 1x COCO configuration, for inference.

Mask R-CNN - https://arxiv.org/abs/1703.06870

Source of the conventions: MMDetection 3.3.0, configs/_base_/models/mask-rcnn_r50_fpn.py and the modules that it names
(anchor generator, box coder, RPN head, RoI extractor, box and mask head), read for their numbers, order and key names.
They differ from torchvision's Mask R-CNN in ways that move a released checkpoint's boxes: one anchor scale of 8 strides
centred on the top-left corner of a cell, RoIAlign aligned with an adaptive number of samples, classes with the
background last, no small boxes dropped, boxes clipped to the resized image and not to its padding.

Own keys are the released checkpoints' keys; of the backbone's, ``backbones`` and ``layouts`` say what they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from repro.models.dense.backbones import Backbone
from repro.models.dense.fpn import FPN, ConvModule
from repro.models.dense.images import ImageInput

__all__ = ["Detections", "MaskRCNN", "TestSettings", "paste_masks"]

STRIDES = (4, 8, 16, 32, 64)  # of the anchors' levels; RoIs use the first four
_LARGEST_CHANGE = abs(log(16 / 1000))  # of a box's logarithmic size
_PER_CLASS_FROM = 10_000  # boxes; the toolkit then runs NMS class by class instead of on shifted boxes


@dataclass(frozen=True, kw_only=True)
class TestSettings:
    """Thresholds of inference; the defaults are the standard configuration's ``test_cfg``.

    Attributes
    ----------
    rpn_per_level, rpn_nms, rpn_kept
        Highest-scoring anchors of each level that are decoded, IoU of their suppression, proposals kept of all levels.
    score, box_nms, kept
        Least score of a detection, IoU of suppression within a class, detections kept of an image.
    mask
        Least probability of a mask's pixel.
    """

    __test__ = False  # not pytest's

    rpn_per_level: int = 1000
    rpn_nms: float = 0.7
    rpn_kept: int = 1000
    score: float = 0.05
    box_nms: float = 0.5
    kept: int = 100
    mask: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one image, highest score first.

    Attributes
    ----------
    boxes
        float32 (N, 4): left, top, right, bottom in pixels of the original image.
    scores
        float32 (N,).
    labels
        int64 (N,): class indices from 0, without background.
    masks
        float32 (N, 28, 28): the masks' probabilities in their boxes; :func:`paste_masks` puts them into the image.
    height, width
        Of the original image.
    threshold
        Least probability of a mask's pixel.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    height: int
    width: int
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.boxes)

    def pasted(self) -> Iterator[np.ndarray]:
        """Yield each full-size mask, uint8 (height, width), one at a time."""
        return paste_masks(self.masks, self.boxes, self.height, self.width, self.threshold)


class RPNHead(nn.Module):
    """Objectness and box deltas of three anchors a position."""

    def __init__(self, channels: int = 256, anchors: int = 3) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, anchors, 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * anchors, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to logits (B, A, H, W) and deltas (B, 4A, H, W)."""
        x = F.relu(self.rpn_conv(x), inplace=True)
        return self.rpn_cls(x), self.rpn_reg(x)


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits and a box a class."""

    def __init__(self, classes: int, channels: int = 256, size: int = 7, hidden: int = 1024) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(hidden, classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * classes)
        self.shared_fcs = nn.ModuleList([nn.Linear(channels * size * size, hidden), nn.Linear(hidden, hidden)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features (R, C, 7, 7) to logits (R, classes + 1), background last, and deltas (R, 4 * classes)."""
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x), inplace=True)
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Module):
    """Four 3x3 convolutions, a transposed one, and a mask a class."""

    def __init__(self, classes: int, channels: int = 256, convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(channels, channels, 3) for _ in range(convs)])
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """RoI features (R, C, 14, 14) to logits (R, classes, 28, 28)."""
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return self.conv_logits(F.relu(self.upsample(x), inplace=True))


class RoIHead(nn.Module):
    """The box head and the mask head, under the toolkit's names."""

    def __init__(self, classes: int, channels: int = 256, hidden: int = 1024) -> None:
        super().__init__()
        self.bbox_head = BoxHead(classes, channels, hidden=hidden)
        self.mask_head = MaskHead(classes, channels)


class MaskRCNN(nn.Module):
    """Mask R-CNN over a four-stage backbone.

    Parameters
    ----------
    backbone
        Gives four maps of strides 4, 8, 16 and 32.
    classes
        Without the background.
    channels, hidden
        Of the pyramid's levels, and of the box head's layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int = 80,
        settings: TestSettings | None = None,
        *,
        channels: int = 256,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.settings = settings or TestSettings()
        self.backbone = backbone
        self.neck = FPN(backbone.channels, channels, levels=len(STRIDES))
        self.rpn_head = RPNHead(channels)
        self.roi_head = RoIHead(classes, channels, hidden)

    def official_keys(self) -> dict[str, str]:
        """Each key of a released checkpoint, with the key here."""
        return self.backbone.official_keys_of(self)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, H, W) to five levels (B, 256, H / stride, W / stride)."""
        return self.neck(self.backbone(pixels))

    @torch.inference_mode()
    def forward(self, image: ImageInput) -> Detections:
        """Detect the instances in one prepared image."""
        levels = self.features(image.pixels)
        proposals = self.propose(levels, image.size)
        boxes, scores, labels = self.detect(levels, proposals, image.size)
        masks = self.mask(levels, boxes, labels)
        return Detections(
            boxes=boxes / boxes.new_tensor(image.scale).repeat(2),
            scores=scores,
            labels=labels,
            masks=masks,
            height=image.original[0],
            width=image.original[1],
            threshold=self.settings.mask,
        )

    def propose(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Proposals (R, 4) in pixels of the resized image of ``size`` (height, width), highest score first."""
        found = []
        for stride, level in zip(STRIDES, levels, strict=True):
            logits, deltas = self.rpn_head(level)
            scores = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            kept = slice(None)
            if len(scores) > self.settings.rpn_per_level:
                scores, order = scores.sort(descending=True)
                scores, kept = scores[: self.settings.rpn_per_level], order[: self.settings.rpn_per_level]
            anchors = anchors_of(level.shape[-2:], stride).to(level)[kept]
            found.append((scores, decode(anchors, deltas[kept], size, (1.0, 1.0, 1.0, 1.0))))
        scores = torch.cat([scores for scores, _ in found])
        boxes = torch.cat([boxes for _, boxes in found])
        groups = torch.cat([torch.full_like(part, i, dtype=torch.long) for i, (part, _) in enumerate(found)])
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        scores, boxes, groups = scores[solid], boxes[solid], groups[solid]
        return boxes[grouped_nms(boxes, scores, groups, self.settings.rpn_nms)[: self.settings.rpn_kept]]

    def detect(
        self, levels: Sequence[Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4) in the resized image, scores (N,) and labels (N,), highest score first."""
        logits, deltas = self.roi_head.bbox_head(pool(levels, proposals, 7))
        scores = logits.softmax(-1)[:, :-1].reshape(-1)
        (above,) = (scores > self.settings.score).nonzero(as_tuple=True)
        of, labels = above // self.classes, above % self.classes
        # only the boxes of detections are decoded: a few hundred of 80,000
        boxes = decode(proposals[of], deltas.view(-1, 4)[above], size, (0.1, 0.1, 0.2, 0.2))
        scores = scores[above]
        kept = grouped_nms(boxes, scores, labels, self.settings.box_nms)[: self.settings.kept]
        return boxes[kept], scores[kept], labels[kept]

    def mask(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (N, 28, 28) of the mask of each detection's class."""
        if not len(boxes):
            return boxes.new_zeros((0, 28, 28))
        logits = self.roi_head.mask_head(pool(levels, boxes, 14))
        return logits[torch.arange(len(boxes)), labels].sigmoid()


def anchors_of(
    shape: Sequence[int], stride: int, scale: float = 8.0, ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> Tensor:
    """Anchors (H * W * 3, 4) of a level of ``shape`` (H, W): the ratios (height to width) of a position side by side.

    Centred on the top-left corner of a position's cell; their area is (scale * stride)^2.
    """
    root = torch.tensor(ratios).sqrt()
    half_h, half_w = 0.5 * (stride * root * scale), 0.5 * (stride * (1 / root) * scale)
    base = torch.stack([-half_w, -half_h, half_w, half_h], dim=-1)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) * stride for n in shape), indexing="ij")
    shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shift + base).reshape(-1, 4)


def decode(boxes: Tensor, deltas: Tensor, size: tuple[int, int], spread: Sequence[float]) -> Tensor:
    """Move boxes (N, 4) by deltas (N, 4) of centre and log size, in units of ``spread``, and clip them to ``size``."""
    deltas = deltas * deltas.new_tensor(spread)
    extent = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + extent * deltas[:, :2]
    half = extent * deltas[:, 2:].clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp() * 0.5
    found = torch.cat([centre - half, centre + half], dim=-1)
    return torch.minimum(found.clamp(min=0), found.new_tensor([size[1], size[0]]).repeat(2))


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Indices of the boxes that stay, highest score first; boxes of different groups do not suppress one another.

    As the toolkit has it, boxes are shifted apart, a group at a time, and suppressed together: the shift rounds their
    coordinates, which now and then decides a pair on the threshold, so torchvision's ``batched_nms`` is not the same.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    shifted = boxes + groups.to(boxes).unsqueeze(1) * (boxes.max() + 1)
    if len(boxes) < _PER_CLASS_FROM:
        return nms(shifted, scores, iou)
    each = (_where(groups, group) for group in groups.unique())
    kept = torch.cat([where[nms(shifted[where], scores[where], iou)] for where in each]).sort().values
    return kept[scores[kept].sort(descending=True).indices]


def _where(groups: Tensor, group: Tensor) -> Tensor:
    return (groups == group).nonzero().squeeze(1)


def pool(levels: Sequence[Tensor], boxes: Tensor, out: int) -> Tensor:
    """RoI features (R, C, out, out) of boxes (R, 4), each from the level that its size asks for.

    Boxes of 112 px on a side and less come from the level of stride 4, up to 224 from 8, up to 448 from 16.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    of = torch.log2(side / 56 + 1e-6).floor().clamp(0, 3).long()
    pooled = boxes.new_zeros((len(boxes), levels[0].shape[1], out, out))
    for i, (stride, level) in enumerate(zip(STRIDES[:4], levels, strict=False)):
        here = _where(of, of.new_tensor(i))
        if len(here):
            pooled[here] = roi_align(level, [boxes[here]], out, 1 / stride, sampling_ratio=0, aligned=True)
    return pooled


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Iterator[np.ndarray]:
    """Yield each mask (28, 28), resampled bilinearly into its box and cut at ``threshold``, as uint8 (height, width).

    One at a time, and only the box's window of it is ever a float image: 100 masks of a large image take no more
    memory than one.
    """
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        full = np.zeros((height, width), dtype=np.uint8)
        left, top = max(int(np.floor(box[0])) - 1, 0), max(int(np.floor(box[1])) - 1, 0)
        right, bottom = min(int(np.ceil(box[2])) + 1, width), min(int(np.ceil(box[3])) + 1, height)
        if right > left and bottom > top:
            x = _grid(left, right, box[0], box[2])
            y = _grid(top, bottom, box[1], box[3])
            grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
            window = F.grid_sample(mask[None, None].float().cpu(), grid[None], align_corners=False)
            full[top:bottom, left:right] = (window[0, 0] >= threshold).numpy()
        yield full


def _grid(start: int, stop: int, low: float, high: float) -> Tensor:
    """Pixel centres from ``start`` to ``stop``, in units in which the box reaches from -1 to 1."""
    ends = torch.tensor([low, high], dtype=torch.float32)
    found = (torch.arange(start, stop, dtype=torch.float32) + 0.5 - ends[0]) / (ends[1] - ends[0]) * 2 - 1
    return torch.where(found.isinf() | found.isnan(), torch.zeros_like(found), found)
