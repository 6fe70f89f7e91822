"""Print the README that nbs/index.ipynb makes: its markdown and its outputs, links seen from the top folder."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

NOTE = "<!-- Made from nbs/index.ipynb by `make readme`. Edit there. -->\n\n"


def readme(
    notebook: nbformat.NotebookNode,  # the executed index
) -> str:  # Markdown; cells with `#| echo: false` show only what they output
    for cell in notebook.cells:
        if cell.cell_type == "code" and "#| echo: false" in cell.source:
            cell.metadata["tags"] = ["no-input"]
    config = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"no-input"}}})
    text, _ = MarkdownExporter(config=config).from_notebook_node(notebook)
    text = re.sub(r"\]\((images/|(?:[a-z]+/)?\w+\.ipynb)", r"](nbs/\1", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return NOTE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    root = Path(__file__).parent.parent
    sys.stdout.write(readme(nbformat.read(root / "nbs" / "index.ipynb", as_version=4)))
