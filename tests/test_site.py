"""The site: what its check sees, the links to run each page, figures without a kernel, exercises, pages that show the others."""
import ast
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from docs_check import PAGE_MB, launch_problems, notebook_problems, page_problems
from site_pages import FIGURE, PLOTLY, drawn, finish, launch

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


def notebook(folder: str, name: str) -> list:
    return json.loads((NBS / folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def source(cell) -> str: return "".join(cell["source"])


def printed(cell) -> str: return "".join("".join(o.get("text", "")) for o in cell.get("outputs", []))


def shown(cells) -> str:
    "All markdown that a page's cells put out."
    return "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for c in cells for o in c.get("outputs", []))


# ---- what the check sees

GOOD = '<html><head><link rel="stylesheet" href="look.css"></head><body><img src="a.png"><img src="data:image/png;base64,AA"><a href="b.html#x">b</a></body></html>'


@pytest.fixture
def site(tmp_path):
    "A made-up site of two pages, a picture and a style."
    for name, text in {"look.css": "", "a.png": "x", "b.html": "<p>b", "page.html": GOOD}.items(): (tmp_path / name).write_text(text)
    return tmp_path


def seen(site, *swap) -> list:
    (site / "page.html").write_text(GOOD.replace(*swap) if swap else GOOD)
    return page_problems(site / "page.html", site)


def test_a_good_page_passes(site):
    assert not seen(site) and not seen(site, "<body>", '<body><a href="https://example.org">out</a><a href="#x">here</a>')


@pytest.mark.parametrize("old, new, told", [
    ("a.png", "gone.png", "missing picture 'gone.png'"), ('src="a.png"', 'src=""', "missing picture"), ("look.css", "gone.css", "missing link"),
    ('src="data:image/png;base64,AA"', 'src="data:,"', "missing picture"), ("b.html", "gone.html", "broken link 'gone.html#x'"),
    ("<body>", '<body><video poster="gone.jpg"></video>', "missing picture"), ("<body>", '<body><video src="gone.mp4"></video>', "missing video"),
    ("<body>", '<body><script src="https://cdn.example.org/x.js"></script>', "a script from elsewhere"),
    ("<body>", """<body><iframe srcdoc='&lt;script src="https://x.org/x.js"&gt;&lt;/script&gt;'></iframe>""", "a script from elsewhere"),
    ("<body>", '<body><img src="//example.org/x.png">', "a picture from elsewhere"), ("<body>", "<body>" + " " * (PAGE_MB << 20), f"more than {PAGE_MB}")])
def test_a_bad_page_is_told(site, old, new, told):
    problems = seen(site, old, new)
    assert len(problems) == 1 and told in problems[0] and problems[0].startswith("page.html")


def test_a_notebook_that_was_never_run_is_told(tmp_path):
    def book(*outputs): return json.dumps(dict(cells=[dict(cell_type="code", source="1 + 1", outputs=list(outputs)), dict(cell_type="markdown", source="x")]))
    (tmp_path / "page.ipynb").write_text(book())
    assert "run it before you commit it" in notebook_problems(tmp_path / "page.ipynb")[0]
    (tmp_path / "page.ipynb").write_text(book(dict(output_type="stream", text="2")))
    assert not notebook_problems(tmp_path / "page.ipynb")


# ---- the links to run a page

def links_of(name: str) -> list:
    return re.findall(r"\]\((\S+?)\)", launch(name, "owner/name", "main"))


@pytest.mark.parametrize("name", ["00_clips.ipynb", "datasets/02_ego4d.ipynb", "learn/path.ipynb"])
def test_every_page_can_be_run_elsewhere(name):
    colab, binder, github, how = links_of(name)
    assert colab == f"https://colab.research.google.com/github/owner/name/blob/main/nbs/{name}" and github == f"https://github.com/owner/name/blob/main/nbs/{name}"
    assert binder.startswith("https://mybinder.org/v2/gh/owner/name/main?urlpath=lab%2Ftree%2Fnbs%2F")
    page, anchor = how.split("#")
    assert (NBS / name).parent.joinpath(page).resolve() == NBS / "learn" / "path.ipynb"
    heads = [line[3:] for c in notebook("learn", "path") for line in source(c).splitlines() if line.startswith("## ")]
    assert anchor in [h.lower().replace(" ", "-") for h in heads]


def test_links_to_what_is_not_there_are_told():
    assert not launch_problems("clips.html", links_of("00_clips.ipynb"), ROOT)
    assert len(launch_problems("gone.html", links_of("gone.ipynb"), ROOT)) == 3 and "not in the repository" in launch_problems("gone.html", links_of("gone.ipynb"), ROOT)[0]
    assert len(launch_problems("bare.html", [], ROOT)) == 3


def test_binder_installs_what_the_bootstrap_does():
    wanted = re.search(r"\n  install (libegl1[^|]*) \|\|", (ROOT / "scripts" / "bootstrap").read_text())[1].split()
    assert (ROOT / "binder" / "apt.txt").read_text().split() == wanted
    path = source(next(c for c in notebook("learn", "path") if "apt-get" in source(c)))
    assert " ".join(wanted) in path  # and the cell for Colab
    for name in ("postBuild", "start"):
        assert (ROOT / "binder" / name).stat().st_mode & 0o111
        assert not subprocess.run(["bash", "-n", ROOT / "binder" / name]).returncode


# ---- figures

FIG = dict(data=[dict(type="scatter", x=[1, 2], y=[3, 4], name="</script>")], layout=dict(height=300, width=900))


@pytest.fixture
def proc(tmp_path):
    "A processed notebook with a figure, in a folder, and one without."
    (tmp_path / "sub").mkdir()
    raw = dict(cell_type="raw", source="---\ntitle: x\n---", metadata={})
    cell = dict(cell_type="code", source="fig", metadata={}, outputs=[dict(output_type="display_data", data={FIGURE: FIG, "text/plain": "Figure"}, metadata={})])
    for name, cells in (("plain.ipynb", [raw]), ("sub/figure.ipynb", [raw, cell])):
        (tmp_path / name).write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return tmp_path


def test_figures_are_drawn_from_the_sites_own_script(proc):
    assert finish(proc) == ["sub/figure.ipynb"] and (proc / PLOTLY).stat().st_size > 1 << 20
    raw, top, cell = json.loads((proc / "sub" / "figure.ipynb").read_text())["cells"]
    assert raw["cell_type"] == "raw" and "nbs/sub/figure.ipynb" in source(top)
    made = cell["outputs"][0]["data"]
    assert list(made) == ["text/html"] and f'src: "../{PLOTLY}"' in made["text/html"] and "https://" not in made["text/html"]


def test_a_figure_cannot_close_its_script():
    assert drawn(FIG, 0, "").count("</script>") == 1


def test_a_figure_answers_without_a_kernel(proc, chromium):
    "In a browser: drawn, as wide as its place, and it says the value that is pointed at; nothing is asked of another host."
    from playwright.sync_api import sync_playwright
    finish(proc)
    made = json.loads((proc / "sub" / "figure.ipynb").read_text())["cells"][2]["outputs"][0]["data"]["text/html"]
    (proc / "sub" / "page.html").write_text(f"<!doctype html><body style='width:600px'>{made}")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        page, asked, errors = browser.new_page(viewport=dict(width=1280, height=800)), [], []
        page.on("request", lambda r: asked.append(r.url)), page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(f"file://{proc}/sub/page.html")
        page.wait_for_selector(".scatterlayer .point")
        assert page.evaluate("document.querySelector('.main-svg').getBoundingClientRect().width") == pytest.approx(600, abs=2)
        box = page.locator(".scatterlayer .point").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector(".hoverlayer .hovertext")
        assert "3" in page.locator(".hoverlayer").text_content() and not errors
        assert all(url.startswith("file://") for url in asked)
        browser.close()


# ---- exercises

def test_checkers_refuse_the_attempt_and_take_the_solution():
    cells = notebook("learn", "exercises")
    attempts = [printed(c) for c in cells if re.search(r"^tell\(", source(c), re.M)]
    solutions = [printed(c) for c in cells if "assert tell(" in source(c)]
    assert len(attempts) == len(solutions) >= 8
    assert all(a.startswith("not yet: ") and "raises" not in a for a in attempts) and set(solutions) == {"right\n"}


# ---- pages that show others

def test_api_lists_every_public_name():
    page, lacking = shown(notebook("reference", "api")), []
    for path in sorted((ROOT / "viewpoint_rosetta").rglob("[!_]*.py")):
        names = next(ast.literal_eval(n.value) for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__")
        part = page.split(f"`viewpoint_rosetta.{'.'.join(path.relative_to(ROOT / 'viewpoint_rosetta').with_suffix('').parts)}`\n")
        lacking += [f"{path.name}: {n}" for n in names if len(part) != 2 or f"`{n}`" not in part[1].split("\n## ")[0]]
    assert not lacking, f"not on nbs/reference/api.ipynb, run `make pages`: {lacking[:5]}"


def test_results_are_shown_as_they_are_on_disk():
    page, stale = shown(notebook("reference", "results")) + shown(notebook("reference", "studies")), []
    for path in (ROOT / "docs" / "results").glob("*.md"):
        lines = [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        stale += [path.name] * any(line not in page for line in lines)
    assert not stale, f"{stale} changed since the pages were run: `make pages`"


def test_path_names_every_page_of_the_library():
    page = shown(notebook("learn", "path"))
    there = [p.relative_to(NBS).as_posix() for folder in (NBS, NBS / "datasets") for p in folder.glob("[0-9][0-9]_*.ipynb")]
    assert not [p for p in there if f"](../{p})" not in page], "run `make pages`"


# ---- the library's own views

def test_views_ask_nothing_of_another_host():
    "No address of a script, style or font in the modules that make HTML; links in text are another matter."
    found = {}
    for path in sorted((ROOT / "viewpoint_rosetta").glob("*.py")):
        text = unescape(path.read_text(encoding="utf-8"))
        calls = re.findall(r"""(?:src\s*[=:]\s*|href\s*=\s*|import\s*\(?|from\s+|url\(|@import\s+|fetch\()\s*\\?["'`]?(?:https?:)?//[^\s"'`)]+""", text)
        if calls: found[path.name] = calls
    assert not found
