"""The attention modules: one paper a file."""

from mmattn.plugins.bam import BAM
from mmattn.plugins.base import AttentionModule
from mmattn.plugins.cbam import CBAM
from mmattn.plugins.coord_attention import CoordAttention
from mmattn.plugins.eca import ECA
from mmattn.plugins.gc import GC
from mmattn.plugins.gct import GCT
from mmattn.plugins.non_local import NonLocal
from mmattn.plugins.se import SE
from mmattn.plugins.sge import SGE
from mmattn.plugins.simam import SimAM
from mmattn.plugins.snl import SNL
from mmattn.plugins.srm import SRM
from mmattn.plugins.triplet_attention import TripletAttention

__all__ = [
    "BAM",
    "CBAM",
    "ECA",
    "GC",
    "GCT",
    "SE",
    "SGE",
    "SNL",
    "SRM",
    "AttentionModule",
    "CoordAttention",
    "NonLocal",
    "SimAM",
    "TripletAttention",
]
