"""Models that no library has, in timm's idiom, and the catalogue that builds every variant of a table.

Importing this package registers the ported families with timm, so that ``timm.create_model("sbcformer_xs")`` works.
"""

from repro.models.casvit import CasVit
from repro.models.cmt import CMT
from repro.models.edgevit import EdgeViT
from repro.models.efficientmod import EfficientMod
from repro.models.emo import Emo
from repro.models.iformer_ablations import IFormerAblation
from repro.models.mobile_former import MobileFormer
from repro.models.official import StateDictError, load_official
from repro.models.repnext import RepNext
from repro.models.sbcformer import SBCFormer

__all__ = [
    "CMT",
    "CasVit",
    "EdgeViT",
    "EfficientMod",
    "Emo",
    "IFormerAblation",
    "MobileFormer",
    "RepNext",
    "SBCFormer",
    "StateDictError",
    "load_official",
]
