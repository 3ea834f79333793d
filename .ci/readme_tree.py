"""Writes the README's tree of the house from the first sentence of each file; --check only says whether it is right."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->"


def sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(doc.split("\n\n")[0].split())
    return first[:-1] if first.endswith(".") else first


def lines(folder: Path, depth: int) -> list[str]:
    files = sorted(p for p in folder.glob("*.py") if p.name not in ("__init__.py", "__main__.py"))
    rooms = sorted(p.parent for p in folder.glob("*/__init__.py"))
    out = []
    for path in sorted([*files, *rooms], key=lambda p: p.name):
        is_room = path.is_dir()
        name = "  " * depth + (f"{path.name}/" if is_room else path.name)
        told = sentence(path / "__init__.py" if is_room else path)
        wrapped = textwrap.wrap(told, 90)
        out.append(f"{name:<28} {wrapped[0]}")
        out += [" " * 29 + line for line in wrapped[1:]]
        if is_room:
            out += lines(path, depth + 1)
    return out


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tree = "\n".join(["```", "mmembed/", *lines(ROOT / "mmembed", 1), "```"])
    right = f"{before}{BEGIN}{tree}\n{END}{after}"
    if "--check" in sys.argv:
        return int(text != right)
    readme.write_text(right, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
