"""How much faster `extract` is than the loop one writes first, on the same clips, in the same run.

    python benchmarks/bench_extract.py [--manifest clips.parquet --root FOLDER] [--videos 4] [--rounds 5] [--threads 2]

The plain loop opens the video of each clip with decord, takes its frames, and runs them as one eager, contiguous batch
through the unfolded model. `extract` opens a video once for many clips, decodes ahead in threads, batches over clips,
and runs the folded, channels-last model; it also writes its features to disk. Both use the same number of torch threads
and take turns, so that other work on the machine falls on both. The features must agree within 1e-3;
with `--precision bfloat16`, which the line takes where the processor has it, within 10% on average.
Printed: clips a second and processor milliseconds a clip (medians over rounds), and the ratio (median and range).
Target: at least 2 by the wall clock.

Record of 2026-11-22, shipped world, 8 frames of 128 px, seed 0, 5 rounds of 75 clips, a busy machine of 2 shared cores:
`--videos 3 --threads 1`: 3.06 (2.29 to 3.66) by the wall clock, 2.57 (2.35 to 2.75) by the processor. With batches of 32
instead of 16 frames it was 1.82 and 1.87: small batches stay in the processor's caches. With `--threads 2` on cores that
others use too, threads wait for each other in circles and the plain loop suffers more (4.7 to 39): no number to quote.

Record of 2026-11-25, an otherwise idle machine of 2 cores, by the wall clock (range) and the processor: as the line extracts, `--videos 1
--threads 1 --size 224 --precision bfloat16`: 3.95 (3.58 to 6.04) and 3.77; the same in float32 1.68 (1.60 to 1.77) and 1.64; at 128 px in
float32, `--videos 2 --threads 1`: 2.91 (2.29 to 3.85) and 3.02, with 2 threads 1.85 (1.61 to 2.27) and 2.61.
"""
import argparse
import tempfile
import time
from pathlib import Path

import decord
import numpy as np
import torch

from viewpoint_rosetta.clips import read_clips, video_path
from viewpoint_rosetta.encoders import lite0_model, load_backbone
from viewpoint_rosetta.features import FeatureStore, extract
from viewpoint_rosetta.video import frame_times
from viewpoint_rosetta.world import shipped


def plain(clips, model, frames: int, size: int, grid: int = 3) -> np.ndarray:
    "(N,T,G,D): decode a clip, compute it, decode the next."
    found = []
    for row in clips.itertuples():
        reader = decord.VideoReader(str(video_path(clips, row.video)), num_threads=1)
        at = np.floor(frame_times(row.start_s, row.end_s, frames) * reader.get_avg_fps() + 1e-6).astype(int)
        x = (torch.tensor(reader.get_batch(at).asnumpy()).permute(0, 3, 1, 2).float().contiguous() - 127) / 128
        with torch.no_grad():
            if x.shape[-1] != size: x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
            fmap = model.forward_features(x)
        found.append(torch.nn.functional.adaptive_avg_pool2d(fmap, grid).flatten(2).mT.numpy())
    return np.stack(found)


def ours(clips, backbone, frames: int, dtype: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "store", dtype=dtype)
        extract(clips, backbone, store, frames, progress=False)
        return store.read(clips.clip_id)


def clock(fn, *args) -> tuple[np.ndarray, np.ndarray]:
    "(wall, processor) seconds of one call, and its result."
    start = time.perf_counter(), time.process_time()
    result = fn(*args)
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]]), result


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--manifest", type=Path, default=shipped(), help="clip table (default: the shipped world)")
    parse.add_argument("--root", type=Path, help="folder of its videos (default: the manifest's own)")
    parse.add_argument("--videos", type=int, default=4, help="videos a round, with all their clips")
    parse.add_argument("--frames", type=int, default=8, help="frames a clip")
    parse.add_argument("--size", type=int, default=128, help="side of the input in pixels")
    parse.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of extract's forward pass")
    parse.add_argument("--rounds", type=int, default=5, help="rounds, each of other videos")
    parse.add_argument("--threads", type=int, default=2, help="torch threads of both")
    parse.add_argument("--seed", type=int, default=0)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    clips, rng = read_clips(args.manifest, args.root), np.random.default_rng(args.seed)
    backbone, model = load_backbone(size=args.size, precision=args.precision), lite0_model().eval()
    spent, worst, n = [], 0., []
    for turn in range(args.rounds + 1):
        chosen = clips[clips.video.isin(rng.choice(clips.video.unique(), args.videos, replace=False))]
        if not turn: chosen = chosen[:12]  # to warm up, and to compare before rounding to half floats
        took = {}
        for who in ("plain", "ours") if turn % 2 else ("ours", "plain"):
            took[who] = (clock(plain, chosen, model, args.frames, args.size) if who == "plain"
                         else clock(ours, chosen, backbone, args.frames, "float32" if not turn else "float16"))
        off, exact = np.abs(took["plain"][1] - took["ours"][1]), args.precision == "float32"
        if not turn: worst = off.max() if exact else off.mean() / np.abs(took["plain"][1]).mean()
        elif exact: assert np.allclose(took["ours"][1], took["plain"][1], rtol=2**-11, atol=1e-3)
        assert worst < (1e-3 if exact else .1), f"the features differ by {worst}"
        spent.append([took[w][0] / len(chosen) for w in ("plain", "ours")])
        n.append(len(chosen))
    spent = np.array(spent[1:])  # (rounds, who, clock) seconds a clip
    print(f"{args.rounds} rounds of {n[1:]} clips, {args.frames} frames of {args.size} px, {args.threads} threads; "
          f"{args.precision}; features differ by {f'at most {worst:.1e}' if args.precision == 'float32' else f'{worst:.1%} on average'}")
    for i, who in enumerate(("plain", "extract")):
        print(f"{who:8s} {1 / np.median(spent[:, i, 0]):7.1f} clips/s  {np.median(spent[:, i, 1]) * 1e3:7.1f} processor ms a clip")
    for i, name in enumerate(("wall clock", "processor")):
        ratio = spent[:, 0, i] / spent[:, 1, i]
        print(f"plain / extract by {name}: {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})")


if __name__ == "__main__": main()
