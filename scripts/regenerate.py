"""Every table of RESULTS.md and of the README again, by the commands that stand there.

    python scripts/regenerate.py --data FOLDER --out FOLDER [--only WORD] [--list]

RESULTS.md is the list: each command in it is run, its output kept in ``OUT/NN.txt`` under the command, with how long it
took. DATA, FORM and FOLDER in a command stand for the folder of the data sets and for folders in OUT. A command whose
output is there already is left out, so that the same call goes on where it was stopped; most commands resume on their
own too. All of it takes a day on two CPU cores; ``--only evaluate`` picks the commands with that word.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN = ("python scripts/", "star-tl ")
ITSELF = "scripts/regenerate.py"
STAR_TL = [sys.executable, "-c", "from star_tl.cli import app; app()"]


def commands(text: str) -> list[str]:
    """The commands of a document: its indented lines that begin with a program of ours, in order, each once."""
    lines = (line.strip() for line in text.splitlines() if line.startswith("    "))
    return list(dict.fromkeys(line for line in lines if line.startswith(BEGIN) and ITSELF not in line))


def arguments(command: str, data: Path, out: Path) -> list[str]:
    """A command as it is run here: with this Python, and with folders in place of their names."""
    words = shlex.split(command)
    made = {"FORM": out / "form", "OUT": out}
    found: list[str] = []
    for word in words[1:]:
        first, _, rest = word.partition("/")
        if word == "FOLDER":  # of the data, but where something is written
            found.append(str(out / "kept") if found and found[-1] == "--out" else str(data))
        elif first in ("DATA", *made):
            found.append(str((data if first == "DATA" else made[first]) / rest))
        else:
            found.append(word)
    return [sys.executable, *found] if words[0] == "python" else [*STAR_TL, *found]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True, help="the data sets as their authors publish them")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--only", default="", help="commands with this word")
    ap.add_argument("--list", action="store_true", help="print the commands, run none")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, command in enumerate(commands(RESULTS.read_text(encoding="utf-8"))):
        file = args.out / f"{number:02d}.txt"
        if args.only not in command or file.exists():
            continue
        print(f"{number:02d}  {command}", flush=True)
        if args.list:
            continue
        folder = args.out / f"{number:02d}"
        folder.mkdir(exist_ok=True)
        began = time.monotonic()
        call = arguments(command, args.data.resolve(), folder.resolve())
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        took = f"{time.monotonic() - began:.0f} s, exit {done.returncode}"
        print(f"    {took}", flush=True)
        name = file if done.returncode == 0 else file.with_suffix(".failed.txt")
        name.write_text(f"{command}\n{took}\n\n{done.stdout}\n{done.stderr[-4000:]}", encoding="utf-8")
        failed += done.returncode != 0
    sys.exit(f"{failed} commands failed: read OUT/*.failed.txt." if failed else 0)


if __name__ == "__main__":
    main()
