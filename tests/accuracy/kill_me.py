"""An evaluation to be killed: ``python -m tests.accuracy.kill_me IMAGES STORE CLASSES``."""

from __future__ import annotations

import sys
from functools import partial

from repro.accuracy.datasets import open_dataset
from repro.accuracy.engine import evaluate
from repro.accuracy.job import Options
from repro.accuracy.predictions import PredictionStore
from tests.accuracy import made


def entries(classes: int) -> list[made.ModelEntry]:
    """One model that can be outrun and one that cannot."""
    return [made.entry("slow", partial(made.Slow, classes, 0.3)), made.cheap("quick", classes)]


def main() -> None:
    """Evaluate and print how many images this run read."""
    images, store, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    result = evaluate(
        open_dataset(images, classes=classes),
        entries(classes),
        options=Options(batch_size=4, save_every=0, workers=2),
        store=PredictionStore(store),
    )
    print(result.evaluated)


if __name__ == "__main__":
    main()
