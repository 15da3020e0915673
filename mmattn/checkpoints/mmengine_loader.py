"""Lets mmengine load ``.safetensors`` files: ``load_from``, ``init_cfg``, ``init_detector``.

mmengine reads local files with torch.load only, and has a registry of loaders for other sources.
"""

from mmengine.runner.checkpoint import CheckpointLoader

from mmattn.checkpoints import files


# a local path: what has a scheme in front goes on to the loader of that scheme
@CheckpointLoader.register_scheme(prefixes=r"(?!\S*://).*\.safetensors$")
def load_from_safetensors(filename, map_location=None) -> dict:
    """The content of a file, as ``dict(state_dict=..., meta=...)``."""
    content = files.read(filename)
    if isinstance(map_location, (str, int)) or hasattr(map_location, "type"):
        content["state_dict"] = {
            name: value.to(map_location) for name, value in content["state_dict"].items()
        }
    return content
