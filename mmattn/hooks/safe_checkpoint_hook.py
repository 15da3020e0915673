"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmattn.checkpoints.files import CheckpointError
from mmattn.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which never loses the previous checkpoint.

    ::

        default_hooks = dict(checkpoint=dict(type='mmattn.SafeCheckpointHook', interval=1))

    A checkpoint is written beside its place, to the disk, and then renamed; ``last_checkpoint``
    follows in the same way, and only then is an older one removed, of ``max_keep_ckpts`` or of
    ``save_best``. So a full disk, or a kill at any time, leaves the previous checkpoint and
    ``last_checkpoint`` as they were. For a moment there is one file more than mmengine would
    have.

    Deviations: on another storage (``out_dir='s3://...'``, ``backend_args``, ``file_client_args``)
    it is mmengine's own hook.

    Args:
        kwargs: As of mmengine's CheckpointHook.

    Raises:
        CheckpointError: When a checkpoint cannot be written.
    """

    _is_local = False  # until a training starts: an evaluation alone calls the hook as well

    def before_train(self, runner) -> None:
        """Removes what a killed run has left half-written."""
        super().before_train(runner)
        self._is_local = self.file_client_args is None and isinstance(
            self.file_backend, LocalBackend
        )
        if self._is_local and is_main_process():
            # a number in the template may have a format: {:03d}
            for pattern in (re.sub(r"{[^{}]*}", "*", self.filename_tmpl), "best_*"):
                folder, name = os.path.split(os.path.join(self.out_dir, pattern))
                for left in glob.glob(os.path.join(glob.escape(folder), f".{name}.part")):
                    _remove(left)

    def _save_checkpoint_with_step(self, runner, step, meta):
        if not self._is_local:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [self.keep_ckpt_ids[0]]
            self.keep_ckpt_ids.append(step)
            # with the one still to go: if this run is killed first, the next removes it
            kept = [*outdated, *self.keep_ckpt_ids]
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        self._save(
            runner,
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            pointer = os.path.join(runner.work_dir, "last_checkpoint")
            with _written(pointer) as part:
                self.file_backend.put_text(self.last_ckpt, part)
            for old in outdated:
                _remove(os.path.join(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not self._is_local:
            super()._save_best_checkpoint(runner, metrics)
            return
        # mmengine removes the previous best first, then writes: here removals wait
        backend = self.file_backend
        self.file_backend = waiting = _WaitingBackend(backend)
        try:
            super()._save_best_checkpoint(_SavingRunner(runner, self._save), metrics)
        finally:
            self.file_backend = backend
        for path in waiting.removed - waiting.written(runner.message_hub.runtime_info):
            _remove(path)

    def _save(self, runner, out_dir: str, filename: str, **kwargs) -> None:
        """The Runner's save_checkpoint, to a file that then gets its name."""
        runner = getattr(runner, "_runner", runner)
        path = os.path.join(out_dir, filename)
        with _written(path, all_processes=not isinstance(runner, Runner)) as part:
            runner.save_checkpoint(out_dir, os.path.relpath(part, out_dir), **kwargs)


class _WaitingBackend:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend):
        self._backend, self.removed = backend, set()

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path) -> None:
        self.removed.add(str(path))

    rmtree = remove

    @staticmethod
    def written(info: dict) -> set[str]:
        """The best checkpoints that there are now."""
        return {str(path) for key, path in info.items() if key.startswith("best_ckpt")}


class _SavingRunner:
    """A Runner whose checkpoints are written by another function."""

    def __init__(self, runner, save):
        self._runner, self._save = runner, save

    def __getattr__(self, name: str):
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **kwargs) -> None:
        kwargs.pop("file_client_args", None)  # None here, and deprecated
        self._save(self._runner, out_dir, filename, **kwargs)


@contextlib.contextmanager
def _written(path: str, all_processes: bool = False):
    """Gives the name of a file or folder to write, which becomes ``path`` when it is whole.

    Raises:
        CheckpointError: The disk does not take it. What was there before stays.
    """
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name}.part")
    try:
        yield part
        if all_processes:  # each may write its own piece
            barrier()
        if is_main_process():
            _settle(part, path)
    except OSError as error:
        _remove(part)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CheckpointError(
            f"{path} cannot be written: {reason}; the checkpoints before it are untouched: make "
            "room, and go on with --resume"
        ) from error
    except BaseException:
        _remove(part)
        raise


def _settle(part: str, path: str) -> None:
    """Brings a file, or a folder of files, to the disk and then to its name."""
    pieces = [os.path.join(part, name) for name in os.listdir(part)] if os.path.isdir(part) else []
    for piece in [*pieces, part, None]:
        handle = os.open(piece or os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            if piece is None:
                if os.path.isdir(path):  # a folder takes no other's place
                    os.rename(path, f"{part}.old")
                os.replace(part, path)
                _remove(f"{part}.old")
            _sync(handle)
        finally:
            os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        # some file systems of networks cannot, least of all a folder; no disk is full for that
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
