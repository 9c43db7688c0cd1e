"""The notebook in docs/, executed as its reader would; `make notebook` stores what came out."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

VARIES = "varies"
"""Tag of a cell whose output depends on the day or the machine."""


def executed(path: Path, folder: Path) -> NotebookNode:
    """A notebook with the outputs of a run in a folder; an error in a cell is one here."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=240,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    ).execute(
        env={**os.environ, "IPYTHONDIR": str(folder / "ipython")}
    )  # not into the reader's history
    for cell in notebook.cells:  # as many as were run, in whatever session
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    notebook.metadata.language_info = {"name": "python"}  # not the version of this machine
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs of which what was printed in several pieces is one."""
    found: list[NotebookNode] = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = executed(Path(sys.argv[1]), Path(folder))
    nbformat.write(made, sys.argv[1])
