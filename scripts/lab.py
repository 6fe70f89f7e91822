"""A JupyterLab of one's own and a page of it in Chromium, on which a notebook has run: for tests in a browser, and for pictures."""
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat

BROWSER = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--enable-unsafe-swiftshader"]


def soon(look, what: str, seconds: float = 20):
    "What look() returns once it is true."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look(): return found
        time.sleep(.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def settings(folder: Path, dark: bool):
    "A theme, and no questions about news."
    for name, said in {"themes": dict(theme="JupyterLab Dark" if dark else "JupyterLab Light"),
                       "notification": dict(fetchNews="false", checkForUpdates=False)}.items():
        path = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said))


@contextmanager
def server(folder: Path, root: Path, dark: bool = False):  # gives the address of its notebooks, with {name} to fill in
    "JupyterLab over a folder, on the loopback address, with a token; nothing of the user's is read or written."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings(folder, dark)
    token, at = secrets.token_hex(8), f"http://127.0.0.1:{port}"
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = os.environ | places | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
               "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = folder / "server.log"
    with open(log, "w") as out: running = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    def answers():
        assert running.poll() is None, log.read_text()[-2000:]
        try: return urllib.request.urlopen(f"{at}/api?token={token}", timeout=5).status == 200
        except OSError: return False
    try:
        soon(answers, "JupyterLab answers", 120)
        yield f"{at}/lab/tree/{{name}}?token={token}"
    finally:
        for _ in range(2): running.send_signal(signal.SIGINT)
        try: running.wait(10)
        except subprocess.TimeoutExpired: running.kill()


@contextmanager
def opened(chromium: str, address: str, size: tuple = (1280, 1000)):  # gives the page; page.errors: of its console
    "A page in a browser of its own."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_page(viewport=dict(width=size[0], height=size[1]))
        page.errors = []
        page.set_default_timeout(120_000)
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.goto(address)
        yield page
        browser.close()


@contextmanager
def page_of(chromium: str, root: Path, folder: Path, cells: list, ready: str, dark: bool = False, size: tuple = (1280, 1000)):
    # gives the page of `opened`
    "A notebook of these cells, run in JupyterLab until the selector `ready` is there."
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in cells])
    book.metadata = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    nbformat.write(book, folder / "views.ipynb")
    with server(folder, root, dark) as address, opened(chromium, address.format(name="views.ipynb"), size) as page:
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.click("text=Run >> nth=0")
        page.click("text=Run All Cells")
        page.wait_for_selector(ready)
        yield page
