"""Exact blockwise search against one matrix product and against FAISS: time, peak memory, recall@1.

Each method runs in a process of its own, on random features of which every query has one near neighbour, after the
same features were built. `--methods` picks some; memory is the growth of the peak over the features themselves.

usage: python benchmarks/bench_matching.py [--queries 4000] [--keys 40000] [--dims 640] [--block 4096] [--seed 0]
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

METHODS = ("one product", "blockwise", "blockwise half", "faiss flat", "faiss ivf")


def features(nq, nk, dims, seed):
    "Unit rows; the first nq keys are the queries with noise, so that recall means something."
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(2, nk // 100), dims, generator=g)
    keys = centres[torch.randint(len(centres), (nk,), generator=g)] + torch.randn(nk, dims, generator=g)
    queries = keys[:nq] + .3 * torch.randn(nq, dims, generator=g)
    return F.normalize(queries, dim=1), F.normalize(keys, dim=1)


def search(method, queries, keys, block):
    "Rows of the nearest key, and seconds for the index (if any) and for the search."
    from viewpoint_rosetta.matching import build_index, top_k
    index, t = keys, time.perf_counter()
    if method.startswith("faiss"): index = build_index(keys, method.split()[1], block=block)
    built = time.perf_counter() - t
    t = time.perf_counter()
    rows = (queries @ keys.T).argmax(1) if method == "one product" else top_k(queries, index, 1, block)[1][:, 0]
    return rows, built, time.perf_counter() - t


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak():
    "Forget the peak of building the features (Linux; elsewhere the growth beyond it is reported). Returns MB now."
    try: Path("/proc/self/clear_refs").write_text("5")
    except OSError: pass
    return peak()


def one(a):
    "Run one method and print its figures as JSON."
    queries, keys = features(a.queries, a.keys, a.dims, a.seed)
    if a.method == "blockwise half": queries, keys = queries.half(), keys.half()
    before = reset_peak()
    rows, built, seconds = search(a.method, queries, keys, a.block)
    print(json.dumps(dict(method=a.method, index_s=built, search_s=seconds, peak_mb=peak() - before,
                          recall=(rows == torch.arange(len(rows))).float().mean().item())))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(queries=4000, keys=40_000, dims=640, block=4096, seed=0).items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--method", help=argparse.SUPPRESS)
    p.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    a = p.parse_args()
    if a.method: return one(a)
    print(f"{a.queries:,} queries, {a.keys:,} keys, {a.dims} dims, block {a.block}, seed {a.seed}, {torch.get_num_threads()} thread(s)")
    print(f"{'method':16s} {'index s':>8s} {'search s':>9s} {'GFLOP/s':>8s} {'peak MB':>8s} {'found':>7s}")
    for method in a.methods:
        args = [x for name in ("queries", "keys", "dims", "block", "seed") for x in (f"--{name}", str(getattr(a, name)))]
        done = subprocess.run([sys.executable, __file__, *args, "--method", method], capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr)
        r = json.loads(done.stdout.splitlines()[-1])
        rate = 2e-9 * a.queries * a.keys * a.dims / r["search_s"]
        print(f"{method:16s} {r['index_s']:8.2f} {r['search_s']:9.2f} {rate:8.1f} {r['peak_mb']:8.0f} {r['recall']:7.3f}", flush=True)


if __name__ == "__main__": main()
