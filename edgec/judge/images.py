"""Top-1 and top-5 over a folder of labelled images: `IIII_anything.jpg`, IIII = class index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgec.errors import EdgecError, missing_extra
from edgec.judge.metrics import Array

_NAME = re.compile(r"(\d+)_.*\.(?:jpe?g|png|bmp|webp)", re.IGNORECASE)


def labelled_images(folder: Path) -> list[tuple[Path, int]]:
    """(file, class index) in name order. Raises EdgecError EDGEC-E0003 or EDGEC-E0502 (no such names)."""
    if not folder.is_dir():
        raise EdgecError("E0003", stage="eval", where=str(folder), found="no such folder", wanted="a folder of images")
    found = [(path, m) for path in sorted(folder.iterdir()) if (m := _NAME.fullmatch(path.name))]
    if not found:
        raise EdgecError("E0502", stage="eval", where=str(folder), found="no image named INDEX_anything.jpg",
                         wanted="file names that start with the class index, as 0207_golden_retriever.jpg")
    return [(path, int(m.group(1))) for path, m in found]


def load_image(path: Path, height: int, width: int, mean: Sequence[float], std: Sequence[float],
               stage: str = "eval") -> Array:
    """float32 [1, 3, height, width]: RGB / 255, minus mean, over std.

    An image of another size is scaled to cover the frame and cropped at its centre. Raises EdgecError EDGEC-E0005
    without Pillow, EDGEC-E0502 for a file that is not an image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as e:
        raise missing_extra("images", "PIL", stage) from e
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as e:
        raise EdgecError("E0502", stage=stage, where=str(path), found=str(e), wanted="an image") from e
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))),
                             Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32) / np.float32(255)
    normal: Array = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def rank_of(logits: Array, label: int) -> int:
    """How many classes come before `label`; among equals the lower index comes first, and NaN comes before all."""
    flat = logits.reshape(-1)
    if label >= flat.size:
        raise EdgecError("E0502", stage="eval", found=f"class {label}", wanted=f"a class below {flat.size}",
                         hint="the images were labelled for another model")
    # Written with <= so that a NaN anywhere counts against the label instead of for it.
    ahead = ~(flat <= flat[label])
    ahead[:label] |= flat[:label] == flat[label]
    ahead[label] = bool(np.isnan(flat[label]))
    return int(ahead.sum())
