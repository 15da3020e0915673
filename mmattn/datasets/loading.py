"""The transform that reads an image and says which one cannot be read."""

from __future__ import annotations

import logging
import os

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log

from mmattn.datasets.corrupt_images import CorruptImageError, check_on_error
from mmattn.datasets.images import decode, is_cut_off
from mmattn.registry import TRANSFORMS

__all__ = ["LoadImageFromFile"]


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """Loads an image as mmcv's transform of this name does, and notices one that is not whole.

    A file that is missing, cannot be decoded, or is cut off is reported with its path, once in
    each process. OpenCV before 4.12 decodes a JPEG that is cut off to an image with a grey rest,
    without an error; so the mark that ends a JPEG, PNG or WebP is looked for as well, and a file
    without it is decoded a second time, by Pillow, which decides.

    Args:
        on_error: 'raise' to end with one sentence, or 'skip' to give no sample: mmengine's datasets
            then take another one, drawn at random, and in ``test_mode`` end in an error.
        limit: With 'skip', how many different files a process may meet before it ends in an error
            all the same: more are no accident.
        list_file: Append the path of each, a tab and what is wrong with it to this file; several
            processes may share it.
        **kwargs: Those of mmcv's ``LoadImageFromFile``; its ``ignore_empty`` is ``on_error='skip'``
            without a word.

    Raises:
        CorruptImageError: With 'raise', an image cannot be read; with 'skip', more than ``limit``
            cannot.
        ValueError: ``on_error`` or ``limit`` is none of those above.
    """

    def __init__(
        self,
        *args,
        on_error: str = "raise",
        limit: int = 100,
        list_file: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_on_error(on_error, limit)
        self.on_error = on_error
        self.limit = limit
        self.list_file = list_file
        self.corrupt: dict[str, int] = {}  # path -> how often this process met it

    def transform(self, results: dict) -> dict | None:
        """Reads the image at ``img_path``."""
        path = results["img_path"]
        try:
            content = self._read(path)
        except FileNotFoundError:
            return self._report(path, "does not exist")
        except OSError as error:
            return self._report(path, f"cannot be read: {error.strerror or error}")
        if is_cut_off(content) and (found := decode(content)).kind == "truncated":
            return self._report(path, found.why)
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        except Exception:  # each backend has its own errors
            image = None
        if image is None:
            return self._report(path, decode(content).why or "cannot be decoded")
        if self.to_float32:
            image = image.astype(np.float32)
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _read(self, path: str) -> bytes:
        if self.file_client_args is not None:
            return fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        return fileio.get(path, backend_args=self.backend_args)

    def _report(self, path: str, why: str) -> None:
        first = path not in self.corrupt
        self.corrupt[path] = self.corrupt.get(path, 0) + 1
        if first and self.list_file:
            os.makedirs(os.path.dirname(self.list_file) or ".", exist_ok=True)
            with open(self.list_file, "a", encoding="utf-8") as file:
                file.write(f"{path}\t{why}\n")  # one write: lines of several processes do not mix
        if self.on_error == "raise":
            raise CorruptImageError(
                f"image {path} {why}; replace it (a training can do without such images: "
                "--cfg-options corrupt_images=skip)"
            )
        if len(self.corrupt) > self.limit:
            raise CorruptImageError(
                f"more than {self.limit} images cannot be read, the last is {path}, which {why}: "
                "look at the data, or raise limit"
            )
        if first:
            # as an error, for mmengine shows no less of the processes after the first
            print_log(f"image {path} {why}: skipped", logger="current", level=logging.ERROR)

    def __repr__(self) -> str:
        own = f"on_error={self.on_error!r}, limit={self.limit}, list_file={self.list_file!r}"
        return f"{super().__repr__()[:-1]}, {own})"
