"""The command train."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgec.cli_output import envelope, note, print_json, print_table
from edgec.cli_values import bad_value, format_bytes

_SECONDS = 10.0  # a line of progress this often


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder of a language model, or FILE.py:FACTORY.",
                                         show_default=False)],
    data: Annotated[str, typer.Option("--data", help="FILE.txt for a language model; else FILE.py:FUNCTION, "
                                                     "batches(number) -> (inputs, labels or None).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the result.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the optimizer.")],
    quant: Annotated[str | None, typer.Option(
        "--quant", help="The palette that is trained: palette2, palette4r16, palette8v2. Default: palette2.")] = None,
    override: Annotated[list[str] | None, typer.Option(
        "--quant-override", help="GLOB=paletteB or GLOB=none for modules by path. Repeatable.")] = None,
    layers: Annotated[Path | None, typer.Option(
        "--layers", help="Instead: a folder of `edgec quantize`, the bit planes in it are tuned.")] = None,
    engine: Annotated[str, typer.Option(
        "--engine", help="How palettes are computed: auto, table (over the different values), dense.")] = "auto",
    lr: Annotated[float, typer.Option("--lr", help="Largest learning rate.")] = 1e-4,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows of text per batch.")] = 4,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens of a window.")] = 256,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Batches per step.")] = 1,
    distill: Annotated[str, typer.Option("--distill", help="From the model as it was: none, forward, reverse or mix.")
                       ] = "mix",
    temperature: Annotated[float, typer.Option("--temperature", help="Of the distributions that are compared.")] = 1.0,
    labels: Annotated[float, typer.Option("--labels", help="Share of the labels in the loss.")] = 0.5,
    milestone: Annotated[int, typer.Option("--milestone", min=0, help="Steps before weights are clustered.")] = 0,
    anneal: Annotated[int | None, typer.Option(
        "--anneal", min=0, help="Steps of the annealing. Default: 3/4 of those after the milestone.")] = None,
    evaluation: Annotated[str | None, typer.Option(
        "--eval", help="FILE.txt (perplexity), or FILE.py:FUNCTION of the model, the higher the better.")] = None,
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", min=0, help="Steps.")] = 0,
    patience: Annotated[int, typer.Option("--patience", min=0, help="Evaluations without a better one, then stop.")
                        ] = 0,
    checkpoint_every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which batches of text; dropout.")] = 0,
    threads: Annotated[int, typer.Option("-t", "--threads", min=0, help="0: as torch has it.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")] = False,
) -> None:
    """Train a model in few bits. The same command continues a stopped run; compile takes the result."""
    from edgec.errors import missing_extra

    started = time.time()
    try:
        import torch
    except ImportError as e:
        raise missing_extra("torch", "torch", "train") from e
    from edgec.train.cluster import ENGINES
    from edgec.train.loop import FitOptions
    from edgec.train.losses import DISTILL
    from edgec.train.tune import TuneOptions, tune

    kind = next((k for k in DISTILL if k == distill), None)
    if kind is None:
        raise bad_value("--distill", distill, ", ".join(DISTILL))
    how = next((e for e in ENGINES if e == engine), None)
    if how is None:
        raise bad_value("--engine", engine, ", ".join(ENGINES))
    if threads:
        torch.set_num_threads(threads)
    options = TuneOptions(
        FitOptions(steps, lr, accumulate=accumulate, distill=kind, temperature=temperature, labels=labels,
                   checkpoint_every=checkpoint_every, evaluate_every=evaluate_every, patience=patience, seed=seed),
        quant=quant if quant is not None or layers is not None else "palette2", overrides=tuple(override or ()),
        layers=layers, engine=how, milestone=milestone, anneal=anneal, batch=batch, window=window)
    last = time.monotonic()

    def told(done: int, total: int, what: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            sys.stderr.write(f"step {done} of {total}: {what}\n")

    found = tune(model, data, output, options, evaluation=evaluation, progress=told)
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK") != "0":
        return  # of processes of torchrun the first speaks
    if json:
        print_json(envelope("train", started, **found))
        return
    _print(found)
    note(f"{found['steps']} steps, loss {found['first_loss']:.4g} to {found['last_loss']:.4g}; "
         f"{len(found['layers'])} layers, {format_bytes(found['bytes'])}, {found['bits_per_weight']} bits per weight; "
         f"{time.time() - started:.1f} s")
    note(f"next: edgec compile {found['model']} --quant-from {found['output']} -o OUT")


def _print(found: dict[str, Any]) -> None:
    if found["evaluations"]:
        print_table(("step", "evaluation", "soft-hard gap"),
                    [(e["step"], f"{e['value']:.5g}", f"{e['gap']:.3g}") for e in found["evaluations"]])
    print_table(("layer", "format", "rows", "columns", "bytes"),
                [(x["name"], x["spec"], x["rows"], x["columns"], x["bytes"]) for x in found["layers"]])
    for kept in found["kept"]:
        note(f"kept: {kept['name']}: {kept['reason']}")
