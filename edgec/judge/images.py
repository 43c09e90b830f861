"""Top-1 and top-5 over a folder of labelled images: `IIII_anything.jpg`, IIII = class index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError, missing_extra
from edgec.judge.metrics import Array

_NAME = re.compile(r"(\d+)_.*\.(?:jpe?g|png|bmp|webp)", re.IGNORECASE)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TopK:
    """Shares of images whose class is the first, or among the first five, of the logits."""

    top1: float
    top5: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def labelled_images(folder: Path) -> list[tuple[Path, int]]:
    """(file, class index) in name order. Raises EdgecError EDGEC-E0003 or EDGEC-E0502 (no such names)."""
    if not folder.is_dir():
        raise EdgecError("E0003", stage="eval", where=str(folder), found="no such folder", wanted="a folder of images")
    found = [(path, m) for path in sorted(folder.iterdir()) if (m := _NAME.fullmatch(path.name))]
    if not found:
        raise EdgecError("E0502", stage="eval", where=str(folder), found="no image named INDEX_anything.jpg",
                         wanted="file names that start with the class index, as 0207_golden_retriever.jpg")
    return [(path, int(m.group(1))) for path, m in found]


def load_image(path: Path, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Array:
    """float32 [1, 3, height, width]: RGB / 255, minus mean, over std.

    An image of another size is scaled to cover the frame and cropped at its centre. Raises EdgecError EDGEC-E0005
    without Pillow, EDGEC-E0502 for a file that is not an image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as e:
        raise missing_extra("images", "PIL", "eval") from e
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as e:
        raise EdgecError("E0502", stage="eval", where=str(path), found=str(e), wanted="an image") from e
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))),
                             Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32) / np.float32(255)
    pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def rank_of(logits: Array, label: int) -> int:
    """How many classes come before `label`; among equal logits the lower index comes first."""
    flat = logits.reshape(-1)
    if label >= flat.size:
        raise EdgecError("E0502", stage="eval", found=f"class {label}", wanted=f"a class below {flat.size}",
                         hint="the images were labelled for another model")
    mine = flat[label]
    return int((flat > mine).sum() + (flat[:label] == mine).sum())


def top_k(classify: Callable[[Array], Array], images: Iterator[tuple[Array, int]]) -> TopK:
    """Runs `classify` ([1, 3, H, W] -> logits) over (image, class) pairs."""
    ranks = [rank_of(classify(image), label) for image, label in images]
    return TopK(sum(r == 0 for r in ranks) / len(ranks), sum(r < 5 for r in ranks) / len(ranks), len(ranks))
