"""The training settings of Table 9 as a configuration for timm's train script.

The table's cells are lost in extraction; its rows are what the text of appendix B.1 still says. It says that the recipe
is ConvNeXt's with changes, so the base is what ConvNeXt's official training script does by default, and each line says
which of the two it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from repro.errors import UsageError
from repro.spec.tables import Table

# Defaults of main.py, facebookresearch/ConvNeXt at 048efcea897d, in the option names of timm's train script.
CONVNEXT = {
    "opt": "adamw",
    "lr": "0.004",
    "min_lr": "1.0e-06",
    "weight_decay": "0.05",
    "sched": "cosine",
    "warmup_epochs": "20",
    "mixup": "0.8",
    "cutmix": "1.0",
    "reprob": "0.25",
    "smoothing": "0.1",
    "aa": "rand-m9-mstd0.5-inc1",
    "train_interpolation": "bicubic",
}
_BASE = "ConvNeXt's main.py"
_TEACHERS = {"RegNetY-16GF": "regnety_160.deit_in1k"}  # DeiT's teacher, by timm's name
_LOSSES = {"hard (DeiT)": {"kd_distill_type": "token", "kd_token_distill_type": "hard"}}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One option of the configuration, and what it comes from."""

    option: str
    value: str
    says: str


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A configuration, and the printed settings that are no option of the train script."""

    settings: tuple[Setting, ...]
    other: tuple[str, ...]


def train_config(table: Table, model: str, *, distilled: bool = False) -> TrainConfig:
    """Turn the printed settings of a table with a column ``setting`` into options of timm's train script.

    Parameters
    ----------
    distilled
        Train with the teacher, too.

    Raises
    ------
    UsageError
        When the table states no settings.
    """
    printed = {row.model: text for row in table.rows if (text := row.reported("setting").text) is not None}
    if not printed:
        raise UsageError(f"{table.path}: table {table.number} prints no settings")
    settings = {"model": Setting(option="model", value=model, says="the variant")}
    if printed.get("Training recipe") == "ConvNeXt":
        settings |= {name: Setting(option=name, value=value, says=_BASE) for name, value in CONVNEXT.items()}
    gpus = int(printed["NVIDIA GPUs"]) if printed.get("NVIDIA GPUs", "").isdigit() else 1
    other = []
    for name, text in printed.items():
        options = _options(name, text, gpus, distilled)
        says = f"printed: {name}: {text}" + (f", here for each of {gpus} GPUs" if "batch_size" in options else "")
        settings |= {option: Setting(option=option, value=value, says=says) for option, value in options.items()}
        if not options:
            other.append(f"{name}: {text}")
    return TrainConfig(settings=tuple(settings.values()), other=tuple(other))


def _options(name: str, text: str, gpus: int, distilled: bool) -> dict[str, str]:
    if name == "Epochs" and text.isdigit():
        return {"epochs": text}
    if name == "Batch size" and text.isdigit() and int(text) % gpus == 0:
        return {"batch_size": str(int(text) // gpus)}
    if name == "Stochastic depth" and text == "none":
        return {"drop_path": "0.0"}
    if name == "Exponential moving average" and text == "none":
        return {"model_ema": "false"}
    if name == "Distillation teacher" and distilled and text in _TEACHERS:
        return {"kd_model_name": _TEACHERS[text]}
    return _LOSSES.get(text, {}) if name == "Distillation loss" and distilled else {}


def as_yaml(config: TrainConfig, table: Table) -> str:
    """The configuration for ``train.py --config FILE``, with what each line comes from behind it."""
    lines = [
        f"# {table.source.paper}, Table {table.number}: {table.title}",
        "# For timm's train script: torchrun --nproc_per_node GPUS train.py --config FILE --data-dir DIR",
        *(f"{item.option}: {item.value}  # {item.says}" for item in config.settings),
    ]
    if config.other:
        lines += ["# Printed, and no option of the train script:", *(f"# - {text}" for text in config.other)]
    return "\n".join(lines) + "\n"
