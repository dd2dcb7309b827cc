"""Every reader against damaged files: ``python tests/benchmarks/fuzz.py [--inputs N] [KIND ...]``.

Each kind runs in a process of its own, so that a crash is seen. Prints how many files were read all
the same, how many were errors that name the file, and the memory that reading took at most.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from fuzz_cases import KINDS, try_damaged

    named = [kind for kind in KINDS if not options.kinds or kind.name in options.kinds]
    if options.here:
        sys.unraisablehook = lambda _: None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = try_damaged(named[0], Path(folder), options.inputs)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        seconds = time.perf_counter() - began
        print(f"{found['read']:>8}{found['error']:>8}{seconds:>8.0f}{grown:>8.0f}")
        return 0
    print(f"{'kind':<14}{'inputs':>8}{'read':>8}{'errors':>8}{'s':>8}{'+MB':>8}")
    failed = 0
    for kind in named:
        command = [sys.executable, __file__, kind.name, "--here", "--inputs", str(options.inputs)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        said = ran.stdout.rstrip("\n")
        if ran.returncode:
            failed += 1
            last = (ran.stderr.strip().splitlines() or [""])[-1]
            said = f"  ended with {ran.returncode}: {last[:150]}"
        print(f"{kind.name:<14}{options.inputs:>8}{said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
