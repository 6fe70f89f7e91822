"""What the checks of `read_frames` cost: the same random clips by bare decord and by us, in one run.

    python benchmarks/bench_decode.py [--manifest clips.parquet --root FOLDER] [--clips 60] [--frames 8] [--rounds 5]

Every call opens the video anew, as a worker does that meets one clip of each take. The two readers take turns clip by
clip, so that other work on the machine falls on both. Printed: milliseconds a clip (median over rounds) by the wall
clock and by the processor's, and the ratio ours / bare (median over rounds, with the range). Target: about 1.0.

Record of 2026-11-25, shipped world, an idle machine of 2 cores: single clips 1.07 (0.95 to 1.08) by the wall clock, 1.06 by the processor: looking
at the video's clock costs 0.3 ms a clip. Whole videos, as extraction reads them: 0.39 (0.38 to 0.42).
"""
import argparse
import time
from pathlib import Path

import decord
import numpy as np
import torch

from viewpoint_rosetta.clips import read_clips, video_path
from viewpoint_rosetta.features import decode
from viewpoint_rosetta.video import frame_times, read_frames
from viewpoint_rosetta.world import shipped


def bare(path, times):
    "decord as its own page shows it: open, frame number = time x rate, get."
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(np.floor(times * reader.get_avg_fps() + 1e-6).astype(int)).asnumpy()


def clock(read, path, times) -> tuple[np.ndarray, np.ndarray]:
    "(wall, processor) seconds of one call, and its frames."
    start = time.perf_counter(), time.process_time()
    frames = read(path, times)
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]]), frames


def whole_videos(clips, videos, n: int) -> np.ndarray:
    "(2,) wall seconds over all clips of some videos: bare decord clip by clip, and as extraction reads them."
    spent = np.zeros(2)
    for video in videos:
        rows = clips[clips.video == video]
        start = time.perf_counter()
        alone = [bare(video_path(clips, video), frame_times(r.start_s, r.end_s, n)) for r in rows.itertuples()]
        middle = time.perf_counter()
        together = decode(rows, clips, n, torch.from_numpy)
        spent += [middle - start, time.perf_counter() - middle]
        assert all((a == x.numpy()).all() for a, (_, x) in zip(alone, together)), f"{video}: the readers disagree"
    return spent


def one_round(clips, chosen, n: int) -> np.ndarray:
    "(2 readers, 2 clocks) seconds over the chosen clips; both readers must give the same frames."
    spent = np.zeros((2, 2))
    for turn, i in enumerate(chosen):
        path, times = video_path(clips, clips.video[i]), frame_times(clips.start_s[i], clips.end_s[i], n)
        got = {}
        for reader in (0, 1) if turn % 2 else (1, 0):
            took, got[reader] = clock((bare, read_frames)[reader], path, times)
            spent[reader] += took
        assert (got[0] == got[1]).all(), f"{path}: the readers disagree"
    return spent


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--manifest", type=Path, default=shipped(), help="clip table (default: the shipped world)")
    parse.add_argument("--root", type=Path, help="folder of its videos (default: the manifest's own)")
    parse.add_argument("--clips", type=int, default=60, help="clips a round")
    parse.add_argument("--frames", type=int, default=8, help="frames a clip")
    parse.add_argument("--rounds", type=int, default=5, help="rounds, after one to warm up")
    parse.add_argument("--seed", type=int, default=0)
    args = parse.parse_args()
    clips, rng = read_clips(args.manifest, args.root), np.random.default_rng(args.seed)
    rounds = [one_round(clips, rng.choice(len(clips), min(args.clips, len(clips)), replace=False), args.frames)
              for _ in range(args.rounds + 1)][1:]
    spent = np.array(rounds) / min(args.clips, len(clips)) * 1e3  # (rounds, reader, clock) ms a clip
    print(f"{args.manifest}: {args.rounds} rounds of {min(args.clips, len(clips))} random clips, {args.frames} frames "
          f"each, opening included, one decoding thread, seed {args.seed}")
    for c, name in enumerate(("wall", "processor")):
        ratio = spent[:, 1, c] / spent[:, 0, c]
        alone, ours = np.median(spent[:, :, c], axis=0)
        print(f"{name:>9}: bare decord {alone:6.2f} ms, read_frames {ours:6.2f} ms, "
              f"ratio {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})")
    videos = rng.permutation(clips.video.unique())[:6 * args.rounds].reshape(args.rounds, -1)
    spent = np.array([whole_videos(clips, some, args.frames) for some in videos])
    ratio = spent[:, 1] / spent[:, 0]
    print(f"whole videos, as extraction reads them (opened once), wall, against bare decord clip by clip: "
          f"ratio {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})")


if __name__ == "__main__": main()
