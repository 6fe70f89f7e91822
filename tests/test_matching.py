"""Matching against brute force, copies, memory maps, indexes and bad input."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from viewpoint_rosetta import knn, matching
from viewpoint_rosetta.knn import Take, build_index, choose_index, recall, top_k
from viewpoint_rosetta.matching import Joint, MatchSettings, csls_columns, effective_weight, joint, match, read_pairs, write_pairs


def unit(n, d=32, seed=0): return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def tables(n=50, m=80, seed=0):
    g = np.random.default_rng(seed)
    return [f"e{i}" for i in range(n)], g.standard_normal((n, 16)) + 1, g.standard_normal((n, 24)), \
           [f"x{i}" for i in range(m)], g.standard_normal((m, 16)) + 1, g.standard_normal((m, 24))


@pytest.mark.parametrize("w", [0., .25, .5, 1.])
def test_cosine_of_joined_vectors_is_the_weighted_mean(w):
    _, z, e, _, z2, e2 = tables()
    h = joint(7 * z, e, w) @ joint(z2, .1 * e2, w).T
    cos = lambda a, b: F.normalize(torch.tensor(a).float(), dim=1) @ F.normalize(torch.tensor(b).float(), dim=1).T
    assert torch.allclose(h, (1 - w) * cos(z, z2) + w * cos(e, e2), atol=1e-5)


def test_a_missing_narration_leaves_the_visual_cosine():
    _, z, e, _, z2, e2 = tables()
    e[3], e2[5] = 0, 0
    h, h2 = joint(z, e), joint(z2, e2)
    cos = F.cosine_similarity(torch.tensor(z[3]), torch.tensor(z2[5]), dim=0).float()
    assert torch.isclose(h[3] @ h2[5], cos, atol=1e-5) and torch.allclose(h.norm(dim=1), torch.ones(len(h)))
    assert (joint(z, 0 * e, 1.) == 0).all()  # text only and no text: a zero row, never NaN


@pytest.mark.parametrize("block", [1, 64, 100, 4096])
@pytest.mark.parametrize("k", [1, 5, 150])
def test_top_k_is_exact_for_any_block(k, block):
    q, keys = unit(70), unit(150, seed=1)
    full = (q.double() @ keys.double().T).sort(dim=1, descending=True)
    scores, rows = top_k(q, keys, k, block)
    assert torch.equal(rows, full.indices[:, :k]) and torch.allclose(scores.double(), full.values[:, :k], atol=1e-6)


@pytest.mark.parametrize("block", [64, 77, 200, 4096])
@pytest.mark.parametrize("k", [1, 4])
def test_of_copies_the_lower_row_comes_first(k, block):
    keys = unit(20, 640, seed=1).repeat(15, 1)  # each candidate 15 times
    _, rows = top_k(unit(33, 640), keys, k, block)
    best = rows[:, 0]
    assert (best < 20).all() and torch.equal(rows, best[:, None] + 20 * torch.arange(k))


def test_half_precision_memory_maps(tmp_path):
    ids, z, e, ids2, z2, e2 = tables(300, 500)
    paths = []
    for name, x in dict(z=z, e=e, z2=z2, e2=e2).items():
        np.save(tmp_path / f"{name}.npy", x.astype("f2"))
        paths.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    mz, me, mz2, me2 = paths
    expected = top_k(joint(z.astype("f2"), e.astype("f2")), joint(z2.astype("f2"), e2.astype("f2")), 3)
    found = top_k(Joint(mz, me), Joint(mz2, me2), 3, block=64)
    assert torch.equal(found[1], expected[1])
    assert match(ids, mz, me, ids2, mz2, me2).equals(match(ids, z.astype("f2"), e.astype("f2"), ids2, z2.astype("f2"), e2.astype("f2")))


def test_memory_is_bounded_by_the_block():
    "A table that hands out slices only and notes the largest one."
    class Slices:
        largest = 0
        def __init__(self, x): self.x = x
        def __len__(self): return len(self.x)
        def __getitem__(self, rows):
            out = self.x[rows]
            Slices.largest = max(Slices.largest, len(out))
            return out
    q, keys = unit(500), unit(900, seed=1)
    assert torch.equal(top_k(Slices(q), Slices(keys), 2, block=128)[1], top_k(q, keys, 2)[1]) and Slices.largest == 128


def test_k_beyond_the_pool():
    for k in (0, 11):
        with pytest.raises(ValueError, match=r"expected 1\.\.10"): top_k(unit(3), unit(10), k)


def clustered(n, seed): return F.normalize(unit(50, 64, 9)[torch.arange(n) % 50] + .08 * unit(n, 64, seed) * 8, dim=1)


def test_indexes_behind_the_same_call():
    q, keys = clustered(200, 1), clustered(5000, 2)
    exact = top_k(q, keys, 3)
    flat = top_k(q, build_index(keys, "flat"), 3)
    assert torch.allclose(flat[0], exact[0], atol=1e-5) and (flat[1] == exact[1]).float().mean() > .99
    def recall(**kw):
        return (top_k(q, build_index(keys, "ivf", **kw), 1)[1] == exact[1][:, :1]).float().mean()
    few, usual, every = recall(cells=100, probes=1), recall(), recall(cells=100, probes=100)
    assert few < usual and usual > .9 and every > .99
    assert torch.equal(top_k(q, build_index(keys, "ivf"), 5)[1], top_k(q, build_index(keys, "ivf"), 5)[1])  # same keys, same index
    with pytest.raises(ValueError, match="flat, ivf, ivfpq"): build_index(keys, "hnsw")
    with pytest.raises(ValueError, match="raise `probes`"): top_k(q, build_index(keys, "ivf", cells=100, probes=1), 500)


@pytest.mark.parametrize("first, second", [("faiss", "torch")])  # torch first is what every other test does
def test_faiss_and_torch_live_in_one_process(first, second):
    code = (f"import {first}, {second}; from viewpoint_rosetta.matching import build_index, top_k\n"
            "x = torch.randn(2000, 32); torch.randn(300, 300) @ torch.randn(300, 300)\n"
            "print(bool((top_k(x, build_index(x, 'ivf', probes=9999))[1] == top_k(x, x)[1]).float().mean() > .9))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


def test_match_by_hand():
    z, k = torch.tensor([[1., 0.], [.8, .6], [0., 1.]]), torch.tensor([[1., 0.], [0., 1.], [-1., 0.]])
    e, ek = torch.tensor([[1., 0.], [0., 0.], [0., 1.]]), torch.tensor([[.6, .8], [1., 0.], [0., 1.]])
    p = match(list("abc"), z, e, list("xyz"), k, ek, MatchSettings(text_weight=0., k=2))
    assert list(p) == ["ego", "exo", "rank", "score", "visual", "text", "mutual", "margin"]
    assert p.ego.tolist() == list("aabbcc") and p.exo.tolist() == ["x", "y", "x", "y", "y", "x"] and p["rank"].tolist() == [1, 2] * 3
    assert p.visual.tolist() == pytest.approx([1, 0, .8, .6, 1, 0]) and p.score.tolist() == pytest.approx(p.visual.tolist())
    assert p.text.tolist() == pytest.approx([.6, 1, 0, 0, 0, .8])  # b has no narration: 0, never NaN
    assert p.mutual.tolist() == [True, False, False, False, True, False]
    assert p.margin.tolist() == pytest.approx([1, 1, .2, 1.4, 1, 0])
    assert match(list("abc"), z, e, list("xyz"), k, ek, MatchSettings(k=3)).margin.isna().tolist() == [False, False, True] * 3


def test_text_weight_decides_who_wins():
    z, e = torch.tensor([[1., 0.]]), torch.tensor([[1., 0.]])
    z2, e2 = torch.tensor([[.9, .436], [0., 1.]]), torch.tensor([[0., 1.], [1., 0.]])  # looks alike; says alike
    chosen = {w: match(["a"], z, e, ["looks", "says"], z2, e2, MatchSettings(text_weight=w)).exo[0] for w in (0., .4, .6, 1.)}
    assert chosen == {0.: "looks", .4: "looks", .6: "says", 1.: "says"}


def test_zscore_ranks_like_standardised_similarities():
    ids, z, e, ids2, z2, e2 = tables(200, 300)
    z, z2 = z + 3, z2 + 3  # visual cosines crowd near 1
    w = effective_weight(z, e, z2, e2, .5)
    cos = lambda a, b: (F.normalize(torch.tensor(a), dim=1) @ F.normalize(torch.tensor(b), dim=1).T)
    v, t = cos(z, z2), cos(e, e2)
    assert w == pytest.approx(float((1 / t.std()) / (1 / t.std() + 1 / v.std())), abs=.02) and w < .2
    standard = .5 * (v - v.mean()) / v.std() + .5 * (t - t.mean()) / t.std()
    pairs = match(ids, z, e, ids2, z2, e2, MatchSettings(calibrate="zscore"))
    agree = (pairs.exo.to_numpy() == np.array(ids2)[standard.argmax(1)]).mean()
    plain = (match(ids, z, e, ids2, z2, e2).exo.to_numpy() == np.array(ids2)[standard.argmax(1)]).mean()
    assert agree > .9 > plain


def test_csls_is_its_formula_and_relieves_hubs():
    ids, _, e, ids2, _, e2 = tables(200, 300)
    z, z2 = (np.random.default_rng(n).standard_normal((n, 128)) + .6 for n in (200, 300))
    z2[7] = z.mean(0)  # a candidate near to everything
    s = MatchSettings(text_weight=0., calibrate="csls", csls_k=20)
    h, h2 = joint(z, e, 0.), joint(z2, e2, 0.)
    sim = h @ h2.T
    by_hand = 2 * sim - sim.topk(20, dim=1).values.mean(1, keepdim=True) - sim.topk(20, dim=0).values.mean(0)
    pairs, plain = match(ids, z, e, ids2, z2, e2, s), match(ids, z, e, ids2, z2, e2, MatchSettings(text_weight=0.))
    assert (pairs.exo == np.array(ids2)[by_hand.argmax(1)]).mean() > .99 and np.allclose(pairs.score, by_hand.max(1).values, atol=1e-5)
    back = by_hand.argmax(0)[by_hand.argmax(1)] == torch.arange(200)
    assert (pairs.mutual.to_numpy() == back.numpy()).mean() > .99
    assert (plain.exo == "x7").sum() > 50 > (pairs.exo == "x7").sum()


def test_index_setting_gives_the_same_pairs():
    args = tables(100, 400)
    assert match(*args, MatchSettings(index="flat")).exo.equals(match(*args).exo)


def test_bad_input_names_the_clip():
    ids, z, e, ids2, z2, e2 = tables()
    broken = e2.copy()
    broken[11, 2] = np.inf
    with pytest.raises(ValueError, match="exo clip 'x11': its sentence embedding is not finite"): match(ids, z, e, ids2, z2, broken)
    with pytest.raises(ValueError, match="49 ids, 50 features"): match(ids[1:], z, e, ids2, z2, e2)
    with pytest.raises(ValueError, match="no exo clips"): match(ids, z, e, [], z2[:0], e2[:0])
    with pytest.raises(ValueError, match="ego features have 16 columns, exo features 15"): match(ids, z, e, ids2, z2[:, 1:], e2)
    for bad in (dict(text_weight=1.5), dict(calibrate="softmax"), dict(k=0)):
        with pytest.raises(ValueError): MatchSettings(**bad)


def test_pairs_go_to_disk_whole(tmp_path):
    pairs = match(*tables())
    write_pairs(pairs, tmp_path / "run" / "pairs.parquet")
    pd.testing.assert_frame_equal(read_pairs(tmp_path / "run" / "pairs.parquet"), pairs)
    with pytest.raises(Exception): write_pairs(pairs.assign(bad=[object()] * len(pairs)), tmp_path / "run" / "pairs.parquet")
    pd.testing.assert_frame_equal(read_pairs(tmp_path / "run" / "pairs.parquet"), pairs)  # the old one is untouched
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["pairs.parquet"]


# ---- indexes

def test_codes_are_reranked_by_the_real_rows():
    q, keys = clustered(200, 1), clustered(5000, 2)
    index = build_index(keys.half(), "ivfpq")
    scores, rows = top_k(q, index, 3)
    assert torch.allclose(scores, (q[:, None] * keys.half().float()[rows]).sum(2), atol=1e-5), "a rough score got out"
    assert (scores.diff(dim=1) <= 0).all() and recall(index, q, keys, 3) > .8
    rough = index.index.search(q.numpy(), 1)[1][:, 0]
    assert (torch.from_numpy(rough) == top_k(q, keys)[1][:, 0]).float().mean() < recall(index, q, keys) - .1
    assert index.index.code_size == 16 < 4 * 64 and torch.equal(top_k(q, build_index(keys.half(), "ivfpq"), 3)[1], rows)
    with pytest.raises(ValueError, match="200 keys: codes need 256"): build_index(keys[:200], "ivfpq")


def test_of_copies_the_lower_row_comes_first_with_codes_too():
    keys = clustered(600, 2).repeat(2, 1)
    assert (top_k(clustered(50, 1), build_index(keys, "ivfpq", probes=99), 1)[1] < 600).all()


def test_recall_counts_what_is_as_near():
    keys = clustered(600, 2).repeat(2, 1)
    class Other:  # answers with the other copy
        ntotal = 1200
        def search(self, x, k): s, r = top_k(x, keys, k); return s.numpy(), ((r + 600) % 1200).numpy()
    class Wrong(Other):
        def search(self, x, k): r = np.zeros((len(x), k), int); return (x * keys[0].numpy()).sum(1, keepdims=True).repeat(k, 1), r
    q = clustered(100, 1)
    assert recall(Other(), q, keys) == 1 and recall(Wrong(), q, keys) < .2


@pytest.mark.parametrize("calibrate", ["none", "zscore", "csls"])
@pytest.mark.parametrize("index", ["flat", "ivf", "ivfpq"])
def test_match_with_every_index(index, calibrate, monkeypatch):
    monkeypatch.setattr(matching, "SMALL", 256)
    g = np.random.default_rng(0); act = g.standard_normal((40, 16)), g.standard_normal((40, 24))
    def side(n): a = g.integers(40, size=n); return [x[a] + .5 * g.standard_normal((n, x.shape[1])) for x in act]
    (z, e), (z2, e2) = side(600), side(1500)
    args = [f"e{i}" for i in range(600)], z, e, [f"x{i}" for i in range(1500)], z2, e2
    s = dict(calibrate=calibrate, k=2)
    found, exact = match(*args, MatchSettings(index=index, **s)), match(*args, MatchSettings(index="exact", **s))
    how = found.attrs["search"]
    assert how["index"] == index and how["recall"] > .9 and how["sample"] == 600
    both = found.exo == exact.exo
    assert both.mean() > .85 and np.allclose(found.score[both], exact.score[both], atol=.02 if calibrate == "csls" else 1e-5)
    assert (found.mutual == exact.mutual).mean() > .93 and exact.mutual.mean() > .1
    assert np.allclose(found.visual[both], exact.visual[both], atol=1e-6)


def test_small_pools_are_searched_exactly_and_say_so(tmp_path):
    args = tables(100, 400)
    auto, exact = match(*args), match(*args, MatchSettings(index="exact"))
    pd.testing.assert_frame_equal(auto, exact, check_exact=True)
    assert auto.attrs["search"]["index"] == "exact" and "100 x 400 rows of 40 are 3.2e+06 operations" in auto.attrs["search"]["reason"]
    write_pairs(auto, tmp_path / "pairs.parquet")
    assert read_pairs(tmp_path / "pairs.parquet").attrs == auto.attrs
    with pytest.raises(ValueError, match="index is 'hnsw'"): MatchSettings(index="hnsw")


def test_the_choice_is_the_arithmetic(monkeypatch):
    monkeypatch.setattr(knn, "product_rate", lambda *a: 1e11)
    exact, ivf, ivfpq = (choose_index(*sizes, memory=32e9) for sizes in ((10**5, 10**5, 640), (10**6, 10**6, 640), (10**6, 10**7, 640)))
    assert [c.kind for c in (exact, ivf, ivfpq)] == ["exact", "ivf", "ivfpq"]
    assert "1.3e+13 operations, about 2 min at the 100 GFLOP/s" in exact.reason and "about 4 h" in ivf.reason and "25.6 GB, more than a quarter of 32 GB" in ivfpq.reason
    assert choose_index(10**6, 10**6, 640, memory=4e9).kind == "ivfpq" and choose_index(10**6, 10**6, 640, "cuda").kind == "exact"


def test_a_gpu_is_used_where_faiss_has_one(monkeypatch):
    "The CPU package of FAISS knows no GPU; a stand-in shows that one would be asked."
    import faiss
    asked = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda r, n, index: asked.append((r, n, type(index).__name__)) or index, raising=False)
    keys = clustered(2000, 2)
    for kind in knn.KINDS: build_index(keys, kind)
    assert asked == [("resources", 0, name) for name in ("IndexFlatIP", "IndexIVFFlat", "IndexIVFPQ")]


# ---- streams

STREAM = """
import sys, threading, time
from pathlib import Path
import numpy as np, torch
from viewpoint_rosetta.matching import MatchSettings, match
from viewpoint_rosetta.translator import RSTSettings, new_translator
folder, peak, N = Path(sys.argv[1]), [0], 120_000
def anonymous(): return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024
def watch():
    while True: peak[0] = max(peak[0], anonymous()); time.sleep(.002)
def pool(name, d):
    x = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (N, d))
    for i in range(0, N, 1000): x[i:i + 1000] = np.random.default_rng(i).standard_normal((1000, d))
    return x
z_ego, z_exo, e, zhat = pool("ego", 256), pool("exo", 256), pool("said", 64), pool("zhat", 256)
pairs = [torch.from_numpy(np.array(x[:100], np.float32)) for x in (z_ego, z_exo)]
rst, _ = new_translator(*pairs, RSTSettings(anchor=False, width=16, depth=1))
s, few = MatchSettings(index="exact", block=512), slice(0, 500)
def work(n):
    rst.translate(z_ego[:n], 1, num_inference_steps=1, out=zhat[:n], batch_size=512)
    match(np.arange(500), zhat[few], e[few], np.arange(n), z_exo[:n], e[:n], s)
work(1000)  # what libraries take once
threading.Thread(target=watch, daemon=True).start()
for n in (N // 4, N):
    before = peak[0] = anonymous()
    work(n)
    print(peak[0] - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_pool(tmp_path):
    "Translating and matching 30,000 and 120,000 memory-mapped rows; what the allocator keeps (10 to 25 MB) is not what a copy would be."
    done = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split())
    assert many < 50, f"MB beyond the start: {few}, {many}; a float32 copy of one pool would be 123"


def small_rst(d=8):
    from viewpoint_rosetta.translator import RSTSettings, new_translator
    torch.manual_seed(0)
    rst, _ = new_translator(torch.randn(50, d), torch.randn(50, d), RSTSettings(anchor=False, width=16, depth=1))
    torch.nn.init.normal_(rst.denoiser.out.weight, std=.2)
    return rst


def test_translation_in_blocks_is_the_translation(tmp_path):
    rst, z = small_rst(), np.random.default_rng(0).standard_normal((100, 8)).astype("f2")
    g = lambda: torch.Generator().manual_seed(5)
    whole = rst(torch.from_numpy(z).float(), num_samples=4, generator=g()).mean(1)
    on_disk, out = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float16, z.shape), np.lib.format.open_memmap(tmp_path / "o.npy", "w+", np.float32, z.shape)
    on_disk[:] = z
    assert rst.translate(on_disk, 4, out=out, batch_size=64, generator=g()) is out
    assert torch.allclose(torch.from_numpy(np.array(out)), whole, atol=1e-6) and torch.allclose(rst.translate(z, 4, generator=g()), whole, atol=1e-6)
    on_disk[70, 3] = np.nan
    with pytest.raises(ValueError, match="z_ego: row 70 holds NaN"): rst.translate(on_disk, 4, batch_size=64)


def test_scratch_beyond_memory_holds_the_same(monkeypatch, tmp_path):
    from viewpoint_rosetta import methods
    in_memory, on_disk = methods.scratch(10, 4), methods.scratch(10, 4, many=5)
    assert isinstance(on_disk, np.memmap) and not isinstance(in_memory, np.memmap)
    on_disk[:] = np.arange(40).reshape(10, 4)
    assert on_disk.dtype == in_memory.dtype == np.float32 and on_disk.sum() == 780 and not list(tmp_path.iterdir())


def test_take_is_the_rows():
    x = np.arange(20).reshape(10, 2)
    some = Take(x, np.array([7, 1, 4]))
    assert some.shape == (3, 2) and (some[1:] == x[[1, 4]]).all() and (some[np.array([0, 0])] == x[[7, 7]]).all()


def test_an_index_of_a_small_pool_is_not_built_and_that_is_told():
    how = match(*tables(100, 400), MatchSettings(index="ivf")).attrs["search"]
    assert how == dict(index="exact", reason="400 exo clips need no index, though ivf was asked for")
