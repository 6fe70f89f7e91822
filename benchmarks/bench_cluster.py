"""Clips a second of the Ray engine over those of the local one, on the same clips, in the same run, on one machine.

    python benchmarks/bench_cluster.py [--manifest clips.parquet --root FOLDER] [--videos 12] [--rounds 3] [--workers 2]

The local engine is one process with as many torch threads as there are workers, and as many that decode. The Ray engine is that many
processes with one torch thread each. They take turns, so that other work on the machine falls on both; their stores must agree to the
last byte. Printed: clips a second of the whole call (what one waits for), clips a second from the first block's arrival on (what a long
run comes to), seconds to the first block, and the ratios Ray over local (median and range over rounds).
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from viewpoint_rosetta.clips import read_clips
from viewpoint_rosetta.cluster import connected, on_ray
from viewpoint_rosetta.encoders import load_backbone
from viewpoint_rosetta.features import FeatureStore, computed, extract
from viewpoint_rosetta.world import shipped


def measure(clips, backbone, engine, path, ahead: int, **more) -> dict:
    "One extraction; `ahead` blocks are under way when the first arrives, and do not count for the steady rate."
    arrived = []  # (second, block) of each clip
    def noting(*args):
        for found in engine(*args):
            arrived.extend((time.perf_counter() - start, clip.block) for clip, _ in found)
            yield found
    start = time.perf_counter()
    extract(clips, backbone, FeatureStore(path), progress=False, engine=noting, **more)
    when, block = map(np.array, zip(*arrived))
    later = block >= np.unique(block)[ahead]
    return dict(whole=len(when) / when[-1], steady=later.sum() / (when[-1] - when[block == block[0]][-1]), first=when[block == block[0]][-1])


def contents(path): return {p.name: p.read_bytes() for p in path.glob("*.arrow")}


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--manifest", type=Path, default=shipped(), help="clip table (default: the shipped world)")
    parse.add_argument("--root", type=Path, help="folder of its videos (default: the manifest's own)")
    parse.add_argument("--videos", type=int, default=12, help="videos a round, with all their clips")
    parse.add_argument("--size", type=int, default=128, help="side of the input in pixels")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--workers", type=int, default=2, help="processes of the Ray engine, threads of the local one")
    parse.add_argument("--seed", type=int, default=0)
    args = parse.parse_args()
    torch.set_num_threads(args.workers)
    clips, rng, backbone = read_clips(args.manifest, args.root), np.random.default_rng(args.seed), load_backbone(size=args.size)
    got = dict(local=[], ray=[])
    with connected("local", cpus=args.workers):
        for turn in range(args.rounds):
            chosen = clips[clips.video.isin(rng.choice(clips.video.unique(), args.videos, replace=False))]
            with tempfile.TemporaryDirectory() as folder:
                for who in ("local", "ray") if turn % 2 else ("ray", "local"):
                    engine, ahead = (computed, 1) if who == "local" else (on_ray(workers=args.workers), args.workers)
                    got[who].append(measure(chosen, backbone, engine, Path(folder) / who, ahead, workers=args.workers))
                assert contents(Path(folder) / "local") == contents(Path(folder) / "ray"), "the stores differ"
    print(f"{args.rounds} rounds of {args.videos} videos, 8 frames of {args.size} px, {args.workers} workers; the stores agree to the last byte")
    for who, rounds in got.items():
        print(f"{who:6s}" + "".join(f"  {name} {np.median([r[name] for r in rounds]):7.1f}" for name in ("whole", "steady", "first")))
    for name in ("whole", "steady"):
        ratio = np.array([r[name] / l[name] for r, l in zip(got["ray"], got["local"])])
        print(f"ray / local, {name} clips a second: {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})")


if __name__ == "__main__": main()
