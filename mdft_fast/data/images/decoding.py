# SPDX-License-Identifier: Apache-2.0
"""One image file or PIL image -> the pixels that a backbone of a given preprocess takes.

The order is that of torchvision's loader followed by open_clip's evaluation transform: decode,
convert to RGB, resize with antialiasing, cut out the center. So a palette is resolved, an alpha
channel dropped and CMYK converted before anything is resized, and an EXIF orientation is applied
only where that is asked for. 16 bits a pixel are scaled to 8; pixels whose scale nobody says, such
as floats, are refused.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mdft_fast.checkpoints import Preprocess, edges_before_crop
from mdft_fast.errors import MdftError, need

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[Any]

# PIL warns from here on: such an image takes 270 MB.
MOST_PIXELS = 89_478_485
_ORIENTATION, _BITS = 0x0112, 258  # EXIF's and TIFF's tags
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
_SIXTEEN_BITS = {("I", "PNG"), ("I", "PPM")}
# What torchvision's ImageFolder takes for an image.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What is decoded, whatever a file's name says: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def readable(name: object) -> str:
    """Returns a file's name as text that can be written; bytes that are no UTF-8 are escaped."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def is_pil(image: object) -> bool:
    """Tells whether something is a PIL image, without importing PIL."""
    return hasattr(image, "convert") and hasattr(image, "resize")


def decode(
    file: str | os.PathLike[str] | BinaryIO, name: str = "", *, turned: bool = False
) -> Image:
    """Decodes an image file to RGB.

    Args:
        file: a path, or an open file.
        name: what an error calls it; the path where it is left out.
        turned: whether it is turned as its EXIF orientation says, as ``datasets`` does.

    Raises:
        MdftError: if its content is of none of :data:`FORMATS`, is damaged or cut off, has more
            than :data:`MOST_PIXELS` (a JPEG is decoded smaller), or its pixels have no known scale.
    """
    name = readable(name or str(file))
    pil = need("PIL.Image", "data", who=name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pil.DecompressionBombWarning)  # refused or made smaller
            image = pil.open(file, formats=FORMATS)
        with image:
            _bound(image)
            decoded = _in_mode(image, "RGB")
            turn = _TURNS.get(_orientation(image)) if turned else None
            return decoded if turn is None else decoded.transpose(pil.Transpose[turn])
    except pil.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise MdftError(f"{name}: not a readable image; must be one of {formats}") from None
    # PIL raises SyntaxError for some broken files, DecompressionBombError for enormous ones.
    except (
        OSError, ValueError, SyntaxError, EOFError, OverflowError, pil.DecompressionBombError
    ) as error:  # fmt: skip
        raise MdftError(f"{name}: not a readable image: {error}") from None
    except MdftError as error:
        raise MdftError(f"{name}: {error}") from None


def _orientation(image: Image) -> Any:
    """Returns what an image's EXIF says of it; damaged EXIF says nothing."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # whatever PIL raises for it
        return None


def _bound(image: Image) -> None:
    """Has a huge JPEG decoded at a half, a quarter or an eighth; refuses other huge images."""
    scale = 1
    while image.width * image.height > MOST_PIXELS * scale**2 and scale < 8:
        scale *= 2
    if scale > 1 and image.format == "JPEG":
        image.draft(None, (image.width // scale, image.height // scale))
    if image.width * image.height > MOST_PIXELS:
        raise MdftError(
            f"must have at most {MOST_PIXELS:,} pixels, got {image.width} x {image.height}"
        )


def _in_mode(image: Image, mode: str) -> Image:
    """Returns a PIL image in mode "RGB" or "L"; wide pixels are scaled to 8 bits, not clipped."""
    if not image.mode.startswith(("I", "F")):
        return image.convert(mode)
    # PNG and PPM in mode "I" are of 16 bits; PIL scales a PPM's own maximum to that.
    if not image.mode.startswith("I;16") and (image.mode, image.format) not in _SIXTEEN_BITS:
        raise MdftError(
            f"its pixels must have 8 or 16 bits, got PIL's mode {image.mode!r}, whose scale nobody "
            "says; convert the images to 8 bits first"
        )
    bits = image.tag_v2.get(_BITS, (16,))[0] if hasattr(image, "tag_v2") else 16
    top = 2**bits - 1  # a TIFF may have 12
    wide = np.asarray(image).astype(np.uint32)
    narrow = ((wide * 255 + top // 2) // top).clip(0, 255).astype(np.uint8)
    made: Image = need("PIL.Image", "data").fromarray(narrow)
    return made.convert(mode)


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
    image = _in_mode(image, "RGB" if channels == 3 else "L")
    height, width = preprocess["size"]
    methods = {"bicubic": resampling.BICUBIC, "bilinear": resampling.BILINEAR}
    method, resized = methods[preprocess["interpolation"]], _resized(image, preprocess)
    left = round((resized[0] - width) / 2)
    top = round((resized[1] - height) / 2)
    if resized[0] * resized[1] > MOST_PIXELS:  # thin: the center alone is resized
        x, y = image.width / resized[0], image.height / resized[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        image = image.resize((width, height), method, box=box)
    else:  # where nothing is to be done PIL does nothing
        image = image.resize(resized, method)
        image = image.crop((left, top, left + width, top + height))
    pixels: Array = np.asarray(image)
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
