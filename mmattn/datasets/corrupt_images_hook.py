"""The hook that says how many images a training left out."""

from __future__ import annotations

import logging

from mmengine.hooks import Hook

from mmattn.datasets.corrupt_images import listed
from mmattn.registry import HOOKS

__all__ = ["CorruptImagesHook"]


@HOOKS.register_module()
class CorruptImagesHook(Hook):
    """Says before each validation and at the end of a training how many images were skipped.

    Args:
        list_file: Where :class:`mmattn.LoadImageFromFile` lists them.
    """

    def __init__(self, list_file: str) -> None:
        self.list_file = list_file
        self._said = 0

    def before_val(self, runner) -> None:
        """Between parts of a training."""
        self._say(runner)

    def after_train(self, runner) -> None:
        """At the end."""
        self._said = 0
        self._say(runner)

    def _say(self, runner) -> None:
        found = listed(self.list_file)
        if len(found) > self._said:
            runner.logger.log(
                logging.WARNING,
                f"mmattn: {len(found)} image{'s' * (len(found) > 1)} of the training cannot be "
                f"read; others were taken in their place. They are listed in {self.list_file}",
            )
        self._said = len(found)
