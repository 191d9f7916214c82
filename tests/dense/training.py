"""A plain training of the tiny detector: the losses of the standard configuration, fewer samples."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from repro.models.dense.images import MEAN, STD
from repro.models.dense.mask_rcnn import STRIDES, MaskRCNN, anchors_of, pool
from repro.models.dense.semantic_fpn import SemanticFPN
from tests.dense.made import shapes


def encode(boxes: Tensor, targets: Tensor, spread: tuple[float, ...]) -> Tensor:
    """The deltas that move ``boxes`` onto ``targets``."""
    size, goal = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centre = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / size
    return torch.cat([centre, (goal / size).log()], 1) / torch.tensor(spread)


def example(draw: np.random.Generator, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised pixels (1, 3, H, W), boxes (N, 4), labels (N,) and masks (N, H, W) of one made image."""
    image, instances = shapes(draw, height, width, 3)
    pixels = (torch.from_numpy(image).permute(2, 0, 1).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    boxes = torch.tensor([item["box"] for item in instances], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.from_numpy(np.stack([item["mask"] for item in instances])).float()
    return pixels[None], boxes, torch.tensor([item["kind"] for item in instances]), masks


def rpn_loss(model: MaskRCNN, levels: list[Tensor], boxes: Tensor, draw: torch.Generator) -> Tensor:
    """Objectness and deltas of up to 64 anchors."""
    logits, deltas, anchors = [], [], []
    for stride, level in zip(STRIDES, levels, strict=True):
        logit, delta = model.rpn_head(level)
        logits.append(logit[0].permute(1, 2, 0).reshape(-1))
        deltas.append(delta[0].permute(1, 2, 0).reshape(-1, 4))
        anchors.append(anchors_of(level.shape[-2:], stride))
    logit, delta, anchor = torch.cat(logits), torch.cat(deltas), torch.cat(anchors)
    iou = box_iou(anchor, boxes)
    best, of = iou.max(1)
    good = best >= 0.7
    good[(iou == iou.max(0).values).any(1) & (best >= 0.3)] = True
    bad = ((best < 0.3) & ~good).nonzero()[:, 0]
    bad = bad[torch.randperm(len(bad), generator=draw)[:48]]
    chosen = torch.cat([good.nonzero()[:, 0], bad])
    loss = F.binary_cross_entropy_with_logits(logit[chosen], good[chosen].float())
    return loss + F.l1_loss(delta[good], encode(anchor[good], boxes[of[good]], (1, 1, 1, 1)))


def roi_loss(
    model: MaskRCNN, levels: list[Tensor], size: tuple[int, int], truth: tuple[Tensor, Tensor, Tensor],
    draw: torch.Generator,
) -> Tensor:  # fmt: skip
    """Classes, deltas and masks of up to 64 proposals."""
    boxes, labels, masks = truth
    with torch.no_grad():
        proposals = torch.cat([boxes, model.propose([level.detach() for level in levels], size)[:200]])
    best, of = box_iou(proposals, boxes).max(1)
    good, bad = (best >= 0.5).nonzero()[:, 0], (best < 0.5).nonzero()[:, 0]
    good = good[torch.randperm(len(good), generator=draw)[:16]]
    bad = bad[torch.randperm(len(bad), generator=draw)[:48]]
    chosen = torch.cat([good, bad])
    logits, deltas = model.roi_head.bbox_head(pool(levels, proposals[chosen], 7))
    target = torch.full((len(chosen),), model.classes)
    target[: len(good)] = labels[of[good]]
    loss = F.cross_entropy(logits, target)
    place = torch.arange(len(good))
    wanted = encode(proposals[good], boxes[of[good]], (0.1, 0.1, 0.2, 0.2))
    loss = loss + F.l1_loss(deltas.view(len(chosen), -1, 4)[place, target[: len(good)]], wanted)
    drawn = model.roi_head.mask_head(pool(levels, proposals[good], 14))[place, target[: len(good)]]
    rois = torch.cat([of[good][:, None].float(), proposals[good]], 1)
    goal = roi_align(masks[:, None], rois, 28, aligned=True)[:, 0]
    return loss + F.binary_cross_entropy_with_logits(drawn, (goal >= 0.5).float())


def train_detector(model: MaskRCNN, steps: int, height: int = 64, width: int = 192) -> MaskRCNN:
    """A few hundred steps of Adam, two made images each."""
    draw, choose = np.random.default_rng(99), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        images = [example(draw, height, width) for _ in range(2)]
        levels = model.features(torch.cat([image[0] for image in images]))
        loss = torch.zeros(())
        for i, (_, boxes, labels, masks) in enumerate(images):
            own = [level[i : i + 1] for level in levels]
            loss = loss + rpn_loss(model, own, boxes, choose)
            loss = loss + roi_loss(model, own, (height, width), (boxes, labels, masks), choose)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return model.eval()


def train_segmenter(model: SemanticFPN, images: Tensor, labels: Tensor, steps: int) -> SemanticFPN:
    """Adam on batches of four; labels int64 (N, H, W), -1 is ignored."""
    draw = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (4,), generator=draw)
        logits = F.interpolate(model.logits(images[chosen]), size=labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels[chosen], ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()
