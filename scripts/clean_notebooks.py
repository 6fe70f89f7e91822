"""nbdev_clean, and out with what it leaves: saved widgets, which weigh megabytes and show nothing without a kernel."""
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from nbdev.clean import nbdev_clean


def without_widgets(nb) -> bool:
    "Drop widget states and views; their plain text stays. True if there were any."
    views = [o["data"] for c in nb.cells for o in c.get("outputs", []) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    for data in views:
        del data["application/vnd.jupyter.widget-view+json"]
    return nb.metadata.pop("widgets", None) is not None or bool(views)


if __name__ == "__main__":
    nbdev_clean()
    for path in sorted((Path(__file__).parent.parent / "nbs").rglob("[!.]*.ipynb")):
        if without_widgets(nb := read_nb(path)):
            write_nb(nb, path)
