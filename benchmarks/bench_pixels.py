"""Training from pixels: memory and time of a large batch, and a small encoder trained end to end on the embedded world.

    python benchmarks/bench_pixels.py --memory
    python benchmarks/bench_pixels.py --train [--seeds 3] [--steps 600] [--world DIR]

DIR is a world that `rosetta world --full --out DIR` rendered; without it, the shipped one is taken.

Each measurement of memory is a process of its own (the peak resident set never falls within one). Training uses synchronized and
language pairs of the training rooms; choices were made on validation rooms, test clips are asked once at the end. The results go to docs/results/pixels.md.
"""
import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from viewpoint_rosetta import pixels as p
from viewpoint_rosetta.benchmark import evaluate
from viewpoint_rosetta.clips import hide_truth, pool, read_clips
from viewpoint_rosetta.losses import LossSettings, l_vv
from viewpoint_rosetta.training import TrainSettings
from viewpoint_rosetta.world import shipped

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "pixels.md"


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def step(batch: int, micro: int, checkpointed: bool = False, bf16: bool = False) -> tuple:
    "One forward and backward pass of made-up clips through a small encoder: MB above the start, seconds."
    loaded = p.small_encoder()
    model = p.switch_blocks(loaded.model, checkpointed)
    def once(frames):
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
            f = p.in_parts(lambda x: model.encode_video(loaded.preprocessing(x)), frames, micro or None)
            l_vv(*f.chunk(2)).backward()
    once(torch.zeros(4, 4, 64, 64, 3, dtype=torch.uint8))  # gradients and libraries are there now
    frames = torch.zeros(batch, 4, 64, 64, 3, dtype=torch.uint8).random_(256)
    before, start = peak_mb(), time.perf_counter()
    once(frames)
    return peak_mb() - before, time.perf_counter() - start


def in_process(*args) -> tuple:
    env = os.environ | dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")  # glibc: give freed memory back at once
    done = subprocess.run([sys.executable, __file__, "--one", *map(str, args)], env=env, capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


def markdown(df) -> str:
    lines = [df.columns, ["---"] * df.shape[1], *df.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def memory() -> str:
    rows = []
    for batch, micro, checkpointed, bf16 in ((32, 0, 0, 0), (128, 0, 0, 0), (128, 32, 0, 0), (1024, 32, 0, 0), (128, 0, 1, 0)):
        mb, seconds = in_process(batch, micro, checkpointed, bf16)
        rows.append(dict(batch=batch, micro=micro or "all", checkpointed="yes" if checkpointed else "no", peak_MB=round(mb), seconds=round(seconds, 1),
                         ms_a_clip=round(1000 * seconds / batch)))
        print(rows[-1], flush=True)
    plain, many = rows[0]["peak_MB"], rows[3]["peak_MB"]
    table = markdown(pd.DataFrame(rows))
    return (f"## Memory\n\nPeak resident memory above that before the step; 64 px, 4 frames, width 128, depth 3, fp32, made-up pixels; a process each, in which glibc gives freed memory back at once (MALLOC_MMAP_THRESHOLD_=65536). Without it, freed pieces pile up.\n\n{table}\n\n"
            f"A batch of 1,024 in micro-batches of 32 takes {many / plain:.2f} times the memory of a batch of 32; the frames of the whole batch, "
            f"{1024 * 4 * 64 * 64 * 3 / 2**20:.0f} MB as uint8, were there before the step and are not in these numbers.\n")


def language_pairs(clips):
    "For every unpaired ego clip the five exo clips whose narrations are closest."
    from viewpoint_rosetta.encoders import SentenceEncoder
    from viewpoint_rosetta.matching import MatchSettings, match
    ego, exo = (pool(clips, view) for view in ("ego", "exo"))
    e_ego, e_exo = (SentenceEncoder().encode(list(rows.narration.fillna(""))) for rows in (ego, exo))
    blank = [np.ones((len(rows), 2), np.float32) for rows in (ego, exo)]  # nothing is seen: text_weight 1
    return match(ego.clip_id, blank[0], e_ego, exo.clip_id, blank[1], e_exo, MatchSettings(k=5, text_weight=1.))


def scores(loaded, kept, clips, name, seed, split):
    return evaluate(p.embedder(loaded.model, loaded.preprocessing, kept), clips, name, seed, "embedded world", split=split)


def trained(clips, kept, pairs, seed: int, steps: int, split: str, settings: p.PixelSettings, work=None, size: int = 64) -> pd.DataFrame:
    "Benchmark rows of an encoder at step 0 and after training; attrs: CPU seconds, history."
    loaded = p.small_encoder(size, seed=seed)
    rows = [scores(loaded, kept, clips, "untrained", seed, split)]
    start = time.process_time()
    history = p.train_from_pixels(loaded, hide_truth(clips), kept, pairs, settings, TrainSettings(steps=steps, warmup=steps // 10, batch=64), seed,
                                  folder=work and Path(work) / f"{steps}-{settings.augment.colour}-{settings.loss.lambda_1}" / str(seed), about=asdict(settings), progress=sys.stderr.isatty())
    seconds = time.process_time() - start
    rows.append(scores(loaded, kept, clips, "trained from pixels", seed, split))
    table = pd.concat(rows, ignore_index=True)
    table.attrs = dict(seconds=seconds, first=history.loss.iloc[:5].mean(), last=history.loss.iloc[-20:].mean())
    return table


def train(args) -> str:
    seeds, steps, split = args.seeds, args.steps, args.split
    clips = read_clips(Path(args.world) / "clips.parquet" if args.world else shipped())
    kept, pairs = p.Kept(clips, progress=False), language_pairs(hide_truth(clips))
    s = p.PixelSettings(micro=None, augment=p.Augment(colour=args.colour), loss=LossSettings(lambda_1=args.lambda_1))
    tables = [trained(clips, kept, pairs, seed, steps, split, s, args.work) for seed in ([args.only] if args.only is not None else range(seeds))]
    for t in tables: print(t.attrs, flush=True)  # CPU seconds are those of this call: none if it was trained before
    both = pd.concat(tables, ignore_index=True)
    main = both[((both.direction == "avg") & (both.metric == "HR@5")) | both.metric.isin(["top-1", "top-5", "auc"])]
    what = main.task + ", " + main.protocol + ", " + main.metric
    mean = (main.assign(what=what, percent=100 * main.value, at_chance=100 * main.chance).groupby(["what", "method"], sort=False)
            .agg(percent=("percent", "mean"), low=("percent", "min"), high=("percent", "max"), chance=("at_chance", "mean"), n=("n", "first")).round(1).reset_index())
    first, last = (np.mean([t.attrs[k] for t in tables]) for k in ("first", "last"))
    which = "full" if args.world else "as shipped"
    return (f"## A small TimeSformer, end to end\n\nEmbedded world, {which} ({len(pool(clips, 'paired'))} synchronized training clips), split {split}, seeds 0 to {seeds - 1}: mean, lowest and highest in per cent. 64 px, patch 16, "
            f"4 frames, width 128, depth 3; {steps} steps of 64 clips on synchronized and language pairs, L_vv's share {args.lambda_1}, colour {args.colour}; loss {first:.2f} at the start, "
            f"{last:.2f} at the end. Class names of the probes and of retrieval are read by the benchmark only.\n\n{markdown(mean)}\n")


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("--memory", action="store_true")
    parse.add_argument("--train", action="store_true")
    parse.add_argument("--seeds", type=int, default=3)
    parse.add_argument("--steps", type=int, default=600)
    parse.add_argument("--split", choices=("val", "test"), default="val", help="test: once, when all is chosen")
    parse.add_argument("--colour", type=float, default=0., help="Augment.colour")
    parse.add_argument("--lambda-1", type=float, default=.5, help="share of L_vv")
    parse.add_argument("--work", help="folder of checkpoints: a finished training is tested on another split without being trained again")
    parse.add_argument("--world", metavar="DIR", help="a rendered world; default: the shipped one")
    parse.add_argument("--only", type=int, metavar="SEED", help="one seed of several that run side by side; with --work")
    parse.add_argument("--one", nargs=4, type=int, help=argparse.SUPPRESS)
    args = parse.parse_args()
    if args.one: return print(*step(*args.one))
    parts = dict(memory=memory if args.memory else None, train=(lambda: train(args)) if args.train else None)
    said = " ".join("DIR" if a in (args.world, args.work) else a for a in sys.argv[1:])
    for name, make in parts.items():
        if make is None: continue
        text = make() + f"\nMachine: {os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}. Command: `python benchmarks/bench_pixels.py {said}`.\n"
        print(text)
        if name != "train" or args.split == "test" and args.only is None: keep(name, text)  # validation is for choosing


def keep(name: str, text: str):
    "Replace one part of the results page."
    mark = "<!-- {} -->"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Training from pixels: measurements\n\n" + "".join(f"{mark.format(n)}\n{mark.format(n + ' end')}\n" for n in ("memory", "train"))
    head, rest = old.split(mark.format(name))
    tail = rest.split(mark.format(name + " end"))[1]
    RESULTS.write_text(f"{head}{mark.format(name)}\n{text}{mark.format(name + ' end')}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
