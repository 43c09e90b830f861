"""Timing: samples, and what to say about them. Conventions of llama-bench for language models."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Samples:
    """Seconds of every repetition of one test; `work` is how many tokens (or runs) one repetition did."""

    name: str
    threads: int
    work: int
    seconds: tuple[float, ...]

    @property
    def rates(self) -> list[float]:
        """Work per second of every repetition."""
        return [self.work / s for s in self.seconds]

    def quantile(self, q: float) -> float:
        """Seconds, nearest-rank: p50 and p99 are measured values, not interpolated ones."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)]

    def to_dict(self) -> dict[str, Any]:
        rates = self.rates
        return {
            "test": self.name, "threads": self.threads, "work": self.work, "repetitions": len(self.seconds),
            "per_second": {
                "mean": statistics.fmean(rates), "median": statistics.median(rates),
                "stddev": statistics.stdev(rates) if len(rates) > 1 else 0.0,
            },
            "seconds": {"p50": self.quantile(0.5), "p90": self.quantile(0.9), "p99": self.quantile(0.99)},
            "samples_s": list(self.seconds),
        }


def measure(name: str, threads: int, work: int, run: Callable[[], None], repetitions: int, warmup: int = 1,
            prepare: Callable[[], None] | None = None) -> Samples:
    """Times `run` `repetitions` times after `warmup` untimed ones; `prepare` precedes each run, untimed."""
    seconds: list[float] = []
    for index in range(warmup + repetitions):
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        run()
        spent = time.perf_counter() - start
        if index >= warmup:
            seconds.append(spent)
    return Samples(name, threads, work, tuple(seconds))


def interleaved(sides: Sequence[tuple[str, Callable[[], None]]], turns: int, threads: int, work: int, *,
                settle: float = 0.06, untimed: int = 4, timed: int = 5) -> list[Samples]:
    """Times several sides in turn, A B A B ..., so that a slow moment of the machine hits all of them.

    Each turn waits `settle` seconds, then runs `untimed` times and `timed` times (each a sample). The wait is there
    because a contender's worker threads spin for tens of milliseconds after its run and would take a core from whoever
    is timed next; the untimed runs because caches, clocks and sleeping threads need that long to be warm again.
    """
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    for _ in range(turns):
        for name, run in sides:
            time.sleep(settle)
            for index in range(untimed + timed):
                start = time.perf_counter()
                run()
                spent = time.perf_counter() - start
                if index >= untimed:
                    seconds[name].append(spent)
    return [Samples(name, threads, work, tuple(values)) for name, values in seconds.items()]
