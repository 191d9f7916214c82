"""What ``repro estimate`` prints: estimates with their interval, and what they are worth."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tabulate import tabulate

from repro.compare.estimate import LEVEL, Estimate, Model, said

_HEADS = ("Variant", "Size", "Printed (ms)", "Estimate (ms)", f"{LEVEL:.0%} interval", "")
_WIDTH = 100


def _lines(estimates: Sequence[Estimate]) -> list[list[str]]:
    return [
        [
            item.variant,
            str(item.input_size[0]) if item.input_size[0] == item.input_size[1] else "{}x{}".format(*item.input_size),
            "–" if item.printed is None else f"{item.printed:g}",
            f"{item.value:.2f}",
            f"{item.low:.2f} to {item.high:.2f}",
            "far outside" if item.far else "",
        ]
        for item in estimates
    ]


def _worth(model: Model) -> list[list[str]]:
    errors = {"this estimate": model.error, **model.baselines}
    return [[name, f"{error.median:.1%}", f"{error.ninth_decile:.1%}"] for name, error in errors.items()]


def _text(style: str) -> Callable[[Model, Sequence[Estimate], Sequence[str]], str]:
    def make(model: Model, estimates: Sequence[Estimate], missing: Sequence[str]) -> str:
        grid = tabulate(_lines(estimates), headers=_HEADS, tablefmt=style, disable_numparse=True)
        heads = ("Leaving one family out", "Median error", "Nine in ten under")
        worth = tabulate(_worth(model), headers=heads, tablefmt=style, disable_numparse=True)
        formula = " + ".join(f"{value:.4g} x {name}" for name, value in model.coefficients.items() if value)
        notes = [
            "Not measured. " + said(model),
            f"ms = {formula}".replace(" x constant", ""),
            "A printed row's estimate is by a fit without its family. Far outside: beyond twice the interval.",
        ]
        if missing:
            notes.append(f"No program on record: {', '.join(missing)}.")
        wrapped = notes if style == "github" else [textwrap.fill(note, _WIDTH) for note in notes]
        return "\n\n".join([str(grid), str(worth), *wrapped]) + "\n"

    return make


def _json(model: Model, estimates: Sequence[Estimate], missing: Sequence[str]) -> str:
    data = {
        "schema": 1,
        "measured": False,
        "interval": LEVEL,
        "estimates": [asdict(item) for item in estimates],
        "missing": list(missing),
        "model": {
            "printed": len(model.left_out),
            "coefficients": dict(model.coefficients),
            "error": asdict(model.error),
            "baselines": {name: asdict(error) for name, error in model.baselines.items()},
            "failing": dict(model.failing),
        },
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Model, Sequence[Estimate], Sequence[str]], str]] = {
    "terminal": _text("simple"),
    "markdown": _text("github"),
    "json": _json,
}
