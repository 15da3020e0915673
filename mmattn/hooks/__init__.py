"""What happens to the modules during training, and to its checkpoints."""

from mmattn.hooks.freeze_except_hook import FreezeExceptHook
from mmattn.hooks.gate_log_hook import GateLogHook
from mmattn.hooks.resume_exactly_hook import ResumeExactlyHook
from mmattn.hooks.safe_checkpoint_hook import SafeCheckpointHook

__all__ = ["FreezeExceptHook", "GateLogHook", "ResumeExactlyHook", "SafeCheckpointHook"]
