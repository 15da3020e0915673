"""What happens to the modules during training."""

from mmattn.hooks.freeze_except_hook import FreezeExceptHook

__all__ = ["FreezeExceptHook"]
