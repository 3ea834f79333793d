"""Writes docs/parity.md: what the parity tests held to what, how far apart the two were, and what is not here."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "parity.md"
SYSTEMS = ROOT / "docs" / "systems.toml"
KINDS = {
    "checkpoint": "Released checkpoints",
    "method": "Methods of the survey",
    "folder": "Folders that others wrote",
}
PLACES = {
    "checkpoint": "mmembed/checkpoints/{family}.toml",
    "method": "mmembed/methods/{family}.py",
    "folder": "mmembed/{family}.py",
}


def measured() -> tuple[list[dict[str, Any]], float]:
    """Rows that the parity tests wrote, and the seconds they took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "pytest", "--parity", str(file)], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(f"the parity tests failed ({done.returncode}): no page")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return rows, time.perf_counter() - began


def systems() -> list[dict[str, Any]]:
    """The systems of the survey and after it: each with the rows that show it, or the reason why it is not here."""
    return tomllib.loads(SYSTEMS.read_text(encoding="utf-8"))["system"]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def place(kind: str, family: str) -> str:
    path = PLACES[kind].format(family=family)
    return f"[{family}](../{path})" if (ROOT / path).exists() else family


def page(rows: list[dict[str, Any]], seconds: float) -> str:
    from mmembed.checkpoints import NOT_HERE
    from mmembed.methods import NOT_HERE as METHODS_NOT_HERE

    by_system: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_system[row["kind"], row["system"]].append(row)
    count = {kind: sum(k == kind for k, _ in by_system) for kind in KINDS}
    greatest = max(row["difference"] for row in rows)
    out = [
        "# Parity",
        "",
        "Written by `python .ci/parity_page.py` from the tests' own results, not by hand. Each row was computed twice on the",
        "same tiny random weights of the same architecture, by `mmembed` and by the reference named; the difference is the",
        "greatest of any number of any vector, in fp32 (of vectors that are not of unit length: relative to the greatest",
        "number). The bound of every test is 1e-5.",
        "",
        f"{count['checkpoint']} released checkpoints, {count['method']} methods, {count['folder']} forms of folders; "
        f"{len(rows)} comparisons, greatest difference {greatest:.1e}; {seconds:.0f} s.",
    ]
    for kind, title in KINDS.items():
        lines = []
        for (k, system), own in sorted(
            by_system.items(), key=lambda entry: (entry[1][0]["family"], entry[0][1].lower())
        ):
            if k == kind:
                what = ", ".join(sorted({row["what"] for row in own}))
                against = "; ".join(sorted({row["against"] for row in own}))
                families = ", ".join(place(kind, f) for f in sorted({row["family"] for row in own}))
                lines.append(
                    [
                        f"`{system}`",
                        families,
                        what,
                        against,
                        f"{max(row['difference'] for row in own):.1e}",
                        str(len(own)),
                    ]
                )
        head = ["system", "spec or file", "compared", "held to", "greatest difference", "comparisons"]
        out += ["", f"## {title}", "", *table(head, lines)]
    shown = {system for _, system in by_system}
    for entry in systems():
        unknown = [name for name in entry.get("rows", ()) if name not in shown]
        if unknown or bool(entry.get("rows")) == bool(entry.get("reason")):
            sys.exit(
                f"{SYSTEMS}: {entry['name']}: rows {unknown} were not shown, or it has both rows and a reason or neither"
            )
    out += ["", "## Systems of the survey, and where they are", ""]
    out += table(
        ["system", "shown by"],
        [[e["name"], ", ".join(f"`{r}`" for r in e["rows"])] for e in systems() if e.get("rows")],
    )
    out += ["", "## Not here", "", "What is not run, and why; nothing of it is imitated.", ""]
    absent = [[e["name"], e["reason"]] for e in systems() if e.get("reason")]
    absent += [[f"`{name}`", reason] for name, reason in {**NOT_HERE, **METHODS_NOT_HERE}.items()]
    out += table(["system", "why"], absent)
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    rows, seconds = measured()
    PAGE.write_text(page(rows, seconds), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len({row['system'] for row in rows})} systems, {seconds:.0f} s")


if __name__ == "__main__":
    main()
