"""`edgec eval`: perplexity and top-k of a bundle, and of the original beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.bundle import need_language_model, need_trained_weights
from edgec.judge.images import labelled_images, load_image, rank_of
from edgec.judge.metrics import Array
from edgec.judge.perplexity import Progress, perplexity, read_text, windows_of

if TYPE_CHECKING:
    from edgec.judge.opened import Opened

DEFAULT_WINDOW = 256


def text(
    model: Opened, path: Path, reference: str | None = None, window: int = 0, samples: int = 0, threads: int = 0,
    progress: Progress | None = None, *, allow_pickle: bool = False,
) -> dict[str, Any]:
    """Perplexity over the text at `path`; with `reference` also the original's, and how often both agree.

    window: tokens (0: min(context, 256)). samples: at most so many windows, spread over the text (0: all).
    allow_pickle: also a reference with pickled weights.
    """
    need_trained_weights(model, reference)
    need_language_model(model, "--ppl")
    window = window or min(model.info.max_context, DEFAULT_WINDOW)
    if window > model.info.max_context:
        raise EdgecError("E0404", stage="eval", where="--window", found=f"{window} tokens",
                         wanted=f"at most {model.info.max_context}")
    tokens = model.tokenize(read_text(path), add_special=False)
    if samples:
        pieces = windows_of(tokens, window)
        step = max(1, len(pieces) // samples)
        tokens = [t for piece in [p for p in pieces if len(p) == window][::step][:samples] or pieces[:1] for t in piece]
    choices: dict[str, list[Array]] = {"bundle": [], "reference": []}

    with model.session(threads=threads, context=window) as session:
        def ours(piece: list[int]) -> Array:
            session.reset()
            logits = session.score(piece)
            choices["bundle"].append(logits.argmax(-1))
            return logits

        sides = {"bundle": perplexity(ours, tokens, window, progress).to_dict()}
    report: dict[str, Any] = {
        "about": f"perplexity of {path.name}: {len(tokens)} tokens, windows of {window}, each from an empty context",
        "text": str(path), "tokens": len(tokens), "sides": sides,
    }
    if reference is not None:
        from edgec.importers.reference import load_reference

        original = load_reference(reference, allow_pickle=allow_pickle)

        def theirs(piece: list[int]) -> Array:
            logits = original.logits(piece)
            choices["reference"].append(logits.argmax(-1))
            return logits

        sides["reference"] = perplexity(theirs, tokens, window, progress).to_dict()
        same = np.concatenate(choices["bundle"]) == np.concatenate(choices["reference"])
        report["agreement"] = float(same.mean())
    return report


def images(
    model: Opened, folder: Path, reference: str | None = None, mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0), samples: int = 0, threads: int = 0, progress: Progress | None = None,
    *, allow_pickle: bool = False,
) -> dict[str, Any]:
    """Top-1 and top-5 over a folder of labelled images; with `reference` the original's too, and the agreement.

    The model must have one image input [N, 3, H, W] and its first output is the logits. allow_pickle: as of text.
    """
    need_trained_weights(model, reference)
    if model.info.kind != 0 or len(model.inputs) != 1 or len(model.inputs[0].shape) != 4 or (
            model.inputs[0].shape[1] != 3):
        raise EdgecError("E0002", stage="eval", where="--images", found="a bundle without a single image input",
                         wanted="one input of shape [N, 3, H, W]")
    height, width = model.inputs[0].shape[2:]
    files = labelled_images(folder)
    if samples:
        files = files[:: max(1, len(files) // samples)][:samples]
    original = None
    if reference is not None:
        from edgec.importers.reference import load_reference

        original = load_reference(reference, allow_pickle=allow_pickle)
    name, output = model.inputs[0].name, model.outputs[0].name
    ranks: dict[str, list[int]] = {"bundle": [], "reference": []}
    same, worst = 0, 0.0
    with model.session(threads=threads) as session:
        for done, (path, label) in enumerate(files):
            image = load_image(path, height, width, mean, std)
            ours = session.run({name: image})[output]
            ranks["bundle"].append(rank_of(ours, label))
            if original is not None:
                theirs = next(iter(original.run({name: image}).values()))
                ranks["reference"].append(rank_of(theirs, label))
                same += int(ours.argmax() == theirs.argmax())
                worst = max(worst, float(np.abs(ours.reshape(-1) - theirs.reshape(-1)).max()))
            if progress is not None:
                progress(done + 1, len(files))
    report: dict[str, Any] = {
        "about": f"{len(files)} images of {folder.name}", "images": str(folder),
        "sides": {
            side: {"top1": sum(r == 0 for r in found) / len(found), "top5": sum(r < 5 for r in found) / len(found),
                   "images": len(found)}
            for side, found in ranks.items() if found
        },
    }
    if original is not None:
        report |= {"agreement": same / len(files), "max_abs": worst}
    return report
