"""One model, float32, on the CPU: images per second of timm's validation and of this project's, side by side.

    python benchmarks/accuracy_one_model.py [--images 1000] [--rounds 1] [--validate .../validate.py] [MODEL ...]

For each model both evaluate the same images with the same weights, one after the other, each in a process of its own
and in alternating order. timm's side is its validation script: the file itself with ``--validate`` (it is in timm's
repository, not in its package), otherwise the same steps with timm's own reader, loader, normalisation and ranking,
with the script's defaults (batches of 256, 4 workers). Rates are those of the loops over the images, without imports,
model building and warm-up; end-to-end times stand beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

MODELS = [
    "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small", "repvit_m0_9",
    "shvit_s1", "efficientnet_b0", "iformer_t", "iformer_m",
]  # fmt: skip
SIZES = [(500, 375), (500, 333), (375, 500), (500, 375), (640, 480), (500, 400)]  # ImageNet's common ones


def make_images(root: Path, count: int) -> None:
    """One JPEG in each of ``count`` class folders, with the spectrum and the file size of photographs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for index in range(min(count, 60)):
        width, height = SIZES[index % len(SIZES)]
        spectrum = np.fft.rfft2(rng.standard_normal((3, height, width)))
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        radius[0, 0] = 1
        picture = np.fft.irfft2(spectrum / radius, s=(height, width))
        picture = np.clip(picture / picture.std() * 50 + 120, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        file = root.with_name(f"{index}.jpg")
        Image.fromarray(picture).save(file, quality=88)
        files.append(file.read_bytes())
    for target in range(count):
        folder = root / f"n{target:08d}"
        folder.mkdir(parents=True)
        (folder / f"ILSVRC2012_val_{target + 1:08d}.JPEG").write_bytes(files[target % len(files)])


def make_weights(name: str, classes: int, file: Path) -> None:
    """Random weights with BatchNorm statistics, so that there is something to fold."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    size = model.pretrained_cfg["input_size"]
    with torch.no_grad():
        model.train()(torch.randn(8, *size))
    torch.save(model.state_dict(), file)


def build(name: str, classes: int, file: str) -> Any:
    """The model with those weights."""
    import timm
    import torch

    model = timm.create_model(name, num_classes=classes)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def peak(who: int) -> float:
    """MB of memory that the largest process took."""
    return resource.getrusage(who).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def as_timm(args: argparse.Namespace) -> dict[str, Any]:
    """What timm's validation script does, step by step."""
    import torch
    from timm.data import create_dataset, create_loader, resolve_data_config
    from timm.utils import AverageMeter, accuracy

    (name,), (file,) = args.models, args.weights
    device = torch.device(args.device)
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    model = build(name, args.images, file).to(device)
    config = resolve_data_config({}, model=model, use_test_size=True)
    loader = create_loader(
        create_dataset("", root=args.data, split="validation", input_img_mode="RGB"),
        input_size=config["input_size"],
        batch_size=args.batch,
        use_prefetcher=True,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=args.workers,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=device,
    )
    criterion = torch.nn.CrossEntropyLoss().to(device)
    top1, top5, losses, best = AverageMeter(), AverageMeter(), AverageMeter(), []
    with torch.inference_mode():
        model(torch.randn((args.batch, *config["input_size"]), device=device))
        start = time.perf_counter()
        for images, target in loader:
            logits = model(images)
            losses.update(criterion(logits, target).item(), len(images))
            first, fifth = accuracy(logits, target, topk=(1, 5))
            top1.update(first.item(), len(images))
            top5.update(fifth.item(), len(images))
            best += logits.argmax(dim=1).tolist()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "top1": {name: best}, "peak": peak(resource.RUSAGE_SELF)}


def as_validate(args: argparse.Namespace) -> dict[str, Any]:
    """timm's validation script itself; its own loop time is what it logs last."""
    (name,), (file,) = args.models, args.weights
    command = [sys.executable, args.validate, "--data-dir", args.data, "--model", name, "--checkpoint", file]
    command += ["--num-classes", str(args.images), "-b", str(args.batch), "-j", str(args.workers)]
    command += ["--device", args.device, "--log-freq", "1"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in done.stdout.splitlines() if "Test: [" in line]
    per_batch = float(lines[-1].split("(")[1].split("s,")[0])
    return {"seconds": per_batch * len(lines), "top1": {}, "peak": peak(resource.RUSAGE_CHILDREN)}


def as_repro(args: argparse.Namespace) -> dict[str, Any]:
    """This project: all of ``args.models`` in one pass."""
    import timm
    from accuracy_one_model import build  # by a name under which the evaluation's process finds it

    from repro.accuracy.datasets import open_dataset
    from repro.accuracy.engine import Status, evaluate
    from repro.accuracy.job import ModelEntry, Options
    from repro.accuracy.preprocess import Preprocessing

    entries = []
    for name, file in zip(args.models, args.weights, strict=True):
        config = timm.get_pretrained_cfg(name, allow_unregistered=True).to_dict()
        entries.append(
            ModelEntry(
                name=name,
                identity=file,
                build=partial(build, name, args.images, file),
                preprocessing=Preprocessing.for_model(argparse.Namespace(pretrained_cfg=config)),
            )
        )
    seconds = 0.0
    started = time.perf_counter()

    def note(status: Status) -> None:
        nonlocal seconds, started
        if not status.done:
            started = time.perf_counter()
        seconds = time.perf_counter() - started

    result = evaluate(
        open_dataset(args.data, classes=args.images), entries, options=Options(device=args.device), progress=note
    )
    if result.failures:
        raise SystemExit(f"failed: {result.failures}")
    top1 = {name: predictions.top5[:, 0].tolist() for name, predictions in result.predictions.items()}
    return {"seconds": seconds, "top1": top1, "passes": result.passes, "peak": peak(resource.RUSAGE_CHILDREN)}


ROLES = {"timm": as_timm, "validate": as_validate, "repro": as_repro}


def run(role: str, args: argparse.Namespace, models: list[str], weights: list[Path]) -> dict[str, Any]:
    """Run one side in a process of its own; add its wall and CPU time."""
    command = [sys.executable, str(Path(__file__).resolve()), "--role", role, "--data", args.data, *models]
    command += ["--weights", *map(str, weights), "--images", str(args.images), "--batch", str(args.batch)]
    command += ["--workers", str(args.workers), "--device", args.device]
    command += ["--validate", args.validate] if args.validate else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result["wall"] = time.perf_counter() - start
    result["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("models", nargs="*", default=[])
    made.add_argument("--images", type=int, default=1000, help="images, each in a class folder of its own")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--validate", help="timm's validate.py; its steps, written out here, when not given")
    made.add_argument("--batch", type=int, default=256, help="timm's side only; validate.py's default")
    made.add_argument("--workers", type=int, default=4, help="timm's side only; validate.py's default")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    made.add_argument("--data", help=argparse.SUPPRESS)
    made.add_argument("--weights", nargs="*", help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    if args.role:
        print(json.dumps(ROLES[args.role](args)))
        return
    models = args.models or MODELS
    other = "validate" if args.validate else "timm"
    with tempfile.TemporaryDirectory() as folder:
        args.data = str(Path(folder) / "val")
        make_images(Path(args.data), args.images)
        ratios: dict[str, float] = {}
        print(f"{'model':24} {'timm':>9} {'repro':>9} {'ratio':>6}   same top-1   end to end   CPU seconds")
        for name in models:
            file = Path(folder) / f"{name}.pth"
            make_weights(name, args.images, file)
            rounds = []
            for number in range(args.rounds):
                order = (other, "repro") if number % 2 == 0 else ("repro", other)
                rounds.append({role: run(role, args, [name], [file]) for role in order})
            ratios[name] = statistics.median(r[other]["seconds"] / r["repro"]["seconds"] for r in rounds)
            theirs, ours = rounds[0][other], rounds[0]["repro"]
            rates = [args.images / statistics.median(r[role]["seconds"] for r in rounds) for role in (other, "repro")]
            pairs = list(zip(theirs["top1"].get(name, []), ours["top1"][name], strict=False))
            same = f"{sum(a == b for a, b in pairs)}/{len(pairs)}" if pairs else "-"
            print(
                f"{name:24} {rates[0]:7.1f}/s {rates[1]:7.1f}/s {ratios[name]:6.2f}   {same:>10}   "
                f"{theirs['wall']:.0f} / {ours['wall']:.0f} s   {theirs['cpu']:.0f} / {ours['cpu']:.0f}",
                flush=True,
            )
        mean = math.exp(statistics.fmean(map(math.log, ratios.values())))
        print(f"geometric mean of {len(ratios)} ratios: {mean:.2f} (lowest {min(ratios.values()):.2f})")


if __name__ == "__main__":
    main()
