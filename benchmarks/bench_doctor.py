"""How far `rosetta doctor` is off: the forecast of a step against what the step then took, on the same machine, one after the other.

    python benchmarks/bench_doctor.py [--manifest clips.parquet --root FOLDER] [--videos 12] [--rounds 3] [--size 224] [--train]

Each round draws other videos of the table, measures the rates as `rosetta doctor` does, and then extracts the features of all their clips
into a temporary folder. With --train, f_phi is then trained on the features, with the steps of the demo. Printed: the forecast, the time
taken, and the ratio of the forecast's middle to it, with the median over rounds. Loading of models is in neither (the forecast's allowance
for it is taken off). Target: a median ratio between 1/2 and 2.

Record of 2026-11-25, shipped world, seed 0, `--train --videos 8`, one thread, 224 px, bfloat16, a machine of 2 cores that others kept busy (load 7):
extract 1.11 (1.04 to 1.58), phi/0 1.11 (1.05 to 1.47); two of three rounds inside the range of the forecast, the third 3% and 10% faster than its
lower end.
"""
import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from viewpoint_rosetta.clips import read_clips
from viewpoint_rosetta.doctor import DoctorSettings, Notes, examine
from viewpoint_rosetta.encoders import SentenceEncoder, load_backbone
from viewpoint_rosetta.estimate import LOADING, forecast, measure, this_machine
from viewpoint_rosetta.features import FeatureStore, Whitening, extract, extract_text, load_bank
from viewpoint_rosetta.methods import demo_settings, train_phi
from viewpoint_rosetta.world import shipped


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--manifest", type=Path, default=shipped(), help="clip table (default: the shipped world)")
    parse.add_argument("--root", type=Path, help="folder of its videos (default: the manifest's own)")
    parse.add_argument("--videos", type=int, default=12, help="videos a round, with all their clips")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    parse.add_argument("--train", action="store_true", help="also train f_phi")
    parse.add_argument("--seed", type=int, default=0)
    args = parse.parse_args()
    settings, rng, ratios = replace(demo_settings(), size=args.size), np.random.default_rng(args.seed), {}
    clips, encoder = read_clips(args.manifest, args.root), SentenceEncoder()
    encoder.encode(["a sentence before the clock starts"])
    with tempfile.TemporaryDirectory() as folder:
        notes = Notes(Path(folder) / "notes.jsonl")
        for turn in range(args.rounds):
            df = clips[clips.video.isin(rng.choice(clips.video.unique(), args.videos, replace=False))].reset_index(drop=True)
            rates = measure(df, examine(df, notes, DoctorSettings(full=True)), settings)
            table = forecast(df, settings, rates, this_machine(folder)).set_index("step")
            took, store, text = {}, FeatureStore(Path(folder) / f"features{turn}"), FeatureStore(Path(folder) / f"text{turn}")
            backbone = load_backbone(size=args.size, precision=settings.precision)
            start = time.perf_counter()
            extract(df, backbone, store, settings.encoder.frames, progress=False)
            store.compact()
            extract_text(df, encoder, text)
            took["extract"] = time.perf_counter() - start
            if args.train:
                raw = load_bank(df, store, text)
                bank = Whitening.fit(raw, df.clip_id[df.split == "train"], settings.whiten)(raw)
                start = time.perf_counter()
                train_phi(bank, df, settings, turn, progress=False)
                took["phi/0"] = time.perf_counter() - start
            for step, seconds in took.items():
                low, high = table.low_s[step], table.high_s[step] - LOADING
                ratios.setdefault(step, []).append((low + high) / 2 / seconds)
                print(f"{step}: {len(df)} clips, forecast {low:.1f} to {high:.1f} s, took {seconds:.1f} s, "
                      f"ratio {ratios[step][-1]:.2f}{'' if low <= seconds <= high else ' (outside the range)'}", flush=True)
    for step, found in ratios.items():
        print(f"{step}: middle of the forecast / taken: {np.median(found):.2f} ({min(found):.2f} to {max(found):.2f}), {torch.get_num_threads()} threads, "
              f"{args.size} px, {settings.precision}")


if __name__ == "__main__": main()
