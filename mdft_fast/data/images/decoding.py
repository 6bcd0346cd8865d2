# SPDX-License-Identifier: Apache-2.0
"""One image file or PIL image -> the pixels that a backbone of a given preprocess takes.

The order is that of torchvision's loader followed by open_clip's evaluation transform: decode,
convert to RGB, resize with antialiasing, cut out the center. So a palette is resolved, an alpha
channel dropped and CMYK converted before anything is resized, and an EXIF orientation is not
applied.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mdft_fast.checkpoints import Preprocess, edges_before_crop
from mdft_fast.errors import MdftError, need

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[Any]

# What torchvision's ImageFolder takes for an image.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What is decoded, whatever a file's name says: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def is_pil(image: object) -> bool:
    """Tells whether something is a PIL image, without importing PIL."""
    return hasattr(image, "convert") and hasattr(image, "resize")


def decode(file: str | os.PathLike[str] | BinaryIO, name: str = "") -> Image:
    """Decodes an image file to RGB.

    Args:
        file: a path, or an open file.
        name: what an error calls it; the path where it is left out.

    Raises:
        MdftError: if its content is of none of :data:`FORMATS`, or is damaged or cut off.
    """
    pil = need("PIL.Image", "data", who=str(name or file))
    try:
        with pil.open(file, formats=FORMATS) as image:
            decoded: Image = image.convert("RGB")
            return decoded
    except pil.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise MdftError(f"{name or file}: not a readable image; must be one of {formats}") from None
    # PIL raises SyntaxError for some broken files, DecompressionBombError for enormous ones.
    except (OSError, ValueError, SyntaxError, EOFError, pil.DecompressionBombError) as error:
        raise MdftError(f"{name or file}: not a readable image: {error}") from None


def fit(image: Image, preprocess: Preprocess, channels: int = 3) -> Array:
    """Brings a PIL image to the size of a preprocess.

    Args:
        image: of any size and mode.
        preprocess: its ``size``, ``resize``, ``interpolation`` and ``crop_pct`` are used.
        channels: 3, or 1 for a grayscale image that may stay one.

    Returns:
        uint8 ``[H, W, channels]``. Divided by 255 and normalized, it is what
        ``open_clip.image_transform`` makes of the same RGB image; "bilinear" with one edge for
        both is torchvision's ``Resize`` and ``CenterCrop``; with ``crop_pct`` it is timm's
        evaluation transform.
    """
    resampling = need("PIL.Image", "data").Resampling
    image = image.convert("RGB" if channels == 3 else "L")
    height, width = preprocess["size"]
    method = {"bicubic": resampling.BICUBIC, "bilinear": resampling.BILINEAR}
    # Where nothing is to be done PIL does nothing.
    image = image.resize(_resized(image, preprocess), method[preprocess["interpolation"]])
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    pixels: Array = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, channels)


def _resized(image: Image, preprocess: Preprocess) -> tuple[int, int]:
    """Returns width and height before the center is cut out."""
    height, width = edges_before_crop(preprocess["size"], preprocess["crop_pct"])
    if preprocess["resize"] == "squash":
        return width, height
    if height == width:  # as torchvision rounds: down
        if image.width <= image.height:
            return width, int(width * image.height / image.width)
        return int(height * image.width / image.height), height
    ratio = min(image.width / width, image.height / height)  # as timm and open_clip round
    return round(image.width / ratio), round(image.height / ratio)
