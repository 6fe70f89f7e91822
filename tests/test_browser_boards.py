"""The dashboards in JupyterLab and as Voila pages, in a real browser: clicks reach Python, keys reach the disk, clips play, nothing else is served."""
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest

pytest.importorskip("playwright")
from lab import BROWSER, page_of, soon
from viewpoint_rosetta import boards
from viewpoint_rosetta.boards import BOARDS, serving
from viewpoint_rosetta.verdicts import read_verdicts

PLAYS = "[...document.querySelectorAll('%s video')].filter(v => v.currentTime > 0).length >= %d"
FIRST = dict(pairs='.vr-inspector video', map='.vr-map .vr-stage', retrieval='.vr-retrieval video')


@contextmanager
def opened(chromium, address):  # gives the page; page.errors: of its console; page.foreign: what it asked other hosts for
    "A page in a browser of its own."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.set_default_timeout(120_000)
        page.errors, page.foreign = [], []
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.on("request", lambda r: page.foreign.append(r.url) if r.url.startswith("http") and "//127.0.0.1" not in r.url else None)
        page.goto(address)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    "A copy of the small run: verdicts go into it."
    return shutil.copytree(small_run, tmp_path_factory.mktemp("boards") / "run")


def verdicts(run): return read_verdicts(run / "verdicts.parquet")


def judge(page, run):
    "Reject a pair by key; the log and the page both know it."
    page.locator(".vr-inspector").scroll_into_view_if_needed()
    page.wait_for_function(PLAYS % (".vr-inspector", 3))
    before, ego = len(verdicts(run)), page.locator(".vr-ego small").inner_text()
    page.focus(".vr-inspector")
    page.keyboard.press("r")
    soon(lambda: len(verdicts(run)) == before + 1, "the verdict is on disk")
    assert verdicts(run).verdict.iloc[-1] == "reject" and ego.startswith(verdicts(run).ego.iloc[-1])
    soon(lambda: page.locator(".vr-ego small").inner_text() != ego, "the next pair is shown")
    page.keyboard.press("a")
    soon(lambda: verdicts(run).verdict.tolist()[before:] == ["reject", "accept"], "and the next verdict")


def follows(page):
    "The walk shows the ego clip that is judged, and so it does after a click on `next`."
    for _ in range(2):
        page.click("text=next →")
        soon(lambda: page.locator(".vr-near figure").first.get_attribute("title") == page.locator(".vr-ego small").inner_text(), "the walk follows")


def choose(page):
    "A click on a name of the legend chooses its clips; Python answers with a table."
    assert "nothing is chosen" in page.locator(".vr-table").inner_text()
    page.locator(".vr-map .vr-name").first.click()
    page.wait_for_function("document.querySelectorAll('.vr-table tr').length > 3")
    assert "rows chosen" in page.locator(".vr-table").inner_text()


def ask(page):
    "Another query of the list; the answers are found by Python, and play."
    page.locator(".vr-retrieval").scroll_into_view_if_needed()
    page.wait_for_function(PLAYS % (".vr-retrieval", 3))
    first = page.evaluate("document.querySelector('.vrr-query video').dataset.id")
    page.locator(".vrr-query select").select_option(index=1)
    page.wait_for_function(f"document.querySelector('.vrr-query video')?.dataset.id != {first!r}")


def used(page, name, run):
    page.wait_for_selector(FIRST[name])
    if name == "pairs": judge(page, run), follows(page)
    if name == "map": choose(page)
    if name == "retrieval": ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.parametrize("name", BOARDS)
def test_as_a_page(name, chromium, run):
    with serving(name, run) as (address, _), opened(chromium, address) as page:
        used(page, name, run)
        assert page.errors == [] and page.foreign == []


def test_nothing_without_the_token_and_no_file(run, tmp_path, monkeypatch):
    "Beside the notebook lies a picture, which Voila would serve if it were not told otherwise."
    monkeypatch.setattr(boards, "ASSETS", shutil.copytree(boards.ASSETS, tmp_path / "assets", ignore=shutil.ignore_patterns("world")))
    (tmp_path / "assets" / "dashboards" / "picture.png").write_bytes(b"x")
    with serving("pairs", run) as (address, server):
        base, token = address.split("?")
        def answer(path):
            try: return urllib.request.urlopen(base.rstrip("/") + path, timeout=20)
            except urllib.error.HTTPError as error: return error.code
        for path in ("/", "/api/kernels"): assert answer(path).url.startswith(f"{base}login"), path
        for path in ("/voila/files/picture.png", "/voila/files/pairs.ipynb", "/voila/files/../boards.py", "/api/contents", "/voila/tree"):
            assert answer(f"{path}?{token}") in (403, 404), path
        listening = subprocess.run([sys.executable, "-c", "import psutil, sys; print(*{c.laddr.ip for p in [psutil.Process(int(sys.argv[1]))] for q in "
                                    "[p, *p.children(True)] for c in q.net_connections() if c.status == 'LISTEN'})", str(server.pid)],
                                   capture_output=True, text=True).stdout.split()
        assert set(listening) <= {"127.0.0.1", "::1"} and listening


@pytest.mark.parametrize("name", BOARDS)
def test_in_jupyterlab(name, chromium, root, run, tmp_path, monkeypatch):
    monkeypatch.setenv("VR_RUN", str(run))
    book = nbformat.read(root / "nbs" / "dashboards" / f"{name}.ipynb", as_version=4)
    cells = [c.source for c in book.cells if c.cell_type == "code"]
    assert sum(len(c.splitlines()) for c in cells) < 15
    with page_of(chromium, root, tmp_path, cells, FIRST[name]) as page:
        used(page, name, run)
        assert page.errors == []
