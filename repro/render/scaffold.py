"""The files of a new project: a table spec that is valid as it stands, and what a reader needs to fill it in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

_SPEC = """\
# One table of the paper. `repro validate` checks it; docs/specs.md of repro describes the language.
schema: 1
table: {number}
title: {title}
source:
  paper: {paper}
  document: The document whose lines every `line` below counts.
protocol:
  input_size: 224
  batch_size: 1
  precision: float32
  form: folded     # as_trained, reparameterised or folded: what the paper counts
  counting: macs   # macs, macs+norms, macs-attention or fvcore: how it counts
  dataset: ImageNet-1k
  split: validation
columns:
- {{metric: params, decimals: 1}}
- {{metric: gmacs, decimals: 2}}
- {{metric: top1, decimals: 1}}
variants:
{variants}
rows:
# A printed value is the printed string, with the line that it stands on:
# - {{model: ResNet-18, line: 12, variant: resnet18, cells: {{params: "11.7", gmacs: "1.81", top1: "69.8"}}}}
{rows}
"""

_README = """\
# {paper}

```
repro validate     # checks tables/
repro table {number}      # measures what this machine can, prints the table, writes LaTeX and Markdown
repro verify       # which cells reproduce
repro report       # a site of all of it
repro regenerate   # measures from scratch into results/, the published records
```

A printed value that you have not entered yet is not reported; nothing is compared with it.
"""


def scaffold(*, number: int, title: str, paper: str, models: Sequence[str]) -> Mapping[str, str]:
    """The files of a new project, by name. Rows print nothing yet; their models are built and counted all the same."""
    variants, rows = [], []
    for position, name in enumerate(models):
        plain = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII) or f"model_{position}"
        model = "" if plain == name else f", model: {_quoted(name)}"
        variants.append(f"  {_quoted(plain)}: {{builder: timm{model}}}")
        rows.append(f"- {{model: {_quoted(name)}, variant: {_quoted(plain)}, cells: {{}}}}")
    spec = _SPEC.format(
        number=number,
        title=_quoted(title),
        paper=_quoted(paper),
        variants="\n".join(variants),
        rows="\n".join(rows),
    )
    return {
        f"tables/table_{number:02d}.yaml": spec,
        "README.md": _README.format(paper=" ".join(paper.split()), number=number),
        ".gitignore": "__pycache__/\n/out/\n/site/\n/night/\n",
    }


def _quoted(text: str) -> str:
    """Text as YAML: JSON's strings are YAML's."""
    return json.dumps(text, ensure_ascii=False)
