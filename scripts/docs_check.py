"""Render the site offline, as the publisher would process it, and fail on what a reader would miss. Writes only into a temporary folder.

Looked for: broken links, missing pictures and other files, scripts or styles from elsewhere, pages over 5 MB, pages without the links to run
them, and notebooks that were never run. Whether a single cell was forgotten is told by tests/test_notebooks.py, which runs them all.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from site_pages import ROOT, process

PAGE_MB = 5
PUBLISHER = ("output-file is not read", "html-math-method is ignored")  # page names and equations as only Quarto makes them
OWN = ("https://cdn.jsdelivr.net/npm/katex",)  # smalldocs' way of showing equations; the publisher needs no script for them
NEEDED = {"img": "src", "source": "src", "video": "src", "audio": "src", "iframe": "src", "script": "src", "link": "href"}


class Page(HTMLParser):
    "What an HTML page asks for: (tag, address), and the links of its body."

    def __init__(self, text: str):
        super().__init__()
        self.needs, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in NEEDED and NEEDED[tag] in attrs and attrs.get("rel") not in ("canonical", "alternate"):
            self.needs.append((tag, attrs[NEEDED[tag]] or ""))
        if tag == "video" and "poster" in attrs: self.needs.append(("poster", attrs["poster"] or ""))
        if tag == "a" and attrs.get("href"): self.links.append(attrs["href"])
        if attrs.get("srcdoc"): self.needs += Page(attrs["srcdoc"]).needs


def page_problems(path: Path, site: Path, repository: Path | None = None) -> list[str]:
    "What is wrong with one rendered page; with `repository`, also with its links to run it."
    name, text = path.relative_to(site).as_posix(), path.read_text(encoding="utf-8")
    found, page = [], Page(text)
    if (size := path.stat().st_size) > PAGE_MB << 20: found.append(f"{name}: {size / (1 << 20):.1f} MB, more than {PAGE_MB}: smaller pictures, fewer clips")
    for tag, address in page.needs:
        kind = {"img": "picture", "poster": "picture"}.get(tag, tag)
        if address.startswith("data:") and len(address) > len("data:,"): continue
        if tag == "link" and address == "data:,": continue
        if urlsplit(address).scheme in ("http", "https") or address.startswith("//"):
            if not address.startswith(OWN): found.append(f"{name}: a {kind} from elsewhere, {address[:80]}: put it beside the page")
        elif not address or not (path.parent / unquote(urlsplit(address).path)).is_file():
            found.append(f"{name}: missing {kind} {address[:80]!r}")
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path: continue
        target = site / parts.path.lstrip("/") if parts.path.startswith("/") else path.parent / unquote(parts.path)
        if not target.exists(): found.append(f"{name}: broken link {link[:80]!r}")
    if repository: found += launch_problems(name, page.links, repository)
    return found


def launch_problems(name: str, links: list[str], repository: Path) -> list[str]:
    "Each page can be opened in Colab, Binder and on GitHub, and what they open is in the repository."
    found = []
    for host in ("colab.research.google.com", "mybinder.org", "github.com"):
        at = [unquote(link) for link in links if urlsplit(link).netloc == host and link.endswith(".ipynb")]
        places = ["nbs/" + a.split("/nbs/", 1)[1] for a in at if "/nbs/" in a]
        if not places: found.append(f"{name}: no link to run it at {host}")
        found += [f"{name}: {host} would open {p}, which is not in the repository" for p in places if not (repository / p).is_file()]
    return found


def notebook_problems(path: Path) -> list[str]:
    "A notebook with code and not one output was committed without being run."
    code = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    return [f"{path.name}: no cell has an output: run it before you commit it"] if code and not any(c.get("outputs") for c in code) else []


def main() -> int:
    smalldocs = Path(sys.executable).with_name("smalldocs")
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "project"
        shutil.copytree(ROOT / "nbs", top / "nbs", ignore=shutil.ignore_patterns(".*"))
        shutil.copytree(ROOT / "viewpoint_rosetta", top / "viewpoint_rosetta", ignore=shutil.ignore_patterns("assets", "__pycache__"))
        shutil.copy(ROOT / "settings.ini", top)
        proc = process(top)
        check = subprocess.run([smalldocs, "check", "_proc"], cwd=top, text=True, capture_output=True)
        problems = [line for line in check.stdout.splitlines() if not any(p in line for p in PUBLISHER)]
        if check.returncode > 1: problems.append(check.stderr[-2000:])
        problems += [p for path in sorted((top / "nbs").rglob("*.ipynb")) for p in notebook_problems(path)]
        subprocess.run([smalldocs, "render", "_proc"], cwd=top, check=True, capture_output=True)
        site = proc / "_docs"
        pages = sorted(site.rglob("*.html"))
        problems += [p for path in pages for p in page_problems(path, site, ROOT)]
        print(*problems, f"{len(pages)} pages, {len(problems)} problems", sep="\n")
        if keep := os.environ.get("DOCS_OUT"):  # to look at the pages: make docs-check DOCS_OUT=_site
            shutil.copytree(site, keep, dirs_exist_ok=True)
        return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
