"""The long run (`make fuzz`): python -m tests.fuzz.campaign [--cases N] [--minutes M] [--first SEED]

N damaged bundles on all cores, then M minutes shared by the libFuzzer targets and, under atheris, the importers and
the compiler. Prints what each program ends with; the exit status is 1 when any found something, did not end, or could
not be run. What libFuzzer and atheris found lies in build/fuzz, and what is new to their corpora too: the next run
starts from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.importers import KINDS
from tests.fuzz.programs import ROOT, build, has_libfuzzer
from tests.fuzz.seeds import TARGETS, write_corpus, write_seeds

WORK = ROOT / "build" / "fuzz"
LIBFUZZER = ("-max_len=65536", "-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=0")


def run(name: str, command: list[str], folder: Path, seconds: float) -> bool:
    """Whether the program found nothing; its last lines are shown, everything is in build/fuzz/NAME.log.

    seconds: by the clock. The programs limit the time of a case in CPU time, of which a thread that waits takes none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = WORK / f"{name}.log"
    with log.open("w") as out:
        try:
            status: int | str = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, check=False,
                                               timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            status = f"none after {seconds:.0f} s"
    progress = ("# Uses", "REDUCE", "NEW ", "RELOAD", "pulse", "######")
    kept = [line for line in log.read_text(errors="replace").splitlines()
            if line and not any(word in line for word in progress)]
    print(f"== {name}: exit status {status}", *kept[-9:], sep="\n   ", flush=True)
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--first", type=int, default=1)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    seeds = [str(path) for path in write_seeds(WORK)]
    cores = os.cpu_count() or 1
    program = str(build("sanitize", ["edgec_fuzz_bundle"]) / "edgec_fuzz_bundle")
    jobs: list[tuple[str, list[str], Path, float]] = []
    complete = True
    for i in range(cores):
        first, end = (options.cases * k // cores for k in (i, i + 1))
        numbers = ["--seed", str(options.first + first), "--count", str(end - first)]
        jobs.append((f"bundles{i}", [program, *seeds, *numbers], WORK, 600 + 0.05 * (end - first)))
    guided: list[tuple[str, list[str], Path, float]] = []
    seconds = int(options.minutes * 60 * cores / (len(TARGETS) + len(KINDS)))
    if seconds and not has_libfuzzer():
        complete = False
        print("== without clang and its runtime libraries (tools/setup_test_tools.sh) there are no libFuzzer targets")
    elif seconds:
        folder = build("libfuzzer", [f"edgec_fuzz_{target}" for target in TARGETS])
        for target, first in zip(TARGETS, write_corpus(WORK), strict=True):
            limits = [*LIBFUZZER, f"-max_total_time={seconds}"]
            (WORK / f"{target}-found").mkdir(exist_ok=True)
            command = [str(folder / f"edgec_fuzz_{target}"), str(WORK / f"{target}-found"), str(first), *limits]
            guided.append((target, command, WORK / "artifacts" / target, 600 + 2 * seconds))
    if seconds and not importlib.util.find_spec("atheris"):
        complete = False
        print("== without atheris (tools/setup_test_tools.sh) the importers are not fuzzed")
    elif seconds:
        for kind in KINDS:
            command = [sys.executable, "-m", "tests.fuzz.importers", kind, "--seconds", str(seconds)]
            guided.append((f"import-{kind}", command, ROOT, 600 + 2 * seconds))
    with ThreadPoolExecutor(max_workers=cores) as pool:
        good = list(pool.map(lambda job: run(*job), [*jobs, *guided]))
    return 0 if complete and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
