"""Is an image file whole?"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

# what Pillow's decoders raise for content that is not what it should be
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError)
_ORIENTATION = 0x0112  # of EXIF; 5 to 8 lie on their side
_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


class Inspected(NamedTuple):
    """What is in an image file.

    Attributes:
        kind: None if it is whole, else 'missing', 'unreadable' or 'truncated'.
        why: One clause for a person; '' if it is whole.
        size: (width, height) in px as a training reads it, or None.
        turned: Whether its EXIF orientation swaps width and height.
    """

    kind: str | None
    why: str = ""
    size: tuple[int, int] | None = None
    turned: bool = False


def inspect(path: Path | str) -> Inspected:
    """Reads and decodes a whole image file."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return Inspected("missing", "does not exist")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        return Inspected("unreadable", f"cannot be read: {getattr(error, 'strerror', error)}")
    return decode(content)


def decode(content: bytes) -> Inspected:
    """Decodes the whole content of an image file with Pillow.

    Of a file whose bytes are wrong in the middle, most decoders do not complain: neither does this.
    """
    if not content:
        return Inspected("unreadable", "is empty")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # aerial images are large
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            # MPO: a JPEG of a camera that has a second picture behind the first
            turned = image.format in ("JPEG", "MPO", "PNG") and (
                image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            )
            image.load()
            # Pillow minds these less than others do: no end, or zeros in place of the rest
            png, jpeg = image.format == "PNG", image.format == "JPEG"
            if (png and _PNG_END not in content) or (
                jpeg and content.rfind(_JPEG_END) < content.rfind(_JPEG_SCAN)
            ):
                return Inspected("truncated", f"is cut off after {len(content):,} bytes")
    except UnidentifiedImageError:
        return Inspected("unreadable", f"is no image: it begins with {content[:12]!r}")
    except _BROKEN as error:
        if is_cut_off(content) or "truncated" in str(error):
            return Inspected("truncated", f"is cut off after {len(content):,} bytes")
        return Inspected("unreadable", f"cannot be decoded: {error}")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return Inspected(None, size=size[::-1] if turned else size, turned=turned)


def is_cut_off(content: bytes) -> bool:
    """Whether the mark that ends a JPEG, PNG or WebP is not where it should be.

    Takes less than a microsecond. A file with something behind its end is said to be cut off,
    too: :func:`decode` knows better, in the time of decoding it.
    """
    if content.startswith(_JPEG):
        return not content.endswith(_JPEG_END)
    if content.startswith(_PNG):
        return not content.endswith(_PNG_END)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    return False
