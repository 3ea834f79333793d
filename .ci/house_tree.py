"""Writes the tree of docs/house.md, and the rooms of the README, from the first sentence of each file; --check only says whether
they are right."""

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


def lines(folder: Path, depth: int, deepest: int) -> list[str]:
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
        if is_room and depth < deepest:
            out += lines(path, depth + 1, deepest)
    return out


def right(page: Path, deepest: int) -> str:
    """What a page should say, with as many levels of folders as it shows."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tree = "\n".join(["```", "mmembed/", *lines(ROOT / "mmembed", 1, deepest), "```"])
    return f"{before}{BEGIN}{tree}\n{END}{rest.split(END)[1]}"


def main() -> int:
    pages = {ROOT / "README.md": 1, ROOT / "docs/house.md": 9}
    wrong = {page: text for page, deepest in pages.items() if (text := right(page, deepest)) != page.read_text("utf-8")}
    if "--check" in sys.argv:
        return len(wrong)
    for page, text in wrong.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
