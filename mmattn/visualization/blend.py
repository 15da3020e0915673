"""A map's colours over the image, and the size in which an image is shown."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Colormap, ListedColormap
from PIL import Image

STRENGTH = 0.6  # the share of a map's colour in a pixel
DARKEST = 0.35  # the grey that black becomes under a map; white stays white
MIDDLE = 0.5  # a middle grey of the image, on which legends show a colour
LIMIT = 640  # px, greatest width and height of a panel


def grey(image: np.ndarray) -> np.ndarray:
    """The image's luminance, lightened: what lies under a map.

    It is ``DARKEST + (1 - DARKEST) (0.299 R + 0.587 G + 0.114 B)`` with R, G and B between 0
    and 1.

    Args:
        image: (H, W, 3), 8 bits, RGB.

    Returns:
        (H, W), between ``DARKEST`` and 1.
    """
    luminance = np.asarray(image, np.float32) @ np.float32([0.299, 0.587, 0.114]) / 255
    return DARKEST + (1 - DARKEST) * luminance


def blend(
    image: np.ndarray, colours: np.ndarray, strength: float | np.ndarray = STRENGTH
) -> np.ndarray:
    """A map over an image: ``strength`` parts of the colour, the rest of the lightened grey.

    ``strength c + (1 - strength) grey(image)``, for red, green and blue alike. So the image shows
    in lightness only, never in hue, and two values of the map differ by the same amount of colour
    on every ground. :func:`on_grey` gives what a legend or a colour bar has to show beside it.

    Args:
        image: (H, W, 3), 8 bits, RGB.
        colours: (H, W, 3), between 0 and 1, as :meth:`.style.Scale.colours` gives them.
        strength: From 0 (the grey image) to 1 (the colours alone); or (H, W), one for each pixel.

    Returns:
        (H, W, 3), 8 bits, RGB.

    Raises:
        ValueError: The map does not have the size of the image, or ``strength`` is not between 0
            and 1.
    """
    image, colours = np.asarray(image), np.asarray(colours, np.float32)[..., :3]
    if image.shape != colours.shape or image.ndim != 3:
        raise ValueError(
            f"blend expects an image and colours of the same size (H, W, 3), got {image.shape} "
            f"and {colours.shape}: bring the map to the image with Collected.on_image first."
        )
    share = np.asarray(strength, np.float32)
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"strength must be between 0 and 1, got {strength}.")
    share = share[..., None]
    mixed = share * colours + (1 - share) * grey(image)[..., None]
    return np.rint(mixed * 255).astype(np.uint8)


def on_grey(colours: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """What :func:`blend` makes of colours over a middle grey of the image: for legends.

    Args:
        colours: (..., 3) or (..., 4), between 0 and 1; an opacity is left out.
        strength: As of the map.

    Returns:
        (..., 3), between 0 and 1.
    """
    under = DARKEST + (1 - DARKEST) * MIDDLE
    return strength * np.asarray(colours, float)[..., :3] + (1 - strength) * under


def tinted(cmap: Colormap, strength: float = STRENGTH) -> ListedColormap:
    """The colours of a scale as a map shows them over a middle grey: for its colour bar.

    Args:
        cmap: Of the scale.
        strength: As of the map.
    """
    colours = cmap(np.arange(cmap.N))
    return ListedColormap(on_grey(colours, strength), f"{cmap.name} over grey")


def shown_size(image: np.ndarray, limit: int = LIMIT) -> tuple[int, int]:
    """Height and width in which an image is shown: its own, or scaled down to ``limit`` px.

    Args:
        image: (H, W, ...).
        limit: Greatest height and width.

    Returns:
        Height and width, at least 1 px each, in the image's aspect ratio.
    """
    height, width = image.shape[:2]
    scale = min(1.0, limit / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def shown(picture: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """A picture scaled down to ``limit`` px, each pixel the mean of what it covers.

    For images and what :func:`blend` gives; never for a map's values.

    Args:
        picture: (H, W, 3), 8 bits.
        limit: Greatest height and width.

    Returns:
        (h, w, 3), 8 bits; ``picture`` itself if it is no larger.
    """
    height, width = shown_size(picture, limit)
    if (height, width) == picture.shape[:2]:
        return picture
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small)
