"""TimeSformer-B in clips a second: ours against attention written out, as the peers have it. Same weights, same outputs, one run.

    python benchmarks/bench_timesformer.py [--batches 1 4 8] [--repeats 5] [--threads 1] [--dtypes float32 bfloat16] [--compile] [--keep]

LaViLa's layout: 4 frames of 224 x 224, 12 blocks, 785 tokens of 768. Rows:

- `eager`: q, k, v split by head; CLS against all tokens; the other tokens rearranged into groups (one place over time, one frame over
  space) with a repeated CLS key and value; scores, softmax and weighted sum as three separate steps. All tokens through all blocks.
- `ours`: `viewpoint_rosetta.timesformer.TimeSformer` as it is used.
- `ours, usual layers`: the same with PyTorch's linear layers, which shows what attention and the skipped work alone give.
- `ours, compiled`: `torch.compile`, with --compile.

Each round runs every row once, in turn; seconds are CPU seconds of this process, so that neighbours on the machine count less; the ratio
is taken within a round, and its median, least and largest are shown. `limit` is what the matrix products of `ours` alone would take at
the best rate that this machine showed in the same run.
"""
import argparse
import time
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from bench_scale import keep
from viewpoint_rosetta import timesformer
from viewpoint_rosetta.timesformer import DividedAttention, Linear, TimeSformer


class Written(nn.Module):
    "Divided attention, step by step, on the weights of ours."

    def __init__(self, ours: DividedAttention):
        super().__init__()
        self.qkv, self.proj, self.heads = ours.qkv, ours.proj, ours.heads

    def forward(self, x, f, over):
        b, n, width = x.shape
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2).reshape(b * self.heads, n, -1) for t in (q, k, v))  # (b h) n d
        q = q * q.shape[-1] ** -.5
        cls = attend(q[:, :1], k, v)                                               # (b h) 1 d
        own_q, own_k, own_v = (self.groups(t[:, 1:], f, over) for t in (q, k, v))  # (b h g) m d
        times = len(own_k) // len(k)
        cls_k, cls_v = (t[:, :1].repeat_interleave(times, 0) for t in (k, v))      # (b h g) 1 d
        y = attend(own_q, torch.cat([cls_k, own_k], 1), torch.cat([cls_v, own_v], 1))
        y = self.back(y, f, over, b * self.heads)                                  # (b h) (f n) d
        y = torch.cat([cls, y], 1).reshape(b, self.heads, n, -1).transpose(1, 2).reshape(b, n, width)
        return F.linear(y, self.proj.weight, self.proj.bias)

    def groups(self, t, f, over):  # (b h) (f n) d -> (b h g) m d
        t = t.reshape(len(t), f, -1, t.shape[-1])
        return (t.transpose(1, 2) if over == "time" else t).reshape(-1, f if over == "time" else t.shape[2], t.shape[-1])

    def back(self, y, f, over, many):
        y = y.reshape(many, -1, y.shape[1], y.shape[2])
        return (y.transpose(1, 2) if over == "time" else y).reshape(many, -1, y.shape[-1])


def attend(q, k, v):
    "Scores, softmax, weighted sum; every intermediate is kept in memory."
    return torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)


class Eager(nn.Module):
    "The whole encoder, step by step, on the weights of ours; all tokens through all blocks."

    def __init__(self, ours: TimeSformer):
        super().__init__()
        self.ours, self.attention = ours, nn.ModuleList(nn.ModuleList([Written(b.timeattn), Written(b.attn)]) for b in ours.blocks)

    def forward(self, video):
        x, f = self.ours.embed(video)
        for block, (time_, space) in zip(self.ours.blocks, self.attention):
            t = time_(block.norm3(x), f, "time")
            y = x + space(block.norm1(x + t), f, "space")
            h = F.linear(block.norm2(y), block.mlp.fc1.weight, block.mlp.fc1.bias)
            x = y + F.linear(h * torch.sigmoid(1.702 * h), block.mlp.fc2.weight, block.mlp.fc2.bias)
        return self.ours.norm(x)[:, 0]


def trained(seed=0) -> TimeSformer:
    "TimeSformer-B with random weights everywhere, as if trained: nothing is silent."
    torch.manual_seed(seed)
    model = TimeSformer().eval().requires_grad_(False)
    for b in model.blocks:
        for p in (b.timeattn.qkv.weight, b.timeattn.proj.weight): nn.init.normal_(p, std=.02)
    nn.init.normal_(model.temporal_embed, std=.02)
    return model


def flops(batch: int, skip: bool) -> float:
    "Operations of the linear layers and the patch embedding of one forward pass; `skip`: the last block answers for CLS only."
    n, w = 785, 768
    block = 2 * n * w * w * (2 * (3 + 1) + 8)
    last = 2 * w * w * (n * 4 + n * 2 + 1 * (1 + 1 + 8)) if skip else block
    return batch * (11 * block + last + 2 * 784 * w * w)


def best_rate(dtype, n: int = 4) -> float:
    "Operations a CPU second of a matrix product of the MLP's shape, for one clip and for four, by the better of the two libraries."
    layer, found = Linear(768, 3072).to(dtype).requires_grad_(False), []
    for x in (torch.randn(785 * clips, 768).to(dtype) for clips in (1, 4)):
        for fn in [lambda: F.linear(x, layer.weight, layer.bias), lambda: layer(x)] * n:
            start = time.process_time()
            fn()
            found.append(2 * len(x) * 768 * 3072 / (time.process_time() - start))
    return max(found)


@contextmanager
def usual_layers():
    "Inside, our linear layers are PyTorch's."
    kept, Linear.forward = Linear.forward, nn.Linear.forward
    of_function, timesformer.linear = timesformer.linear, F.linear
    try: yield
    finally: Linear.forward, timesformer.linear = kept, of_function


def rows(model, compiled: bool) -> dict:
    "Name to a function of a batch."
    def usual(x):
        with usual_layers(): return model(x)
    found = {"eager": Eager(model), "ours, usual layers": usual, "ours": model}
    return found | ({"ours, compiled": torch.compile(model)} if compiled else {})


def measured(batches, repeats: int, dtypes, compiled: bool) -> pd.DataFrame:
    "A row for every run: dtype, batch, name, CPU and wall seconds, and how far the output is from eager's."
    out = []
    for dtype, batch in ((d, b) for d in dtypes for b in batches):
        model = trained().to(getattr(torch, dtype))
        x = torch.randn(batch, 3, 4, 224, 224, generator=torch.Generator().manual_seed(batch)).to(getattr(torch, dtype))
        ways = rows(model, compiled)
        expected = ways["eager"](x)
        apart = {name: (fn(x) - expected).abs().max().item() for name, fn in ways.items()}  # also warms up
        if dtype == "float32": assert max(apart.values()) < 1e-4, f"outputs differ: {apart}"
        for turn, (name, fn) in ((r, w) for r in range(repeats) for w in ways.items()):
            cpu, wall = time.process_time(), time.perf_counter()
            fn(x)
            out.append(dict(dtype=dtype, batch=batch, name=name, turn=turn, cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall,
                            off=apart[name], spread=expected.float().std().item()))
    return pd.DataFrame(out)


def summary(runs: pd.DataFrame, rates: dict) -> pd.DataFrame:
    "Clips a CPU second, ratio to eager within a round (median, least, largest), the limit by matrix products alone."
    found = []
    for (dtype, batch, name), g in runs.groupby(["dtype", "batch", "name"], sort=False):
        eager = runs[(runs.dtype == dtype) & (runs.batch == batch) & (runs["name"] == "eager")].set_index("turn").cpu_s
        ratio = eager / g.set_index("turn").cpu_s
        least = flops(batch, skip=name != "eager") / rates[dtype]
        found.append(dict(dtype=dtype, batch=batch, name=name, clips_per_cpu_s=batch / g.cpu_s.median(), ratio=ratio.median(), least=ratio.min(),
                          largest=ratio.max(), wall_clips_per_s=batch / g.wall_s.median(), limit_clips_per_s=batch / least, off=g.off.iloc[0]))
    return pd.DataFrame(found)


@torch.inference_mode()
def main(argv=None):
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parse.add_argument("--dtypes", nargs="+", default=["float32"] + ["bfloat16"] * torch.cpu._is_avx512_bf16_supported())
    parse.add_argument("--repeats", type=int, default=5)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    parse.add_argument("--keep", action="store_true", help="write the figures into docs/results/scale.json, of which bench_scale.py makes a page")
    args = parse.parse_args(argv)
    torch.set_num_threads(args.threads)
    rates = {d: best_rate(getattr(torch, d)) for d in args.dtypes}
    runs = measured(args.batches, args.repeats, args.dtypes, args.compile)
    rates = {d: max(r, best_rate(getattr(torch, d))) for d, r in rates.items()}  # before and after: neighbours come and go
    table = summary(runs, rates)
    print(f"{args.threads} thread(s); best matrix product: " + ", ".join(f"{d} {r / 1e9:.0f} GFLOP per CPU second" for d, r in rates.items()))
    print(table.round(4).to_string(index=False))
    typed = f"python benchmarks/bench_timesformer.py --batches {' '.join(map(str, args.batches))} --repeats {args.repeats}"
    if args.keep: keep("timesformer", typed, rates=rates, threads=args.threads, repeats=args.repeats, rows=table.to_dict("records"))


if __name__ == "__main__": main()
