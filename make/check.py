"""Runs every check that needs no VM, also after one has failed, and says at the end which ones did.

    check.py [--without-tests]      the unit tests are run by something else, as in `make check test`
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent

DOC = ["cargo", "doc", "--locked", "--no-deps", "--document-private-items"]

# Name, command, additions to the environment. The invariants between crates are tests, and so part of the last step.
STEPS = [
    ("format", ["cargo", "fmt", "--all", "--check"], {}),
    (
        "lints",
        ["cargo", "clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
        {},
    ),
    # The program and the library share the name `boxlite`, and so the place of their pages: the library's come last.
    ("docs of the command line", [*DOC, "-p", "boxlite-cli"], {"RUSTDOCFLAGS": "-D warnings"}),
    ("docs", [*DOC, "--workspace", "--exclude", "boxlite-cli"], {"RUSTDOCFLAGS": "-D warnings"}),
    (
        "dependencies",
        ["cargo", "deny", "--log-level", "error", "--workspace", "--locked", "check", "bans", "licenses", "sources"],
        {},
    ),
    ("unit tests and invariants", [sys.executable, "make/test.py", "unit"], {}),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-tests", action="store_true")
    steps = STEPS[:-1] if parser.parse_args().without_tests else STEPS
    outcomes = []
    for name, command, env in steps:
        print(f"==> {name}: {' '.join(command)}", flush=True)
        started = time.monotonic()
        code = subprocess.run(command, cwd=TOP, env=os.environ | env, stdin=subprocess.DEVNULL).returncode
        outcomes.append((name, code, time.monotonic() - started))
    print()
    for name, code, seconds in outcomes:
        print(f"{'ok    ' if code == 0 else 'FAILED'} {name} ({seconds:.0f} s)")
    return 0 if all(code == 0 for _, code, _ in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
