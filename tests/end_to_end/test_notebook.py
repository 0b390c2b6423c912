"""The notebook of docs/ runs in a kernel, from the first cell to the figure; the quickstart's file is a small one here."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "getting-started" / "notebook.ipynb"
QUICKSTART = "../../deployments/experiments/quickstart.yaml"


@pytest.mark.usefixtures("prefect_server", "home")
def test_the_notebook_goes_from_an_experiment_to_a_figure(tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    small = tmp_path / "quickstart.yaml"
    small.write_text(
        yaml.safe_dump(tiny_settings | {"labelling": tiny_settings["labelling"] | {"max_micro_usd": 10**6}})
    )
    book = nbformat.read(NOTEBOOK, as_version=4)
    named = [cell for cell in book.cells if cell.cell_type == "code" and QUICKSTART in cell.source]
    assert len(named) == 1, "the file is named once"
    named[0].source = named[0].source.replace(QUICKSTART, str(small))
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    assert "10 queries, " in said
    assert "at most 20 queries" in said, "the plan of the other experiment"
    shown = [output.data for output in outputs if "data" in output]
    assert any("Interval(mean=" in data["text/plain"] for data in shown)
    assert sum("image/png" in data for data in shown) == 1


def test_it_is_kept_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
