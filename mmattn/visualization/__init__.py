"""What did a module learn to look at?

:func:`collect` runs a model on images and returns what each inserted module decided, as tensors
with their place in the image; the plots take nothing else. Matplotlib is imported with the first
plot, not before.
"""

import importlib

from mmattn.visualization.collect import collect
from mmattn.visualization.collected import Channels, Collected, Detections, Layer, Map
from mmattn.visualization.geometry import Grid, Placement, to_image
from mmattn.visualization.neutral import neutralized
from mmattn.visualization.record import Call, attention_modules, listening

_LAZY = {
    "loading": ["load_model"],
    "spatial": ["draw_layers", "draw_norms", "draw_spatial", "spatial_scale"],
    "weights": ["draw_mask", "draw_masks", "draw_queries", "weights_scale"],
    "distance": ["distance_table", "query_distance"],
    "channels": [
        "channel_scale",
        "draw_channels",
        "draw_share_layers",
        "draw_shares",
        "draw_strips",
    ],
    "regions": ["draw_region_layers", "draw_regions"],
    "shares": ["region_shares"],
    "detections": ["Difference", "Objects", "compare_detections", "draw_detections", "summarize"],
    "contact_sheets": ["contact_sheet"],
    "gallery": ["Gallery", "write"],
    "class_activation": ["BoxCam", "CamMap", "draw_grad_cam", "grad_cam"],
    "statistics": ["Statistics", "gate_statistics", "parameter_statistics"],
    "style": ["Scale"],
}
_WHERE = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "Call",
    "Channels",
    "Collected",
    "Detections",
    "Grid",
    "Layer",
    "Map",
    "Placement",
    "attention_modules",
    "collect",
    "listening",
    "neutralized",
    "to_image",
]
__all__ += _WHERE


def __getattr__(name: str):
    """The plots and what loads a model, imported at first use."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"mmattn.visualization.{_WHERE[name]}"), name)
        globals()[name] = value  # also over a module of the same name
        return value
    raise AttributeError(f"module 'mmattn.visualization' has no attribute {name!r}")
