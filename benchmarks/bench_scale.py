"""Pools of the size the paper speaks of, on this machine: matching, the store, and what a million clips cost.

    python benchmarks/bench_scale.py match --n 100000                     exact on all; IVF and IVF-PQ on 10,000, recall against exact
    python benchmarks/bench_scale.py match --n 1000000 --sample 2000      exact on a sample of queries, extrapolated
    python benchmarks/bench_scale.py store --n 2500000
    python benchmarks/bench_scale.py memory                               translate and match N and 4N rows: memory
    python benchmarks/bench_scale.py cost                                 decode, encode, translate, match, train
    python benchmarks/bench_scale.py page                                 docs/results/scale.md from the records of the above

Every part runs in processes of its own and leaves its figures, with machine and command, in docs/results/scale.json; `page` only writes
them down. The pools are made up: n / 100 centres drawn from a normal distribution in 256 dimensions, each row a random centre plus
normal noise of the same size, unit length, half precision, memory-mapped; queries and keys are drawn alike, from the same centres.
"CPU s" are seconds of one core; a busy machine stretches wall time and not these.
"""
import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

RECORD = Path(__file__).resolve().parents[1] / "docs" / "results" / "scale.json"


# ---- what all parts share

class Watch:
    "CPU and wall seconds of a block, and the peak of memory that is not a file's (Linux), in MB."
    def __enter__(self):
        self.peak, self.on = 0., True
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def _look(self):
        while self.on:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(.02)

    def __exit__(self, *error):
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.on = False
        self.thread.join()
        self.peak = max(self.peak, anonymous_mb())


def anonymous_mb() -> float:
    "Memory in use that is not a view of a file, MB; all resident memory where /proc is missing."
    try: return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024
    except (OSError, IndexError): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict:
    "Processor, cores, memory; no names."
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in text.splitlines() if ":" in line)}
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f in about.get("flags", "").split()]
    model = f"{about.get('model name', 'unknown')} (family {about.get('cpu family')}, model {about.get('model')})"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return dict(cpu=model, cores=os.cpu_count(), flags=flags, memory_gb=round(memory, 1), torch=torch.__version__, load=round(os.getloadavg()[0], 1))


def keep(name: str, command: str, **figures):
    "Add to the record."
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known[name] = dict(command=command, date=str(date.today()), machine=machine(), **figures)
    RECORD.write_text(json.dumps(known, indent=1) + "\n")
    print(name, json.dumps(figures), flush=True)


def alone(part: str, **options) -> dict:
    "A part in a process of its own; its last line is JSON."
    words = [x for k, v in options.items() for x in (f"--{k}", str(v))]
    done = subprocess.run([sys.executable, __file__, part, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode: sys.exit(f"{part} {words} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- matching

def pool(path: Path, n: int, seed: int, d: int = 256, block: int = 50_000) -> np.ndarray:
    "The made-up pool as a memory map, written block by block."
    if not path.exists():
        centres, g = np.random.default_rng(0).standard_normal((max(2, n // 100), d), np.float32), np.random.default_rng(seed)
        out = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
        for i in range(0, n, block):
            m = min(block, n - i)
            x = centres[g.integers(len(centres), size=m)] + g.standard_normal((m, d), np.float32)
            out[i:i + m] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.load(path, mmap_mode="r")


def search(a):
    "One way of searching; prints its figures."
    from viewpoint_rosetta.knn import build_index, top_k
    folder = Path(a.work)
    queries, keys = pool(folder / "queries.npy", a.n, 1), pool(folder / "keys.npy", a.n, 2)
    some, exact = queries[:a.sample], folder / "exact.npy"
    out = dict(kind=a.kind, start_mb=anonymous_mb())
    if a.kind == "exact":
        with Watch() as w: scores, _ = top_k(some, keys, 10)
        np.save(exact, scores.numpy())
        return print(json.dumps(out | dict(queries=len(some), cpu_s=w.cpu, wall_s=w.wall, peak_mb=w.peak)))
    some = some[:10_000]  # enough for a rate and a recall
    truth = torch.from_numpy(np.load(exact))[:len(some)]
    with Watch() as w: index = build_index(keys, a.kind)
    inner, looked = getattr(index, "index", index), []
    usual = inner.nprobe
    out |= dict(build_cpu_s=w.cpu, build_wall_s=w.wall, build_peak_mb=w.peak, index_mb=a.n * (inner.code_size + 8) / 1e6 + inner.nlist * inner.d * 4e-6,
                cells=inner.nlist, probes=usual)
    for inner.nprobe in sorted({max(1, usual // 8), max(1, usual // 4), max(1, usual // 2), usual}):
        with Watch() as w: scores, _ = top_k(some, index, 10)
        looked.append(dict(probes=inner.nprobe, queries=len(some), cpu_s=w.cpu, wall_s=w.wall, peak_mb=w.peak,
                           recall_1=(scores[:, 0] >= truth[:, 0] - 1e-4).float().mean().item(),
                           recall_10=(scores >= truth[:, 9:] - 1e-4).float().mean().item()))
    print(json.dumps(out | dict(looked=looked)))


def match(a):
    "Exact, IVF and IVF-PQ on the same pools."
    with tempfile.TemporaryDirectory() as work:
        how = dict(n=a.n, sample=min(a.sample or a.n, a.n), work=work)
        found = []
        for kind in ("exact", "ivf", "ivfpq"):
            found.append(alone("search", kind=kind, **how))
            print(found[-1], flush=True)
    keep(f"match {a.n}", command(a), n=a.n, dims=256, found=found)


# ---- the store

def store(a):
    "2.5M rows appended, opened, read, scanned, merged."
    from viewpoint_rosetta.features import FeatureStore
    g, each, out = np.random.default_rng(0), 50_000, {}
    block = g.standard_normal((each, 256), np.float32).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        kept = FeatureStore(Path(folder) / "s")
        with Watch() as w:
            for i in range(0, a.n, each): kept.append([f"clip{n:07d}" for n in range(i, min(a.n, i + each))], block[:min(each, a.n - i)])
        out["append"] = dict(cpu_s=w.cpu, wall_s=w.wall, rows=a.n)
        files = [f for f in (Path(folder) / "s").rglob("*") if f.is_file()]
        out |= dict(shards=sum(f.suffix == ".arrow" for f in files), bytes=sum(f.stat().st_size for f in files), raw_bytes=a.n * 512)
        del kept
        out["open"] = alone("opened", work=folder, n=a.n)
        kept = FeatureStore(Path(folder) / "s")
        with Watch() as w: kept.compact(max_bytes=2**32)
        out["compact"] = dict(cpu_s=w.cpu, wall_s=w.wall, peak_mb=w.peak)
        del kept
        np.lib.format.open_memmap(Path(folder) / "raw.npy", "w+", np.float16, (a.n, 256))[:] = np.resize(block, (a.n, 256))
        out["compacted"] = alone("opened", work=folder, n=a.n)
    keep("store", command(a), n=a.n, **out)


def opened(a):
    "A store opened anew: random rows and a scan, and the scan of a plain memory map."
    from viewpoint_rosetta.features import FeatureStore
    with Watch() as w: kept = FeatureStore(Path(a.work) / "s")
    out = dict(cpu_s=w.cpu, wall_s=w.wall, mb=anonymous_mb())
    some = [f"clip{n:07d}" for n in np.random.default_rng(1).choice(a.n, 20_000, replace=False)]
    with Watch() as w:
        for i in range(0, len(some), 1000): kept.read(some[i:i + 1000])
    out["read"] = dict(rows=len(some), cpu_s=w.cpu, wall_s=w.wall)
    views = [values for _, _, values in kept._shards.values()]
    out["scan"] = scan(views)
    if (raw := Path(a.work) / "raw.npy").exists(): out["raw_scan"] = scan([np.load(raw, mmap_mode="r")])
    print(json.dumps(out))


def scan(views) -> dict:
    "Every bit read, 4,096 rows at a time, twice; the second time counts, when the file is in the page cache."
    for _ in range(2):
        with Watch() as w:
            for view in views:
                for i in range(0, len(view), 4096): np.bitwise_xor.reduce(view[i:i + 4096].view(np.uint64), axis=None)
    return dict(gb=sum(v.nbytes for v in views) / 1e9, cpu_s=w.cpu, wall_s=w.wall)


# ---- memory

def stream(a):
    "Translate a memory-mapped pool into another and match it with a third; prints the peak of memory."
    from viewpoint_rosetta.matching import MatchSettings, match as link
    from viewpoint_rosetta.translator import RSTSettings, new_translator
    g, folder = np.random.default_rng(0), Path(a.work)
    z_ego, z_exo, e_ego, e_exo = (np.lib.format.open_memmap(folder / f"{name}-{a.n}.npy", "w+", np.float16, (a.n, d))
                                  for name, d in (("ego", 256), ("exo", 256), ("told", 384), ("said", 384)))
    for x in (z_ego, z_exo, e_ego, e_exo):
        for i in range(0, a.n, 4096): x[i:i + 4096] = g.standard_normal(x[i:i + 4096].shape, np.float32)
    pairs = [torch.from_numpy(np.array(x[:500]).astype(np.float32)) for x in (z_ego, z_exo)]
    rst, _ = new_translator(*pairs, RSTSettings(anchor=False))
    zhat = np.lib.format.open_memmap(folder / f"zhat-{a.n}.npy", "w+", np.float16, (a.n, 256))
    with Watch() as w:
        rst.translate(z_ego, generator=torch.Generator().manual_seed(0), out=zhat)
        table = link(np.arange(a.n), zhat, e_ego, np.arange(a.n), z_exo, e_exo, MatchSettings(index="exact", block=1024))
    print(json.dumps(dict(n=a.n, peak_mb=w.peak, table_mb=table.memory_usage().sum() / 1e6, pool_mb=a.n * 2 * (3 * 256 + 2 * 384) / 1e6,
                          cpu_s=w.cpu)))


def memory(a):
    "The same for N and 4N rows."
    found = []
    for n in (a.n, 4 * a.n):
        with tempfile.TemporaryDirectory() as work: found.append(alone("stream", n=n, work=work))
    keep("memory", command(a), found=found)


# ---- what a million clips cost

H100 = 989e12  # dense bfloat16 operations a second, by its data sheet
SHARE = .4     # of it that a training or inference loop keeps busy: an assumption, not a measurement


def timed(fn, at_least: float = 3.) -> float:
    "CPU seconds of a call: after one call to warm up, the mean over calls until they took `at_least` CPU seconds."
    fn()
    start, n = time.process_time(), 0
    while time.process_time() - start < at_least: fn(); n += 1
    return (time.process_time() - start) / n


def cost(a):
    "CPU seconds a clip of each step, and the operations of each."
    from bench_timesformer import flops, trained
    from viewpoint_rosetta.clips import read_clips
    from viewpoint_rosetta.translator import RSTSettings, new_translator
    from viewpoint_rosetta.video import clip_frames
    from viewpoint_rosetta.world import shipped
    clips, clip, g, out = read_clips(shipped()), iter(range(10**6)), torch.Generator().manual_seed(0), {}
    out["decode"] = dict(cpu_s=timed(lambda: clip_frames(clips, next(clip) % len(clips), 4)), flop=0,
                         how=f"4 frames of a clip of the shipped world ({'x'.join(map(str, clip_frames(clips, 0, 1).shape[1:3]))} px) by `clip_frames`")
    bf16 = torch.cpu._is_avx512_bf16_supported()
    model, x = trained().to(torch.bfloat16 if bf16 else torch.float32), torch.randn(4, 3, 4, 224, 224, generator=g)
    x = x.to(next(model.parameters()).dtype)
    out["encode"] = dict(cpu_s=timed(lambda: model(x)) / 4, flop=flops(1, True), how=f"TimeSformer-B, forward, 4 frames of 224 px, {str(x.dtype)[6:]}, batch 4")
    with torch.enable_grad():
        model.requires_grad_(True)
        out["train, an epoch"] = dict(cpu_s=timed(lambda: model(x).float().square().sum().backward()) / 4, flop=3 * flops(1, True),
                                      how="the same, forward and backward; the optimiser and the text tower are not in it")
    s = RSTSettings(anchor=False)
    rst, _ = new_translator(torch.randn(600, 256, generator=g), torch.randn(600, 256, generator=g), s)
    z, net = torch.randn(1024, 256, generator=g), rst.denoiser
    linear = sum(p.numel() for n, p in net.named_parameters() if p.ndim == 2 and "norm" not in n and not n.startswith(("ego", "time", "pos")))
    out["translate"] = dict(cpu_s=timed(lambda: rst.translate(z)) / 1024, flop=2. * linear * s.tokens * s.samples * s.inference_steps,
                            how=f"RST of the usual size, {s.samples} samples of {s.inference_steps} steps, 256-d")
    keep("cost", command(a), steps=out, h100=H100, share=SHARE)


# ---- the page

def rows(head: str, *lines: str) -> str:
    "A Markdown table."
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines])


def told(part: dict) -> str:
    "Command, day and load of a part."
    return f"`{part['command']}`, {part['date']}, load {part['machine']['load']} on {part['machine']['cores']} cores."


def hours(seconds: float) -> str:
    "Core hours, as one would say them."
    return f"{seconds / 3600:,.0f} h" if seconds >= 36_000 else f"{seconds / 3600:.2g} h" if seconds >= 360 else f"{seconds:.1f} s"


def timesformer_text(r) -> str:
    lines = [f"| {x['dtype']} | {x['batch']} | {x['name']} | {x['clips_per_cpu_s']:.2f} | {x['ratio']:.2f} ({x['least']:.2f} to {x['largest']:.2f}) | "
             f"{x['limit_clips_per_s']:.2f} | {x['off']:.0e} |" for x in r["rows"]]
    best = {d: (max(x["ratio"] for x in r["rows"] if x["dtype"] == d and x["name"] == "ours"),
                min(x["ratio"] for x in r["rows"] if x["dtype"] == d and x["name"] == "ours"), r["rates"][d]) for d in r["rates"]}
    said = "; ".join(f"{d}: {low:.2f} to {high:.2f} times eager, matrix products at best {rate / 1e9:.0f} GFLOP per CPU second" for d, (high, low, rate) in best.items())
    def room(d): return max(x["limit_clips_per_s"] / x["clips_per_cpu_s"] for x in r["rows"] if x["dtype"] == d and x["name"] == "eager")
    half = "".join(f" In {d} both ways use oneDNN already: matrix products alone would be {room(d):.2f} times eager." for d in r["rates"] if d == "bfloat16")
    return f"""## TimeSformer-B against attention written out

{told(r)} {r['threads']} thread, {r['repeats']} rounds, each row once a round; the ratio is taken within a round (median, least to largest).

{rows('| numbers | batch | row | clips a CPU s | times eager | limit | largest difference to eager |', *lines)}

{said}. `limit` is clips a second if nothing but the matrix products of the linear layers ran, at the best rate seen in this run (measured apart
from the rounds: where a row is above it, neighbours slowed that measurement). `usual
layers` is ours with PyTorch's own linear layers: fused attention, a last block that works for CLS alone and less fresh memory. The rest of
the gain in float32 is oneDNN in place of MKL, and will be smaller on processors that MKL was made for.{half}
"""


def match_text(r) -> str:
    exact, n, lines = r["found"][0], r["n"], []
    each = exact["cpu_s"] / exact["queries"]
    whole = "measured" if exact["queries"] == n else "extrapolated"
    lines.append(f"| exact | – | {1e3 * each:.3f} ms | {hours(each * n)}, {whole} | 1 | 1 | – | – | {exact['peak_mb'] - exact['start_mb']:.0f} |")
    for f in r["found"][1:]:
        for i, x in enumerate(f["looked"]):
            one = x["cpu_s"] / x["queries"]
            how = "measured" if x["queries"] == n else "extrapolated"
            build = (f"{f['build_cpu_s']:.0f} s", f"{f['index_mb']:,.0f}", f"{max(f['build_peak_mb'], x['peak_mb']) - f['start_mb']:,.0f}")
            usual = " (usual)" if x["probes"] == f["probes"] else ""
            lines.append(f"| {f['kind']} | {x['probes']} of {f['cells']}{usual} | {1e3 * one:.3f} ms | {hours(one * n)}, {how} | {x['recall_1']:.3f} | "
                         f"{x['recall_10']:.3f} | {build[0]} | {build[1]} | {build[2]} |")
    return f"""### {n:,} x {n:,}

{told(r)} Exact search of {exact['queries']:,} of the {n:,} queries, the indexes of
{r['found'][1]['looked'][0]['queries']:,}; the column for all queries is CPU time a query x {n:,}.

{rows('| search | cells looked into | CPU time a query | all queries | recall@1 | recall@10 | building | index, MB | memory at most, MB |', *lines)}
"""


def store_text(r) -> str:
    def line(name, x): return (f"| {name} | {x['wall_s']:.1f} s ({x['cpu_s']:.1f} CPU s) | {1e6 * x['read']['cpu_s'] / x['read']['rows']:.1f} µs | "
                               f"{x['scan']['gb'] / x['scan']['cpu_s']:.1f} GB/s |")
    raw, w, c = r["compacted"]["raw_scan"], r["append"], r["compact"]
    return f"""## The store at {r['n'] / 1e6:.1f}M rows

{told(r)} {r['n']:,} rows of 256 half floats.

{rows('| | opening | a random row, 1,000 at a time | scan, per CPU second |', line(f"{r['shards']} shards", r['open']), line('after `compact`', r['compacted']),
      f"| a plain memory map | – | – | {raw['gb'] / raw['cpu_s']:.1f} GB/s |")}

Appending took {1e6 * w['cpu_s'] / w['rows']:.1f} CPU µs a row ({w['wall_s']:.0f} s in all, each shard waits for the disk); on disk {r['bytes'] / 1e9:.2f} GB,
the numbers alone {r['raw_bytes'] / 1e9:.2f} GB. `compact` took {c['wall_s']:.0f} s and up to {c['peak_mb']:,.0f} MB. An open store holds {r['compacted']['mb']:,.0f} MB, nearly all of it
the ids and where they are. Scans read a file that is in the page cache.
"""


def memory_text(r) -> str:
    few, many = r["found"]
    return f"""## Memory of translating and matching

{told(r)} Exact search in blocks of 1,024 rows, pools and translations memory-mapped; memory that is not a file's.

{rows('| rows a side | the pools on disk, MB | peak, MB | of that the pair table, MB | CPU s |',
      *(f"| {x['n']:,} | {x['pool_mb']:.0f} | {x['peak_mb']:.0f} | {x['table_mb']:.1f} | {x['cpu_s']:.0f} |" for x in (few, many)))}

Four times the rows added {many['pool_mb'] - few['pool_mb']:.0f} MB on disk and {many['peak_mb'] - few['peak_mb']:.1f} MB in memory. An index is another matter: it is as large as the tables above say.
"""


def cost_text(r, matched) -> str:
    found, speed, lines = dict(r["steps"]), r["h100"] * r["share"], []
    if matched:
        kind = {f["kind"]: f for f in matched["found"]}
        x = kind["ivf"]["looked"][-1]
        found["match, ivf"] = dict(cpu_s=x["cpu_s"] / x["queries"] + kind["ivf"]["build_cpu_s"] / matched["n"], flop=2. * matched["n"] * matched["dims"],
                                   how=f"{matched['n']:,} keys of {matched['dims']}, index included; on the GPU exact search instead")
    for name, x in found.items():
        gpu = "stays on the CPU" if not x["flop"] else f"{x['flop']:.3g} x 1e6 / {speed:.3g} = {hours(x['flop'] * 1e6 / speed)}"
        lines.append(f"| {name} | {1e3 * x['cpu_s']:.4g} ms | {x['cpu_s'] * 1e6 / 3600:,.3g} core hours | {gpu} | {x['how']} |")
    return f"""## What a million clips cost

{told(r)} One thread. Core hours: CPU seconds a clip x 1,000,000 / 3,600. On a GPU, not measured but computed: operations a clip x
1,000,000 / ({r['h100']:.3g} a second, an H100's dense bfloat16 by its data sheet, x {r['share']} kept busy, which is an assumption). Small
networks such as the translator and memory-bound steps keep a GPU less busy than that.

{rows('| step | a clip | a million clips, this CPU | a million clips, one H100 | what was run |', *lines)}
"""


def page(a):
    "The records as a page."
    known = json.loads(RECORD.read_text())
    about = next(iter(known.values()))["machine"]
    matched = [known[k] for k in sorted((k for k in known if k.startswith("match ")), key=lambda k: int(k.split()[1]))]
    parts = [f"""# Scale, measured and extrapolated

Written by `python benchmarks/bench_scale.py page` from `scale.json`; nothing here is typed by hand. Machine: {about['cpu']}, {about['cores']} cores
({', '.join(about['flags'])}), {about['memory_gb']:.0f} GB, no GPU, PyTorch {about['torch']}. It was shared with other work (see the load of each
part): CPU seconds are of one core and hardly mind that, wall seconds do. What was not run whole is called extrapolated.
"""]
    if "timesformer" in known: parts.append(timesformer_text(known["timesformer"]))
    if matched:
        parts.append("""## Matching

Made-up pools: n / 100 centres from a normal distribution in 256 dimensions; a row is a random centre plus normal noise of the same size, unit
length, half precision, memory-mapped. No text part. Recall counts an answer that is as near as the exact one; the codes of `ivfpq` are scored again by the real rows.
""")
        parts += map(match_text, matched)
    if "memory" in known: parts.append(memory_text(known["memory"]))
    if "store" in known: parts.append(store_text(known["store"]))
    if "cost" in known: parts.append(cost_text(known["cost"], matched[-1] if matched else None))
    asked = {"match 100000": "match --n 100000", "match 1000000": "match --n 1000000 --sample 1000", "memory": "memory --n 2000", "store": "store", "cost": "cost"}
    lacking = [f"- `python benchmarks/bench_scale.py {words}`" for name, words in asked.items() if name not in known]
    if lacking: parts.append("\n".join(["## Not on record yet", "", *lacking, ""]))
    RECORD.with_suffix(".md").write_text("\n".join(parts))


# ---- the command

def command(a) -> str:
    "What was typed, as far as it matters."
    return " ".join(["python benchmarks/bench_scale.py", a.part, *(f"--{k} {v}" for k, v in vars(a).items() if k in ("n", "sample") and v)])


PARTS = {f.__name__: f for f in (match, search, store, opened, memory, stream, cost, page)}
USUAL = dict(match=100_000, store=2_500_000, memory=5_000)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=list(PARTS))
    p.add_argument("--n", type=int, help="rows of a pool")
    p.add_argument("--sample", type=int, default=0, help="match: queries that are searched (default all)")
    p.add_argument("--work", help=argparse.SUPPRESS)
    p.add_argument("--kind", help=argparse.SUPPRESS)
    a = p.parse_args()
    a.n = a.n or USUAL.get(a.part, 0)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    PARTS[a.part](a)


if __name__ == "__main__": main()
