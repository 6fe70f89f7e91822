"""The notebooks as the publisher gets them, in _proc/: nbdev's processing, links to run each page, figures that work without a kernel.

`python scripts/site_pages.py` in the top folder, then `quarto render _proc --no-execute`; `scripts/docs_check.py` does the same offline.
"""
import configparser
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
FIGURE = "application/vnd.plotly.v1+json"
PLOTLY = "plotly.min.js"  # once for the whole site, loaded by the pages that have a figure
NEEDS = "CPU, Python 3.11 or 3.12, the packages of `uv.lock`; under a minute or two of one core"


def launch(
    name: str,  # of the notebook, from nbs/
    repo: str,  # owner/name
    branch: str,
) -> str:  # Markdown
    "Where a page can be run, and what it needs."
    at = f"nbs/{quote(name)}"
    learn = "../" * name.count("/") + "learn/path.ipynb#the-pages-elsewhere"
    links = {"Colab": f"https://colab.research.google.com/github/{repo}/blob/{branch}/{at}",
             "Binder": f"https://mybinder.org/v2/gh/{repo}/{branch}?urlpath={quote(f'lab/tree/{at}', safe='')}",
             "notebook": f"https://github.com/{repo}/blob/{branch}/{at}"}
    where = " · ".join(f"[{what}]({link})" for what, link in links.items())
    return f"::: {{.launch}}\nRun this page: `jupyter lab {at}` · {where} · {NEEDS} ([how]({learn}))\n:::"


DRAW = """(() => {
  const figure = FIGURE, place = document.getElementById("NAME");
  const ink = () => getComputedStyle(document.body).color;
  const draw = () => {
    const faint = {automargin: true, gridcolor: "rgba(128,128,128,.3)", zerolinecolor: "rgba(128,128,128,.3)"};
    const look = {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: ink()}, autosize: true};
    for (const axis of ["xaxis", "yaxis"]) look[axis] = Object.assign({}, faint, figure.layout[axis]);
    for (const menu of figure.layout.updatemenus || []) Object.assign(menu, {font: {color: "#111"}, bgcolor: "#eee"});
    Plotly.newPlot(place, figure.data, Object.assign(figure.layout, look), {responsive: true, displaylogo: false});
    const follow = new MutationObserver(() => setTimeout(() => {  // light or dark: the ink of the text follows
      if (place.layout.font.color !== ink()) Plotly.relayout(place, {"font.color": ink()});
    }, 200));
    for (const at of [document.documentElement, document.body]) follow.observe(at, {attributes: true});
    follow.observe(document.head, {attributes: true, subtree: true});
  };
  let script = document.getElementById("plotly-js");
  if (!script) document.head.append(script = Object.assign(document.createElement("script"), {id: "plotly-js", src: "WHERE"}));
  if (window.Plotly) draw(); else script.addEventListener("load", draw);
})();"""


def drawn(figure: dict, number: int, base: str) -> str:
    "A plotly figure as HTML that draws itself from the site's own copy of plotly.js, as wide as the page and in its colours."
    layout = {k: v for k, v in figure.get("layout", {}).items() if k not in ("width", "template")}
    data = json.dumps(dict(data=figure["data"], layout=layout)).replace("</", "<\\/")
    name, high = f"figure-{number}", layout.get("height", 450)
    script = DRAW.replace("NAME", name).replace("WHERE", base + PLOTLY).replace("FIGURE", data, 1)
    return f'<div id="{name}" class="plotly-graph-div" style="height:{high}px"><noscript>This figure needs JavaScript.</noscript></div>\n<script>{script}</script>'


def finish(
    proc: Path,  # the processed notebooks
    repo: str = "viewpoint-rosetta/viewpoint_rosetta",
    branch: str = "main",
) -> list[str]:  # the pages with figures
    "Put the links on top of every page, figures that draw themselves in the place of plotly's JSON, and plotly.js beside them."
    with_figures = []
    for path in sorted(proc.rglob("*.ipynb")):
        name = path.relative_to(proc).as_posix()
        book = json.loads(path.read_text(encoding="utf-8"))
        opening = next((i for i, c in enumerate(book["cells"]) if c["cell_type"] != "raw"), 0)
        book["cells"].insert(opening, dict(cell_type="markdown", metadata={}, source=launch(name, repo, branch), id="launch"))
        figures = [o["data"] for c in book["cells"] for o in c.get("outputs", []) if FIGURE in o.get("data", {})]
        for number, data in enumerate(figures):
            data["text/html"] = drawn(data.pop(FIGURE), number, "../" * name.count("/"))
            data.pop("text/plain", None)
        if figures: with_figures.append(name)
        path.write_text(json.dumps(book), encoding="utf-8")
    if with_figures:
        import plotly
        shutil.copy(Path(plotly.__file__).parent / "package_data" / PLOTLY, proc / PLOTLY)
    return with_figures


def process(top: Path = ROOT) -> Path:
    "nbdev's processing of top/nbs into top/_proc, and ours."
    code = "from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs(n_workers=1, force=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=top, text=True, capture_output=True)
    if done.returncode: sys.exit("the notebooks could not be processed for the site:\n" + done.stderr[-2000:])
    settings = configparser.ConfigParser()
    settings.read(top / "settings.ini")
    finish(top / "_proc", settings["DEFAULT"]["git_url"].removeprefix("https://github.com/"), settings["DEFAULT"]["branch"])
    return top / "_proc"


if __name__ == "__main__":
    print(process())
