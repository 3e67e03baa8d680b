#!/usr/bin/env python3
"""Counts the instructions of fixed pieces of work under callgrind and compares them with stored counts.

    bench/instructions.py PROGRAM [--counts FILE] [--update]

PROGRAM is build/bin/tightkv_instructions. Fails where a count is more than 3 % off, in either direction: an improvement
is stored with --update, as is a change of compiler, on which counts depend. Skips (exit code 77) with another compiler
than the stored one, or without valgrind.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

TOLERANCE = 0.03
SKIP = 77
# Valgrind knows no AVX-512. The scalar reference is one code for all formats.
WORK = [("avx2", f, w) for f in ("turbo4", "turbo3", "turbo2", "turbo4t", "turbo3t", "turbo2t", "turbo8") for w in ("encode", "few_rows", "many_rows")]
WORK += [("scalar", "turbo4", w) for w in ("encode", "few_rows", "many_rows")]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIP)


def count(program, work):
    """Instructions of one piece of work; None where the program says that this machine lacks the level."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=tightkv_measured",
                   f"--callgrind-out-file={folder}/out", program, *work]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == SKIP:
        return None
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode != 0 or not found:
        sys.exit(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")
    return int(found[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--counts", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions.json"))
    parser.add_argument("--update", action="store_true", help="store today's counts")
    args = parser.parse_args()

    try:
        subprocess.run(["valgrind", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        skip("valgrind is not installed")
    compiler = subprocess.run([args.program, "compiler"], capture_output=True, text=True, check=True).stdout.strip()
    stored = {}
    if os.path.exists(args.counts):
        with open(args.counts, encoding="utf-8") as file:
            stored = json.load(file)
    how = f"'bench/instructions.py {args.program} --update' stores today's counts"
    if not args.update and not stored:
        skip(f"no counts are stored in {args.counts}; {how}")
    if not args.update and stored.get("compiler") != compiler:
        skip(f"the stored counts are of {stored.get('compiler')}, this build is of {compiler}; {how}")

    counts, wrong = {}, 0
    for work in WORK:
        name, now = "/".join(work), count(args.program, work)
        if now is None:
            print(f"{name}: not on this machine")
            continue
        counts[name] = now
        before = stored.get("counts", {}).get(name)
        change = f"{(now / before - 1) * 100:+.2f} %" if before else "new"
        bad = not args.update and (not before or abs(now / before - 1) > TOLERANCE)
        wrong += bad
        print(f"{'WRONG  ' if bad else ''}{name}: {now} instructions, stored {before or 'none'} ({change})", flush=True)
    if args.update:
        with open(args.counts, "w", encoding="utf-8") as file:
            json.dump({"compiler": compiler, "counts": counts}, file, indent=2)
            file.write("\n")
        print(f"stored in {args.counts}")
    elif wrong:
        sys.exit(f"{wrong} counts are more than {TOLERANCE:.0%} off; {how}")


main()
