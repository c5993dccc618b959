"""Execute notebooks in place and normalise them: a second run changes no byte.

    python book/notebooks.py                      every notebook
    python book/notebooks.py book/claims.ipynb    those whose path is given

What varies from run to run and carries no meaning is removed: execution times,
kernel versions, widget ids. Cells get ids by position. Text outputs stay, for
nbval compares them with what a machine prints; it leaves out drawings.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).parent
DRAWING = "image/svg+xml"
LIVE = "application/vnd.jupyter.widget-view+json"  # means nothing later
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> bool:
    """Run one notebook in place; return whether its file changed."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(BOOK)}},
    ).execute()
    after = normalise(notebook)
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def normalise(notebook: nbformat.NotebookNode) -> str:
    """Return the notebook as text without what a second run would change."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:03d}"
        for key in ("execution", "collapsed", "scrolled", "jupyter"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
            if any(DRAWING in out.get("data", {}) for out in cell.outputs):
                tag(cell, "nbval-ignore-output")
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("needs_background", None)
            output.get("data", {}).pop(LIVE, None)
            for kind, data in output.get("data", {}).items():
                if isinstance(data, str) and kind == DRAWING:
                    output.data[kind] = (
                        "\n".join(line.rstrip() for line in data.splitlines())
                        + "\n"
                    )
    return nbformat.writes(notebook) + "\n"


def tag(cell: nbformat.NotebookNode, name: str) -> None:
    """Tag a cell; a drawing may differ in its last digits elsewhere."""
    cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), name})


def merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring pieces of a stream: timing cuts it up."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def main() -> None:
    """Execute the notebooks named on the command line, or all of them."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(
        BOOK.glob("*.ipynb")
    )
    for path in paths:
        print(
            f"{path.name}: {'changed' if execute(path) else 'unchanged'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
