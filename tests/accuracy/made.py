"""Images as ImageNet has them, good and odd, and models with weights that tell them apart."""

from __future__ import annotations

import io
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from repro.accuracy.job import ModelEntry
from repro.accuracy.preprocess import Preprocessing

SIZES = [(160, 120), (120, 160), (96, 96), (200, 80), (75, 210), (64, 48)]


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A picture with the spectrum of a photograph, uint8, shape (H, W, 3)."""
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width)))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    radius[0, 0] = 1
    picture = np.fft.irfft2(spectrum / radius, s=(height, width))
    picture = picture / picture.std() * 45 + rng.uniform(70, 180, (3, 1, 1))
    return np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def encode(picture: np.ndarray, kind: str) -> bytes:
    """The bytes of a JPEG or PNG file."""
    out = io.BytesIO()
    image = Image.fromarray(picture)
    if kind == "png16":
        Image.fromarray(picture[..., 0].astype(np.uint16) * 3 + 1).save(out, "PNG")
    elif kind == "rgba":
        image.putalpha(Image.fromarray(picture[..., 1]))
        image.save(out, "PNG")
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # a viewer would turn it by 90 degrees
        image.save(out, "JPEG", exif=exif)
    elif kind == "progressive":
        image.save(out, "JPEG", progressive=True, quality=70)
    else:
        image.convert({"gray": "L", "cmyk": "CMYK"}.get(kind, "RGB")).save(out, "JPEG", quality=90)
    return out.getvalue()


def kind_of(index: int) -> str:
    if index in (3, 5):
        return {3: "png16", 5: "rgba"}[index]
    return ("rgb", "gray", "cmyk", "exif", "rgb", "progressive", "rgb")[index % 7]


def pictures(count: int, seed: int = 0, scale: int = 1):
    """Extension and bytes of each picture."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        kind = kind_of(index)
        width, height = SIZES[index % len(SIZES)]
        data = encode(texture(rng, width * scale, height * scale), kind)
        yield (".png" if kind in ("png16", "rgba") else ".JPEG"), data


def wnid(target: int) -> str:
    return f"n{1440764 + 37 * target:08d}"


def image_folder(root: Path, *, classes: int, per_class: int = 1, seed: int = 0, scale: int = 1, more: int = 0) -> Path:
    """A folder of class folders; the last class has ``more`` images than the others."""
    made = pictures(classes * per_class + more, seed, scale)
    for target in range(classes):
        folder = root / wnid(target)
        folder.mkdir(parents=True)
        for number in range(per_class + (more if target == classes - 1 else 0)):
            extension, data = next(made)
            (folder / f"ILSVRC2012_val_{target * per_class + number + 1:08d}{extension}").write_bytes(data)
    return root


def seeded(name: str, seed: int, *, classes: int, size: int, **arguments: object) -> nn.Module:
    """A timm model whose random weights tell pictures apart.

    The logits' spread is a compromise: the differences between classes are well above 1e-4, and float32's rounding,
    which such networks amplify (timm's own logits are off by up to 9e-5 of the spread), is well below.
    """
    import timm

    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=classes, **arguments)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    textures = np.stack([texture(rng, size, size) for _ in range(8)])
    images = (torch.from_numpy(textures).permute(0, 3, 1, 2).float() - 124) / 58
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        # before the statistics are taken: with statistics of other weights each block would multiply what the last
        # one gave, until rounding alone decides which way a squeeze-excitation's gate falls
        for norm in norms:
            norm.momentum = None  # statistics of this one batch
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) * 0.2)
        model.train()
        model(images)
        model.eval()
        for norm in norms:  # a channel almost constant on these pictures must not blow up the first that is another
            norm.running_var.clamp_min_(0.25 * norm.running_var.mean())
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
        spread = model(images).std(dim=0).mean().clamp_min(1e-6)
        for head in heads:
            head.weight.mul_(0.25 / spread)
        centre = model(images).mean(dim=0)
        for head in heads:
            head.bias.sub_(centre)
    return model


def load(name: str, file: str, arguments: dict[str, object]) -> nn.Module:
    """What a ``ModelEntry`` builds: the architecture with weights from a file."""
    import timm

    model = timm.create_model(name, **arguments)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


class MeanColour:
    """No module, just a callable: the class is where the mean colour falls; cheap enough for many runs."""

    def __init__(self, classes: int, shift: float = 0.0) -> None:
        self.classes, self.shift = classes, shift

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3)) + self.shift
        centres = torch.linspace(-2, 2, self.classes, device=images.device)
        return -(mean[:, None].float() - centres).abs()


def mean_colour(classes: int, shift: float = 0.0) -> MeanColour:
    return MeanColour(classes, shift)


def cheap(name: str, classes: int, shift: float = 0.0, **fields: object) -> ModelEntry:
    """An entry that takes no time."""
    preprocessing = Preprocessing(**{"input_size": (3, 32, 32), **fields})
    return ModelEntry(
        name=name, identity=f"{name} {shift}", build=partial(mean_colour, classes, shift), preprocessing=preprocessing
    )


class Slow(MeanColour):
    """Takes a while for each batch, so that there is time to kill the run."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.15)
        return super().__call__(images)


class Deadly(MeanColour):
    """Kills its own process, or its parent's, the first so many times that it runs."""

    def __init__(self, classes: int, folder: str, times: int, parent: bool, spared: int) -> None:
        super().__init__(classes)
        self.folder, self.times, self.parent = Path(folder), times, parent
        self.calls, self.spared = 0, spared

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.spared:  # the first call is the check at loading time
            for number in range(self.times):
                try:
                    (self.folder / str(number)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getppid() if self.parent else os.getpid(), signal.SIGKILL)
                break
        return super().__call__(images)


class Broken(MeanColour):
    """Fails in one of several ways, or takes memory."""

    def __init__(self, classes: int, how: str) -> None:
        super().__init__(classes)
        self.how, self.calls = how, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits = super().__call__(images)
        if self.how == "shape":
            return logits[:, 1:]
        if self.how == "type":
            return logits.tolist()
        if self.how == "raises late" and self.calls > 2:
            raise RuntimeError("the second\nbatch is too much")
        if self.how == "nan":
            return torch.where(logits.argmax(dim=1, keepdim=True) % 2 == 0, float("nan"), logits)
        return logits


class Heavy(nn.Module):
    """Mean colour with so many megabytes of weights."""

    def __init__(self, classes: int, megabytes: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(megabytes * 2**18))
        self.colour = MeanColour(classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.colour(images)


class Misfolded(nn.Module):
    """Stands for a network that folding changes: it computes something else once a flag is gone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.colour = MeanColour(classes)
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Misfolded:
        copy = Misfolded(self.colour.classes)
        copy.copies = self.copies + 1
        return copy

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.colour(images) + self.copies * torch.arange(self.colour.classes)


def refuses(message: str) -> None:
    """A builder whose weights do not load."""
    from repro.errors import ModelError

    raise ModelError(message)


def entry(name: str, build: partial[object]) -> ModelEntry:
    """An entry of a given builder, at 32 px."""
    return ModelEntry(
        name=name, identity=name, build=build, preprocessing=Preprocessing(input_size=(3, 32, 32), crop_pct=1.0)
    )
