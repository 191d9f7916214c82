"""What ``repro export`` and ``repro run-package`` print."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

_HEADS = ("Variant", "Size", "Verdict", "float32 error", "float16 exact", "float16 error", "Same class", "Overflows")


def _size(size: Sequence[int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _number(value: float | None) -> str:
    return "overflow" if value is None else f"{value:.1e}"


def check_line(check: Mapping[str, Any]) -> list[str]:
    """One check in the columns of the table of errors, behind variant and size."""
    rounded = check["rounded"]
    overflows = [f"{item['type']} {item['op']}" for item in check["overflows"]]
    more = f" and {len(overflows) - 1} more" if len(overflows) > 1 else ""
    return [
        check["verdict"],
        _number(check["float32"]["error"]),
        {True: "yes", False: "no", None: "–"}[check["exact"]],
        "–" if rounded is None else "overflow" if rounded["error"] is None else f"{100 * rounded['error']:.2f}%",
        "–" if rounded is None else f"{100 * rounded['argmax']:.0f}%",
        (overflows[0] + more) if overflows else "none",
    ]


def _grid(items: Sequence[Any], check: bool, style: str) -> str:
    if check:
        lines = [[item.variant, _size(item.input_size), *check_line(item.check)] for item in items]
        return str(tabulate(lines, headers=_HEADS, tablefmt=style, disable_numparse=True))
    lines = [
        [item.variant, _size(item.input_size), item.weights, item.content_hash[:12],
         "cached" if item.cached else f"{item.seconds:.1f} s", str(item.path)]
        for item in items
    ]  # fmt: skip
    heads = ("Variant", "Size", "Weights", "Hash", "Made", "Package")
    return str(tabulate(lines, headers=heads, tablefmt=style, disable_numparse=True))


def _summary(items: Sequence[Any], failures: Mapping[str, Any], check: bool) -> str:
    parts = [f"{len(items)} package{'s' if len(items) != 1 else ''}"]
    if check:
        for verdict in ("passed", "failed", "unproven"):
            count = sum(item.check["verdict"] == verdict for item in items)
            parts += [f"{count} {verdict}"] if count else []
    else:
        parts.append(f"{sum(item.cached for item in items)} of them cached")
    if failures:
        parts.append(f"{len(failures)} could not be made")
    return ", ".join(parts)


def _reasons(items: Sequence[Any], failures: Mapping[str, Any], check: bool) -> list[str]:
    lines = [f"{name}: {error['reason']}: {error['message']}" for name, error in failures.items()]
    for item in items:
        lines += [
            f"{item.variant} {_size(item.input_size)}: {said}" for said in (item.check["failures"] if check else ())
        ]
    return lines


def _terminal(items: Sequence[Any], failures: Mapping[str, Any], check: bool) -> str:
    parts = [_grid(items, check, "simple")] if items else []
    return "\n\n".join([*parts, *_reasons(items, failures, check), _summary(items, failures, check)]) + "\n"


def _markdown(items: Sequence[Any], failures: Mapping[str, Any], check: bool) -> str:
    reasons = "\n".join(f"- {line}" for line in _reasons(items, failures, check))
    parts = [_grid(items, check, "github"), *([reasons] if reasons else []), _summary(items, failures, check) + "."]
    return "\n\n".join(parts) + "\n"


def _json(items: Sequence[Any], failures: Mapping[str, Any], check: bool) -> str:
    data = {
        "schema": 1,
        "packages": [
            {
                "variant": item.variant,
                "input_size": list(item.input_size),
                "path": str(item.path),
                "content_hash": item.content_hash,
                "weights": item.weights,
                "cached": item.cached,
                "identity": dict(item.identity),
                "check": item.check,
            }
            for item in items
        ],
        "failures": dict(failures),
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Any], Mapping[str, Any], bool], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "json": _json,
}


def _one(style: str) -> Callable[[str, str, str, Mapping[str, Any]], str]:
    def make(package: str, variant: str, weights: str, outcome: Mapping[str, Any]) -> str:
        check = outcome["check"]
        heads = ("Against", "Weights", "Size", *_HEADS[2:])
        line = [variant, weights, _size(outcome["input_size"]), *check_line(check)]
        said = [f"{package}: {text}" for text in check["failures"]]
        if check["verdict"] == "unproven":
            said.append(f"{package}: {check['difference']}: its agreement is reported, no gate can vouch for it")
        grid = str(tabulate([line], headers=heads, tablefmt=style, disable_numparse=True))
        return "\n".join([grid, *said]) + "\n"

    return make


def _one_json(package: str, variant: str, weights: str, outcome: Mapping[str, Any]) -> str:
    data = {"schema": 1, "package": package, "against": variant, "weights": weights, **outcome}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


CHECKS: dict[str, Callable[[str, str, str, Mapping[str, Any]], str]] = {
    "terminal": _one("simple"),
    "markdown": _one("github"),
    "json": _one_json,
}


def classes(best: Sequence[tuple[Any, float]]) -> str:
    """Class and probability, likeliest first."""
    lines = [[str(label), f"{100 * p:.2f}%"] for label, p in best]
    return str(tabulate(lines, headers=("Class", "Probability"), tablefmt="simple", disable_numparse=True)) + "\n"
