"""A Runner whose console shows what happens, not what was configured."""

from __future__ import annotations

import logging
import re

from mmengine.runner import Runner

# the environment, the config, hooks, an optimizer line for each parameter, mmengine's own
# deprecations
LOG_FILE_ONLY = re.compile(
    r'\s*-{40}|Config:|Hooks will be executed|paramwise_options|"(FileClient|HardDiskBackend)" '
)


class ConsoleRunner(Runner):
    """mmengine's Runner, with records on what was configured kept to the log file."""

    def build_logger(self, *args, **kwargs):
        """The logger of mmengine, with a filter on its console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: not LOG_FILE_ONLY.match(record.getMessage()))
        return logger
