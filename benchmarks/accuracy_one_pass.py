"""Eight models that share their preprocessing: one pass of this project against eight runs of timm's validation.

    python benchmarks/accuracy_one_pass.py [--images 1000] [--device cuda] [--validate .../validate.py] [MODEL ...]

The parts are those of ``accuracy_one_model.py``. The share of time that goes into images (reading, decoding,
resizing) is the time that one processor takes for them alone, as a share of the processor time of the whole run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from accuracy_one_model import make_images, make_weights, parser, run

# rows of Table 18 whose timm config says 224 px, crop 0.875, bicubic
MODELS = [
    "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "ghostnetv3_100",
    "shvit_s1", "shvit_s2", "iformer_t", "iformer_s",
]  # fmt: skip


def image_seconds(data: str, count: int) -> float:
    """Processor time for one image's way from file to pixels."""
    from repro.accuracy.datasets import open_dataset
    from repro.accuracy.preprocess import Preprocessing, Preprocessor

    dataset, preprocessor = open_dataset(data, classes=count), Preprocessor([Preprocessing()])
    sample = range(0, count, max(1, count // 100))
    start = time.process_time()
    for index in sample:
        preprocessor(dataset.read(index), dataset.names[index])
    return (time.process_time() - start) / len(sample)


def main() -> None:
    args = parser().parse_args()
    models = args.models or MODELS
    other = "validate" if args.validate else "timm"
    with tempfile.TemporaryDirectory() as folder:
        args.data = str(Path(folder) / "val")
        make_images(Path(args.data), args.images)
        weights = [Path(folder) / f"{name}.pth" for name in models]
        for name, file in zip(models, weights, strict=True):
            make_weights(name, args.images, file)
        image = image_seconds(args.data, args.images)
        theirs = [run(other, args, [name], [file]) for name, file in zip(models, weights, strict=True)]
        ours = run("repro", args, models, weights)
        for label, seconds, wall, cpu, passes, peak in (
            ("eight runs of timm", sum(r["seconds"] for r in theirs), sum(r["wall"] for r in theirs),
             sum(r["cpu"] for r in theirs), len(models), max(r["peak"] for r in theirs)),
            ("one pass", ours["seconds"], ours["wall"], ours["cpu"], ours["passes"], ours["peak"]),
        ):  # fmt: skip
            share = passes * args.images * image / cpu
            print(
                f"{label:20} {seconds:7.1f} s in the loops, {wall:7.1f} s end to end, {cpu:7.1f} s of processor time, "
                f"{share:.0%} of it for images, largest process {peak:.0f} MB"
            )
        ratio = sum(r["seconds"] for r in theirs) / ours["seconds"]
        print(f"{len(models)} models, {args.images} images, {args.device}: {ratio:.2f} times faster")


if __name__ == "__main__":
    main()
