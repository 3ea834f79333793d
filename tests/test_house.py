"""The house rules that tools can hold: rooms, style, types, light imports, no pickles, no remote code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "mmembed").rglob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "mypy"),
        (".ci/house_tree.py", "--check"),
        ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
    ],
    ids=["ruff", "format", "mypy", "tree", "rooms"],
)
def test_the_tools_have_nothing_to_say(command):
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("statement", ["import mmembed", "import mmembed.cli", "from mmembed import Image, Text"])
def test_importing_costs_no_torch(statement):
    heavy = ["torch", "transformers", "lancedb", "matplotlib", "timm", "open_clip", "numpy", "PIL"]
    done = run("-c", f"{statement}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_file_opens_with_what_it_holds():
    for path in SOURCES:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert doc, f"{path} has no docstring"


def test_nothing_is_pickled_evaluated_or_run_from_a_hub():
    banned = {"eval", "exec", "pickle", "cloudpickle", "dill", "marshal", "shelve"}
    between = (
        ROOT / "mmembed/train/workers.py"
    )  # one process of ours to another, as multiprocessing does with all it sends
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, f"{path}:{node.lineno} calls {node.func.id}"
            if isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["UnpicklingError"]:
                continue  # the error of torch's reader of plain tensors, to be told in our words
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not names & banned - ({"pickle"} if path == between else set()), (
                    f"{path}:{node.lineno} imports {names & banned}"
                )
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), f"{path}: trust_remote_code"
                assert node.value.value is False, f"{path}: trust_remote_code"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                plain = any(
                    given.arg == "weights_only" and ast.unparse(given.value) == "True" for given in node.keywords
                )
                assert plain, f"{path}:{node.lineno} calls torch.load for more than tensors"
