"""Every notebook runs from top to bottom, offline."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all of them, which has torch at hand after the first."""
    manager = KernelManager()
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, kernel):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}"))
    NotebookClient(notebook, km=kernel, timeout=240).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    seen = [{"text/html", "image/png"} & set(output.get("data", {})) for output in shown]
    assert any(seen), "no grid of hits and no figure was shown"
    warned = "".join(output.text for output in shown if output.get("name") == "stderr")
    assert not warned or "IProgress not found" in warned, warned  # tqdm without ipywidgets


def test_the_page_on_training_shows_the_recipe_of_its_adapter():
    root = Path(__file__).parent.parent
    notebook = nbformat.read(root / "notebooks" / "4_train_an_adapter.ipynb", as_version=4)
    (cell,) = [cell.source for cell in notebook.cells if cell.source.startswith('RECIPE = """')]
    recipe = (root / "adapters" / "minilm-sees" / "recipe.toml").read_text(encoding="utf-8")
    assert cell.split('"""')[1] == "\n" + recipe
