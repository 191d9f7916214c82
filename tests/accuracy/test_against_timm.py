"""Per-image predictions against timm's own evaluation: its reader, its transform, its loader, its ranking."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn

from repro.accuracy.datasets import open_dataset
from repro.accuracy.engine import evaluate
from repro.accuracy.job import ModelEntry
from repro.accuracy.preprocess import Preprocessing, Preprocessor, normalise
from repro.accuracy.statistics import accuracy
from tests.accuracy import made

# name, and what its config says otherwise: sizes, crops and interpolations that the tables' models have or could have
SMALL = [
    ("test_resnet", {"input_size": (3, 64, 64)}),
    ("test_efficientnet", {"input_size": (3, 64, 64), "crop_pct": 0.875}),
    ("test_byobnet", {"input_size": (3, 64, 64), "crop_pct": 1.0, "interpolation": "bilinear"}),
    ("test_convnext", {"input_size": (3, 96, 96), "crop_mode": "squash", "crop_pct": 0.9}),
    ("test_mambaout", {"input_size": (3, 64, 64), "test_input_size": (3, 96, 96), "test_crop_pct": 0.95}),
    ("test_efficientnet", {"input_size": (3, 64, 64), "crop_mode": "border", "mean": (0.1, 0.5, 0.9)}),
    ("test_resnet", {"input_size": (3, 64, 64), "interpolation": "lanczos", "crop_pct": 0.8}),
    ("test_efficientnet", {"input_size": (3, 64, 96), "crop_pct": 0.9, "interpolation": "bicubic"}),
    ("test_vit", {"interpolation": "nearest"}),
]
FULL = [
    ("mobilenetv3_large_100", {}),
    ("mobilenetv4_conv_small", {}),  # 256 px, crop 0.95 in tests
    ("repvit_m0_9", {}),  # reparameterised
    ("mobileone_s0", {}),  # reparameterised, bilinear, crop 0.9
    ("shvit_s1", {}),
    ("mobilevit_xxs", {}),  # 256 px, no normalisation
    ("iformer_t", {}),
    ("resnet10t", {"crop_mode": "squash"}),
]


def timm_logits(model: nn.Module, root: Path, batch: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits, targets and names as timm's validation script gets them, with its defaults."""
    config = resolve_data_config({}, model=model, use_test_size=True)
    dataset = create_dataset("", root=str(root), split="validation", input_img_mode="RGB")
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=batch,
        use_prefetcher=True,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=torch.device("cpu"),
    )
    logits, targets = [], []
    with torch.inference_mode():
        for images, target in loader:
            logits.append(model(images))
            targets.append(target)
    return torch.cat(logits).numpy(), torch.cat(targets).numpy(), dataset.filenames()


def assert_same_ranking(top5: np.ndarray, logits: np.ndarray, gap: float = 1e-4) -> int:
    """Compare place after place, save where the logits of two places lie within ``gap``; return how many do."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :6]
    values = np.take_along_axis(logits, order, axis=1)
    close = np.abs(np.diff(values, axis=1)) < gap
    near = close[:, :5].copy()
    near[:, 1:] |= close[:, :4]
    wrong = ~((top5 == order[:, :5]) | near)
    assert not wrong.any(), (
        f"{wrong.sum()} places differ, at gaps up to {np.abs(np.diff(values, axis=1))[:, :5][wrong].max()}"
    )
    return int(near[:, 0].sum())


def entries(models: list[tuple[str, dict[str, Any]]], classes: int, folder: Path) -> list[tuple[ModelEntry, nn.Module]]:
    result = []
    for seed, (name, overlay) in enumerate(models):
        arguments = {"pretrained_cfg_overlay": overlay} if overlay else {}
        if name == "test_vit":
            arguments["img_size"] = 160
        size = timm.create_model(name, **arguments).pretrained_cfg["input_size"][-1]
        model = made.seeded(name, seed, classes=classes, size=size, **arguments).eval()
        file = folder / f"{seed}.pt"
        torch.save(model.state_dict(), file)
        entry = ModelEntry(
            name=f"{seed} {name}",
            identity=str(file),
            build=partial(made.load, name, str(file), {"num_classes": classes, **arguments}),
            preprocessing=Preprocessing.for_model(model),
        )
        result.append((entry, model))
    return result


def compare(models: list[tuple[str, dict[str, Any]]], root: Path, classes: int, folder: Path, batch: int) -> None:
    made_entries = entries(models, classes, folder)
    dataset = open_dataset(root, classes=classes)
    result = evaluate(dataset, [entry for entry, _ in made_entries])
    assert not result.failures
    assert not result.skipped
    assert result.passes == 1
    for entry, model in made_entries:
        predictions = result.predictions[entry.name]
        logits, targets, names = timm_logits(model, root, batch)
        assert predictions.image.tolist() == names
        assert predictions.target.tolist() == targets.tolist()
        ties = assert_same_ranking(predictions.top5, logits)
        assert ties < len(names) / 20, f"{entry.name}: the made weights hardly tell classes apart"
        distinct = len({tuple(row) for row in predictions.top5.tolist()})
        assert distinct > len(names) / 4, f"{entry.name}: the same classes for all images compare nothing"
        if not ties:
            best = torch.from_numpy(logits).topk(5).indices.numpy()
            for k in (1, 5):
                expected = (best[:, :k] == targets[:, None]).any(axis=1).sum()
                assert accuracy(predictions, k).correct == expected


def test_nine_small_models_equal_timm(tmp_path):
    root = made.image_folder(tmp_path / "images", classes=14, per_class=4)
    compare(SMALL, root, 14, tmp_path, batch=16)


@pytest.mark.slow
def test_eight_real_models_on_a_thousand_classes_equal_timm(tmp_path):
    root = made.image_folder(tmp_path / "images", classes=1000, scale=2, more=2)
    assert len(list(root.rglob("*.JPEG"))) == 1000  # and two PNG files
    compare(FULL, root, 1000, tmp_path, batch=50)


@pytest.mark.parametrize(("name", "overlay"), [*SMALL, *FULL[:3]])
def test_pixels_are_timms_bit_for_bit(name, overlay, tmp_path):
    root = made.image_folder(tmp_path, classes=14, scale=2)
    model = timm.create_model(name, pretrained_cfg_overlay=overlay)
    preprocessing = Preprocessing.for_model(model)
    config = resolve_data_config({}, model=model, use_test_size=True)
    loader = create_loader(
        create_dataset("", root=str(root), split="validation", input_img_mode="RGB"),
        batch_size=14,
        num_workers=0,
        device=torch.device("cpu"),
        **config,
    )
    (expected, _), *rest = loader
    assert not rest
    preprocessor = Preprocessor([preprocessing, Preprocessing(input_size=(3, 40, 40))])
    pixels = [preprocessor(sample.data, sample.name)[0] for sample in open_dataset(root, classes=14)]
    assert torch.equal(normalise(torch.from_numpy(np.stack(pixels)), preprocessing), expected)
