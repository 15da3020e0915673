"""The attention modules: one paper a file."""

from mmattn.plugins.base import AttentionModule
from mmattn.plugins.gc import GC
from mmattn.plugins.gct import GCT
from mmattn.plugins.se import SE
from mmattn.plugins.sge import SGE

__all__ = ["GC", "GCT", "SE", "SGE", "AttentionModule"]
