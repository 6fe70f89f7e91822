"""How fast the interactive views are: opening them in Python, and what a hand feels in a browser.

    python benchmarks/bench_views.py [--points 100000] [--pairs 500000] [--no-browser]

In Python: the seconds until each view of the shipped world is there (after imports, with made-up features; UMAP is compiled before), and the pair inspector with many rows. In Chromium, with software rendering: frames a second while a map of many points is dragged, milliseconds
from a pointer move to the first frame of the clip, and from a verdict's key to the page's word that it is saved. Each number stands beside what is wanted.

Record of 2026-11-25 on two shared cores without a graphics card, load 6.5 (in brackets: before the maps opened by principal components, load 1.8):
500,001 rows in the inspector in 2.8 s (1.3), from pointer to clip 123 ms (102), from key to saved 42 ms (34). A map of the shipped world's 2,200 clips is
open in 0.01 s, and UMAP takes its place after 11 s (nothing for 8.5 s); translation in 0.2 s, UMAP after 2.6 s (2.2 s). Panning 2 x 100,000 points in
software: 60 frames a second with one point in 31 drawn while it moves (60, one in 11); all of them are drawn when it rests.
"""
import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from lab import page_of

COMMON = '''
import time
import numpy as np
import pandas as pd
from viewpoint_rosetta.clips import pool, read_clips
from viewpoint_rosetta.inspector import PairInspector
from viewpoint_rosetta.maps import EmbeddingMap, flatten
from viewpoint_rosetta.translation import Translation
from viewpoint_rosetta.translator import RSTSettings, train_translator
from viewpoint_rosetta.world import shipped

draw = np.random.default_rng(0)
clips = read_clips(shipped())


def made_up_pairs(ego, exo, k=3):
    "k candidates of each ego clip, with scores as `match` gives them."
    n = len(ego) * k
    score = np.sort(draw.uniform(size=(len(ego), k)))[:, ::-1].ravel()
    return pd.DataFrame(dict(ego=np.repeat(ego, k), exo=draw.choice(exo, n), score=score, visual=draw.uniform(size=n), text=draw.uniform(size=n),
                             rank=np.tile(np.arange(1, k + 1), len(ego)), mutual=draw.uniform(size=n) < .3, margin=draw.uniform(size=n)))


def large_map(points):
    rows = clips.iloc[np.arange(points) % len(clips)].assign(clip_id=[f"clip {i}" for i in range(points)], sync_id=None)
    xy = (draw.normal(size=(2, 200, 1, 2)) + .1 * draw.normal(size=(2, 200, -(-points // 200), 2))).reshape(2, -1, 2)[:, :points].astype(np.float32)
    return EmbeddingMap({"before": xy[0], "after": xy[1]}, rows, clips)
'''
exec(compile(COMMON, "common", "exec"))  # the notebook in the browser runs the same text

BROWSER = '''
from pathlib import Path
big = large_map(POINTS)
small = EmbeddingMap({"before": draw.normal(size=(len(clips), 2)), "after": draw.normal(size=(len(clips), 2))}, clips, clips)
ego, exo = (pool(clips, view).clip_id for view in ("ego", "exo"))
judge = PairInspector(made_up_pairs(ego, exo), clips, "verdicts.parquet", "bench")
'''

PAN = """box => new Promise(done => { const s = box.vrStage, times = []; let n = 0;
    const turn = now => { times.push(now); s.move(.004 * (n % 60 < 30 ? 1 : -1), 0); if (n++ < 90) requestAnimationFrame(turn); else done({times, every: s.nth}); };
    requestAnimationFrame(turn); })"""


def took(make) -> float:
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def opening(pairs: int) -> dict:
    "Seconds in Python until each view is there."
    ego, exo = (clips[clips["view"] == view].reset_index(drop=True) for view in ("ego", "exo"))
    z = [draw.normal(size=(len(clips), 32)).astype(np.float32) for _ in range(2)]
    at, to = z[0][(clips["view"] == "ego").to_numpy()], z[0][(clips["view"] == "exo").to_numpy()]
    flatten(z[0][:300])  # compiles UMAP
    few = RSTSettings(width=32, depth=1, heads=2, steps=20, val_fraction=0, refit=False, anchor=False)
    translator = train_translator(at[:100], to[:100], few, progress=False)
    sides = (np.array([f"ego {i}" for i in range(-(-pairs // 3))], object), exo.clip_id.to_numpy())
    many = made_up_pairs(*sides)
    other = pd.DataFrame(dict(clip_id=sides[0], video="none.mp4", start_s=0., end_s=1., view="ego", camera=None, scene=None, narration=None))
    table, shown = pd.concat([clips, other], ignore_index=True), []
    with tempfile.TemporaryDirectory() as folder:
        return {
            "pair inspector, shipped world": (took(lambda: PairInspector(made_up_pairs(ego.clip_id, exo.clip_id), clips, f"{folder}/a", "a")), 3),
            f"pair inspector, {len(many):,} rows": (took(lambda: PairInspector(many, table, f"{folder}/b", "a")), 5),
            "map, two spaces, places given": (took(lambda: EmbeddingMap({"a": z[0][:, :2], "b": z[1][:, :2]}, clips, clips)), 3),
            "map, two spaces, PCA": (took(lambda: EmbeddingMap({"a": z[0], "b": z[1]}, clips, clips, method="pca")), 3),
            "map, two spaces, UMAP, open with principal components until it is there": (took(lambda: shown.append(EmbeddingMap({"a": z[0], "b": z[1]}, clips, clips))), 3),
            "map, two spaces: UMAP in its place, seconds later": (took(lambda: shown[-1].wait()), 0),
            "translation, PCA": (took(lambda: Translation(translator, ego, at, exo, to, clips, method="pca")), 3),
            "translation, UMAP, open with principal components until it is there": (took(lambda: shown.append(Translation(translator, ego, at, exo, to, clips))), 3),
            "translation: UMAP in its place, seconds later": (took(lambda: shown[-1].wait()), 0)}


def in_browser(points: int) -> dict:
    "What a hand feels: frames a second, milliseconds."
    cells = [COMMON + BROWSER.replace("POINTS", str(points)), "big", "small", "judge"]
    with tempfile.TemporaryDirectory() as folder:
        with page_of(shutil.which("chromium"), ROOT, Path(folder), cells, ".vr-inspector video") as page: return measured(page, points)


def measured(page, points: int) -> dict:
    box = page.locator(".vr-map").nth(0)
    box.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    box.evaluate("b => { b.vrStage.lines = false; }")
    frames = box.evaluate(PAN)
    times, every = np.diff(frames["times"])[10:], frames["every"]  # the first frames find out how many points are too many
    painter = box.locator(".vr-stage").get_attribute("data-painter")
    box, hover = page.locator(".vr-map").nth(1), []
    box.locator(".vr-stage").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    rect = box.locator(".vr-stage").bounding_box()
    page.evaluate("""() => { addEventListener('loadeddata', () => { window.seen = performance.now(); }, true);
        addEventListener('pointermove', () => { window.moved = performance.now(); }, true); }""")
    for row in np.random.default_rng(0).permutation(len(clips))[:20].tolist():
        x, y = box.evaluate("(b, i) => b.vrStage.spot(0, b.vrStage.places[0][2 * i], b.vrStage.places[0][2 * i + 1])", row)
        page.mouse.move(rect["x"] - 15, rect["y"] + 5)
        page.wait_for_timeout(150)
        page.evaluate("window.seen = 0")
        page.mouse.move(rect["x"] + x, rect["y"] + y)
        page.wait_for_function("window.seen > window.moved")
        hover.append(page.evaluate("window.seen - window.moved"))
    keys = []
    box = page.locator(".vr-inspector")
    box.scroll_into_view_if_needed()
    box.evaluate("""b => { new MutationObserver(() => { const s = b.querySelector('.vr-foot .vr-status');
        if (s && s.textContent.startsWith('saved') && !window.saved) window.saved = performance.now(); }).observe(b, {childList: true, subtree: true, characterData: true});
        b.addEventListener('keydown', () => { window.pressed = performance.now(); }, true); }""")
    for _ in range(10):
        box.focus()
        page.wait_for_timeout(400)
        page.evaluate("window.saved = 0; document.querySelector('.vr-inspector .vr-status').textContent = ''")
        page.keyboard.press("a")
        page.wait_for_function("window.saved > 0")
        keys.append(page.evaluate("window.saved - window.pressed"))
    return {f"frames a second, panning {points:,} points twice ({painter}, one in {every} drawn while it moves)": (1e3 / np.median(times), 30),
            "ms from pointer to the clip's first frame, median of 20": (np.median(hover), 150),
            "ms from key to saved, median of 10": (np.median(keys), 100)}


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--points", type=int, default=100_000)
    parse.add_argument("--pairs", type=int, default=500_000)
    parse.add_argument("--no-browser", action="store_true")
    args = parse.parse_args()
    found = {} if args.no_browser else in_browser(args.points)
    for name, (value, wanted) in (found | opening(args.pairs)).items():
        print(f"{value:9.2f}  wanted {wanted or '   –':>4}  {name}", flush=True)
    print("load of the machine:", *np.round(os.getloadavg(), 1), "on", os.cpu_count(), "cores")


if __name__ == "__main__": main()
