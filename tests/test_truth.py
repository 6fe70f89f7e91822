"""Only the oracle reads the truth: deal labels, objects and skills anew, or remove them, and every other bit stays."""
import ast
import re
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from viewpoint_rosetta import methods
from viewpoint_rosetta.clips import HINTS, TRUTH, pool, validate
from viewpoint_rosetta.features import Bank

ORACLE = [name for name, m in methods.METHODS.items() if m.pseudo == "truth"]
BLIND = [name for name in methods.METHODS if name not in ORACLE]
KINDS = [kind for kind in methods.KINDS if kind != "truth"]
WORLDS = "permuted", "removed"
OTHER = "ours, f_phi's start and synthesis"
SEED = 3


# ---------------------------------------------------------------- a small world

def moments(kind, split, n, views, scenes):
    "n moments as rows, one for each view; a person lives in one room."
    for i in range(n):
        scene = f"{split}{i % scenes}"
        for view in views:
            yield dict(clip_id=f"{kind}{i}_{view}", video=f"{kind}{i}_{view}.mp4", start_s=0., end_s=1., view=view[:3],
                       camera=view, take=f"{kind}{i}", narration=f"C does {i}", participant=f"p_{scene}", scene=scene,
                       split=split, sync_id=f"{kind}{i}")


def small_world():
    "120 clips, all pools, four actions; and their features, in which the action can be seen and read."
    df = pd.DataFrame([*moments("pair", "train", 16, ("ego", "exo1"), 4), *moments("ego", "train", 24, ("ego",), 6),
                       *moments("exo", "train", 32, ("exo1",), 6), *moments("val", "val", 4, ("ego", "exo1"), 2),
                       *moments("test", "test", 12, ("ego", "exo1"), 3)])
    g, n = np.random.default_rng(0), len(df)
    moment = pd.factorize(df.sync_id)[0]
    label, thing, good = (g.integers(k, size=n)[moment] for k in (4, 5, 2))
    df = df.assign(label=[f"a{i}" for i in label], object=[f"o{i}" for i in thing],
                   skill=np.array(["bad", "good"])[good], success=good == 1,
                   phases=np.array(["reach,reach", "reach,act"])[good])
    truth = np.concatenate([np.eye(k)[x] for k, x in ((4, label), (5, thing), (2, good))], 1)  # (N, 11)
    tokens = g.standard_normal((n, 4, 2, 16)) + (truth @ g.standard_normal((11, 16)))[:, None, None]
    text = g.standard_normal((n, 384)) + truth @ g.standard_normal((11, 384))
    text[::11] = 0  # nothing was said
    text /= np.linalg.norm(text, axis=1, keepdims=True).clip(1e-9)
    return validate(df), Bank(df.clip_id.to_numpy(object), tokens.astype(np.float16), text.astype(np.float32))


def tiny_settings():
    "All terms and all parts, three steps of each."
    s = methods.LineSettings()
    train = replace(s.train, steps=3, batch=16, warmup=1, mixed_precision="no")
    encoder = replace(s.encoder, width=16, depth=1, heads=2, mlp=2, out=16, text_hidden=16, tube=2)
    rst = replace(s.rst, tokens=2, width=16, depth=1, heads=2, timesteps=50, batch=8, steps=4, eval_every=2,
                  inference_steps=2, samples=2)
    return replace(s, encoder=encoder, phi=train, train=train, rst=rst, vs_steps=2)


def dealt_anew(clips):
    "The table with every truth permuted among all clips."
    g, told = np.random.default_rng(1), [*TRUTH, *HINTS]
    out = clips.assign(**{name: g.permutation(clips[name].to_numpy()) for name in told})
    assert all((out[name] != clips[name]).mean() > .3 for name in told)
    return out


# ---------------------------------------------------------------- the line, and what is left of it

def weights(model) -> dict:
    "Every number of a trained part, by name."
    if model == "frozen": return {}
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


def result(bank, clips, model) -> dict:
    "What a method left: its weights, and its embeddings of the test clips."
    return weights(model) | dict(embeddings=methods.embed(model, bank, pool(clips, "test").clip_id))


def line(clips, bank, s, names) -> dict:
    "f_phi, the translator, pseudo-pairs of every kind and the named methods under this table: part -> name -> array."
    phi = methods.train_phi(bank, clips, s, SEED, None, False)
    rst = methods.train_rst(phi, bank, clips, s, SEED, False)
    z_ego, z_exo, pairs = methods.paired_features(phi, bank, clips)
    drawn = rst.translate(z_ego, generator=torch.Generator().manual_seed(0)).numpy()
    scale = {f"scale.{k}": v for k, v in weights(rst.scale).items()}
    out = {"f_phi": weights(phi) | dict(z_ego=z_ego, z_exo=z_exo) | columns(pairs[["ego", "exo"]]),
           "translator": weights(rst.denoiser) | scale | dict(drawn=drawn)}
    out |= {f"pairs by {k}": columns(methods.pseudo_pairs(k, phi, rst, bank, clips, s, SEED)) for k in KINDS}
    train = lambda name, s: result(bank, clips, methods.train_method(name, bank, clips, phi, rst, s, SEED, None, False))
    other = replace(s, init="phi", synthetic_of="phi")
    return out | {name: train(name, s) for name in names} | {OTHER: train("ours", other)}


def columns(table) -> dict:
    "A table as arrays of numbers or of characters."
    return {name: np.array(column.tolist()) for name, column in table.items()}


def difference(a: dict, b: dict) -> list:
    "The names whose arrays are not the same, bit by bit."
    assert not any(x.dtype == object for x in [*a.values(), *b.values()]), "the bits of objects are addresses"
    same = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    return [name for name in {**a, **b} if name not in a or name not in b or not same(a[name], b[name])]


@pytest.fixture(scope="module")
def world(): return (*small_world(), tiny_settings())


@pytest.fixture(scope="module")
def lines(world):
    "The whole line thrice: with the truth, with the truth dealt anew, without it."
    clips, bank, s = world
    without = clips.drop(columns=[*TRUTH, *HINTS])
    return dict(true=line(clips, bank, s, [*BLIND, *ORACLE]), removed=line(without, bank, s, BLIND),
                permuted=line(dealt_anew(clips), bank, s, [*BLIND, *ORACLE]))


# ---------------------------------------------------------------- what runs

@pytest.mark.parametrize("changed", WORLDS)
@pytest.mark.parametrize("part", ["f_phi", "translator", *(f"pairs by {kind}" for kind in KINDS), *BLIND, OTHER])
def test_the_truth_changes_no_bit(lines, part, changed):
    found = difference(lines["true"][part], lines[changed][part])
    assert not found, f"{part} depends on label, object or skill ({changed}): {', '.join(found)} differ"


def test_the_oracle_is_named_and_is_the_only_one():
    assert ORACLE == ["oracle pairs"] and len(BLIND) >= 9 and {"random", "language", "rst+language"} <= set(KINDS)


def test_the_same_comparison_sees_the_oracle_read_the_labels(lines, world):
    clips, bank, s = world
    found = difference(lines["true"]["oracle pairs"], lines["permuted"]["oracle pairs"])
    assert {"embeddings", "video.into.weight"} <= set(found)
    for table in (clips, dealt_anew(clips)):  # it follows whatever the labels say
        pairs, label = methods.true_pairs(table, bank), table.set_index("clip_id").label
        assert len(pairs) and label[pairs.ego].tolist() == label[pairs.exo].tolist()
    without = clips.drop(columns=list(TRUTH))
    with pytest.raises((KeyError, AttributeError)):
        methods.train_method("oracle pairs", bank, without, None, None, s, SEED, None, False)


def test_three_steps_are_enough_to_tell_any_two_rows_apart(lines, world):
    clips, bank, s = world
    trained = {name: arrays["embeddings"].tobytes() for name, arrays in lines["true"].items() if "embeddings" in arrays}
    twice = [name for name, n in Counter(trained.values()).items() if n > 1]
    assert len(trained) == len(methods.METHODS) + 1 and not twice, "other pairs or terms must lead to other weights"
    pairs = [lines["true"][f"pairs by {kind}"]["exo"].tobytes() for kind in KINDS]
    assert len(set(pairs)) == len(KINDS), "every kind of match must find other pairs"


@pytest.mark.parametrize("column", TRUTH)
def test_a_leak_of_any_column_would_be_seen(world, monkeypatch, column):
    clips, bank, s = world

    def leaky(df, name):
        rows = pool(df, name)
        return rows[rows[column] != clips[column].iloc[0]].reset_index(drop=True)

    monkeypatch.setattr(methods, "pool", leaky)
    first, second = (weights(methods.train_phi(bank, t, s, SEED, None, False)) for t in (clips, dealt_anew(clips)))
    assert "video.into.weight" in difference(first, second)
    with pytest.raises(KeyError, match=column):  # matching never has the columns, whoever calls it
        methods.pseudo_pairs("language", None, None, bank, clips, s, SEED)
    with pytest.raises(KeyError, match=column):
        methods.train_method("SUM-L", bank, clips, None, None, s, SEED, None, False)


# ---------------------------------------------------------------- what is written

def source(module): return open(find_spec(f"viewpoint_rosetta.{module}").origin, encoding="utf-8").read()


def words_of(node):
    "The column names that one syntax node could read."
    if isinstance(node, ast.Attribute): return {node.attr} & {*TRUTH, *HINTS, "TRUTH", "HINTS"}
    if isinstance(node, ast.Name): return {node.id} & {"TRUTH", "HINTS"}
    if isinstance(node, ast.alias): return {node.name} & {"TRUTH", "HINTS"}
    if isinstance(node, ast.Constant) and isinstance(node.value, str): return {node.value} & {*TRUTH, *HINTS}
    if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in ("query", "eval", "split"):
        texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        return set(re.findall(r"\w+", " ".join(texts))) & {*TRUTH, *HINTS}
    return set()


def readers(code) -> dict:
    "Outermost function or class (None: the module's own level) -> the truths it could read, as 'line: name'."
    found = {}
    for top in ast.parse(code).body:
        named = top.name if isinstance(top, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else None
        for node in ast.walk(top):
            for word in words_of(node): found.setdefault(named, []).append(f"{getattr(node, 'lineno', '?')}: {word}")
    return found


@pytest.mark.parametrize("module", ["video", "encoders", "features", "translator", "matching", "losses", "training"])
def test_no_line_of_it_names_a_truth(module):
    assert readers(source(module)) == {}, f"viewpoint_rosetta.{module} may not read label, object or skill"


def test_of_the_methods_only_true_pairs_names_one():
    assert set(readers(source("methods"))) == {"true_pairs"}


def test_pools_and_synchronized_pairs_are_made_without():
    found = readers(source("clips"))
    assert "hide_truth" in found
    assert not {"pool", "sync_pairs", "video_path", "check_splits", "assign_splits"} & set(found)


@pytest.mark.parametrize("leak", [
    "clips.label", "row.skill", "clips['object']", "clips[['view', 'label']]", "clips.loc[:, 'skill']",
    "clips.get('object')", "clips.groupby('label')", "getattr(row, 'skill')", "clips.query('label == 1')",
    "clips['label object'.split()]", "clips[list(TRUTH)]", "from viewpoint_rosetta.clips import TRUTH",
    "clips_module.TRUTH", "f'{row.label}'", "clips.success", "clips['phases']"])
def test_every_way_to_read_one_is_found(leak):
    assert list(readers(f"def f(clips, row):\n    {leak}")) == ["f"] and list(readers(leak)) == [None]


@pytest.mark.parametrize("fine", [
    "object.__setattr__(self, 'rows', 1)", "np.array(ids, object)", "'''Never reads a label.'''", "x = 1  # label",
    "hide_truth(clips)", "def objective(model): return model.object_count", "skilled = labels = 1", "names.split(',')"])
def test_what_only_looks_like_it_is_not(fine):
    assert readers(fine) == {}
