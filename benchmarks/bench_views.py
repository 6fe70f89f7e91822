"""How fast the interactive views are: opening them in Python, and what a hand feels in a browser.

    python benchmarks/bench_views.py [--points 100000] [--pairs 500000] [--no-browser]

In Python: the seconds until each view of the shipped world is there (after imports, with made-up features; UMAP is compiled before, and its fit is told
apart), and the pair inspector with many rows. In Chromium, with software rendering: frames a second while a map of many points is dragged, milliseconds
from a pointer move to the first frame of the clip, and from a verdict's key to the page's word that it is saved. Each number stands beside what is wanted.
"""
import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

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
