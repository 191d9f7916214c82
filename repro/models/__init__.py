"""Models that no library has, in timm's idiom, and the catalogue that builds every variant of a table.

Importing this package registers the ported families with timm, so that ``timm.create_model("sbcformer_xs")`` works.
"""

from repro.models.cmt import CMT
from repro.models.efficientmod import EfficientMod
from repro.models.official import StateDictError, load_official

__all__ = ["CMT", "EfficientMod", "StateDictError", "load_official"]
