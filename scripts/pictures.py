"""Pictures of the interactive views for the site, taken in a real browser on a finished run: `make pictures`.

    python scripts/pictures.py [--run RUN] [--only inspector,map] [--out FOLDER]

RUN is the demo's by default and is not changed. Each entry of PICTURES says on which page it is taken and what a hand does before: `PAGES` opens a
page, so that pages of another kind (a dashboard) are one more entry there.
"""
import argparse
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lab import opened, page_of, soon
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MOST = 250_000  # bytes of a picture

CELLS = ["""
import threading
import numpy as np
import pandas as pd
from viewpoint_rosetta.boards import Board
from viewpoint_rosetta.clips import pool
from viewpoint_rosetta.inspector import ego_order
from viewpoint_rosetta.methods import embed, train_method
from viewpoint_rosetta.monitor import Monitor, hit_rates
from viewpoint_rosetta.verdicts import Review
board = Board("RUN")
line, label = board.line, board.clips.set_index("clip_id").label
first, second = Review("verdicts.parquet", "first"), Review("second.parquet", "second")
pairs = board.pairs("none.parquet").pairs
for n, row in enumerate(ego_order(pairs, "most doubtful")[:40]):  # made-up reviewers: the first knows the action, the second errs now and then
    p = pairs.iloc[row]
    right = label[p.ego] == label[p.exo]
    if n: first.say(p.ego, p.exo, "accept" if right else "reject")
    if n % 2 == 0: second.say(p.ego, p.exo, "accept" if right != (n % 6 == 0) else "reject", "another object" if n % 12 == 6 else "")
board.pairs("verdicts.parquet", reviewer="first", others=["second.parquet"])
""", "board.map()", "board.translation('test')", "board.retrieval()", """
rows = board._rows([i for i in pool(line.clips, "test").clip_id if i in set(line.bank.ids)])
def z(model, rows): return embed(model, line.bank, rows.clip_id)
monitor = Monitor(validate=hit_rates(z, rows), every=25, total=line.settings.train.steps)
def train(): train_method("ours", line.bank, line.blind, line.phi(0), line.rst(0), line.settings, pairs=pairs, progress=False, watch=monitor)
threading.Thread(target=train, daemon=True).start()
monitor
"""]


@contextmanager
def lab_page(chromium: str, run: Path, dark: bool):
    "All views of the run, one a cell, in JupyterLab."
    with tempfile.TemporaryDirectory() as folder:
        cells = [cell.replace("RUN", str(run)) for cell in CELLS]
        with page_of(chromium, ROOT, Path(folder), cells, ".vr-retrieval video", dark, (1320, 1200)) as page:
            page.keyboard.press("Control+b")  # the file list goes
            yield page


def dash_page(name: str, ready: str):
    "A dashboard as a page without code."
    @contextmanager
    def opener(chromium: str, run: Path, dark: bool):
        from viewpoint_rosetta.boards import serving
        with serving(name, run) as (address, _), opened(chromium, address, (1280, 900)) as page:
            page.wait_for_selector(ready)
            yield page
    return opener


PAGES = {"lab": lab_page, "dash pairs": dash_page("pairs", ".vr-inspector video"), "dash map": dash_page("map", ".vr-map .vr-stage"),
         "dash retrieval": dash_page("retrieval", ".vr-retrieval video")}


def playing(page, box: str, least: int):
    "All clips of a view are there and move."
    page.locator(box).first.scroll_into_view_if_needed()
    page.wait_for_function("""([box, least]) => { const all = [...document.querySelectorAll(box + ' video')];
        return all.length >= least && all.every(v => v.readyState > 1 && v.currentTime > .2); }""", arg=[box, least])


def inspector(page):
    "A pair that two reviewers see differently."
    box = page.locator(".vr-inspector")
    box.locator("select").nth(1).select_option("in conflict")
    page.wait_for_selector(".vr-inspector .vr-says-accept, .vr-inspector .vr-says-reject")
    playing(page, ".vr-inspector", 3)
    return box


def lasso(page, box, corners, shift=False, release=True):
    "A line by hand, corners in shares of the stage."
    rect = box.locator(".vr-stage").bounding_box()
    points = [(rect["x"] + x * rect["width"], rect["y"] + y * rect["height"]) for x, y in corners]
    if shift: page.keyboard.down("Shift")
    page.mouse.move(*points[0])
    page.mouse.down()
    for p in points[1:]: page.mouse.move(*p, steps=8)
    if release: page.mouse.up()
    if shift: page.keyboard.up("Shift")


def ring(x, y, rx, ry, turns=1.):
    "Corners of an uneven circle."
    return [(x + rx * np.cos(t) * (1 + .12 * np.sin(3 * t)), y + ry * np.sin(t)) for t in np.linspace(0, 2 * np.pi * turns, 24)]


def chart(page):
    "One clump chosen, a second line being drawn."
    box = page.locator(".vr-map:not(.vr-walk)")
    soon(lambda: box.locator(".vr-note").inner_text() == "", "UMAP is there", 120)
    box.scroll_into_view_if_needed()
    box.locator(".vr-stage").scroll_into_view_if_needed()
    box.focus()
    page.keyboard.press("p")
    page.keyboard.press("l")
    centre = box.evaluate("""b => { const s = b.vrStage, p = s.places[1], n = s.count, d = i => { let near = 0;   // the densest clump
        for (let j = 0; j < n; j++) near += (p[2*i]-p[2*j])**2 + (p[2*i+1]-p[2*j+1])**2 < .01; return near; };
        let best = 0; for (let i = 1; i < n; i++) if (d(i) > d(best)) best = i;
        const [x, y] = s.spot(1, p[2*best], p[2*best+1]), r = b.querySelector('.vr-stage').getBoundingClientRect(); return [x / r.width, y / r.height]; }""")
    lasso(page, box, ring(*centre, .05, .1))
    soon(lambda: not box.locator(".vr-count").inner_text().startswith("0 of"), "chosen")
    lasso(page, box, ring(centre[0] - .12 if centre[0] > .7 else centre[0] + .12, centre[1], .045, .1, .85), shift=True, release=False)
    return box


def walk(page):
    "Half way from noise to an answer."
    box = page.locator(".vr-walk")
    soon(lambda: box.locator(".vr-note").inner_text() == "", "UMAP is there", 120)
    box.scroll_into_view_if_needed()
    box.focus()
    page.keyboard.press("Home")
    for _ in range(4): page.keyboard.press(".")
    playing(page, ".vr-walk", 4)
    return box


def retrieval(page):
    "A query on which the trained encoder finds more than the frozen one."
    box = page.locator(".vr-retrieval")
    box.locator("select[name=show]").select_option(index=1)
    page.wait_for_function("document.querySelector('.vrr-count').textContent.includes(' of ')")
    box.focus()
    for _ in range(30):
        now = box.locator(".vrr-count").inner_text()
        if any(f"{n} of 5" in box.locator(".vrr-answers h4").nth(1).inner_text() for n in (3, 4, 5)): break
        page.keyboard.press("ArrowRight")
        soon(lambda: box.locator(".vrr-count").inner_text() != now, "the next query")
    playing(page, ".vr-retrieval", 11)
    return box


def monitor(page):
    "A training on its way."
    box = page.locator(".vr-monitor")
    soon(lambda: int((box.locator(".vrm-state").inner_text() + " step 0").split("step ")[1].split()[0]) > 120, "120 steps", 300)
    box.scroll_into_view_if_needed()
    box.locator(".vrm-plot").focus()
    page.keyboard.press("End")
    for _ in range(60): page.keyboard.press("Shift+ArrowLeft")
    return box


def top(page):
    "A dashboard as it opens: all of what is in sight."
    page.wait_for_function("""() => [...document.querySelectorAll('video')].filter(v => v.getBoundingClientRect().top < innerHeight)
        .every(v => v.readyState > 1 && v.currentTime > .2)""")
    for note in page.locator(".vr-note").all(): soon(lambda: note.inner_text() == "", "UMAP is there", 120)
    return page


@dataclass
class Picture:
    "A file of nbs/images/views, and how it comes about."
    name: str
    pose: object        # page -> what is photographed
    dark: bool = False
    page: str = "lab"   # one of PAGES


PICTURES = [Picture("inspector.jpg", inspector), Picture("map.png", chart), Picture("translation.jpg", walk), Picture("retrieval.jpg", retrieval),
            Picture("monitor.png", monitor), Picture("inspector-dark.jpg", inspector, True), Picture("map-dark.png", chart, True),
            Picture("dash-pairs.jpg", top, page="dash pairs"), Picture("dash-map.png", top, page="dash map"),
            Picture("dash-retrieval.jpg", top, page="dash retrieval")]


def save(shot: Path, path: Path):
    "PNG for lines, JPEG for clips, as good as fits."
    image = Image.open(shot).convert("RGB")
    if path.suffix == ".png": image.save(path, optimize=True)
    for quality in (88, 80, 70, 60):
        if path.suffix == ".jpg": image.save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size < MOST: return
    raise ValueError(f"{path}: {path.stat().st_size:,} bytes, more than {MOST:,}")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--run", type=Path, help="run folder; default the demo's")
    parse.add_argument("--only", default="", help="names, with commas between")
    parse.add_argument("--out", type=Path, default=ROOT / "nbs" / "images" / "views")
    args = parse.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium: sys.exit("no Chromium here: apt-get install chromium")
    from viewpoint_rosetta.artifacts import home
    run = (args.run or home() / "demo").resolve()
    if not (run / "embeddings.safetensors").is_file(): sys.exit(f"{run}: no finished run; `rosetta demo` makes one")
    wanted = [p for p in PICTURES if not args.only or Path(p.name).stem in args.only.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    for kind, dark in sorted({(p.page, p.dark) for p in wanted}):
        with PAGES[kind](chromium, run, dark) as page, tempfile.TemporaryDirectory() as folder:
            for p in wanted:
                if (p.page, p.dark) != (kind, dark): continue
                box = p.pose(page)
                page.evaluate("document.activeElement.blur()")
                box.screenshot(path=(shot := Path(folder) / "shot.png"))
                page.mouse.up()
                save(shot, args.out / p.name)
                print(f"{args.out / p.name}: {(args.out / p.name).stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__": main()
