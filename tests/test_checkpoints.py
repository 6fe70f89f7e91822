"""Foreign checkpoints: read right, refused right, nothing executed; loaders against the peers' recorded numbers."""
import argparse
import collections
import functools
import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cases import Case
from viewpoint_rosetta.checkpoints import (KeyReport, Record, Refused, Stored, Unpickler, flatten, load_weights, read_checkpoint, weights_of)
from viewpoint_rosetta.encoders import DualEncoder, EncoderSettings
from viewpoint_rosetta.timesformer import DualSettings, TimeSformerSettings, VideoTextEncoder, timesformer_base_clip
from viewpoint_rosetta.weights import (PREPROCESSING, Preprocessing, Pretrained, apart, builtin_clip, fingerprint_of, from_pretrained,
                                       identify, load_timm, outputs, save_pretrained, verify_text)

SIZES = TimeSformerSettings(32, 16, 64, 1, 1, 4)
W = {"a.weight": torch.arange(6.).view(2, 3), "a.bias": torch.ones(2)}


def saved(path, what):
    torch.save(what, path)
    return path


# ---- reading

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
def test_every_dtype(tmp_path, dtype):
    t = torch.tensor([[0, 1], [1, 0], [3, 4]]).to(dtype)
    got = read_checkpoint(saved(tmp_path / "x.pt", {"t": t, "empty": t[:0], "scalar": t[0, 1], "param": nn.Parameter(t.float())})).tensors
    assert torch.equal(got["t"], t) and got["t"].dtype == dtype and got["empty"].shape == (0, 2) and got["scalar"] == t[0, 1]
    assert torch.equal(got["param"], t.float())


def test_views_of_one_storage_stay_views(tmp_path):
    base = torch.arange(12.).view(3, 4)
    got = read_checkpoint(saved(tmp_path / "x.pt", {"base": base, "t": base.T, "row": base[1], "skip": base[:, ::2]})).tensors
    assert all(torch.equal(got[k], v) for k, v in {"base": base, "t": base.T, "row": base[1], "skip": base[:, ::2]}.items())
    got["base"].zero_()
    assert (got["row"] == 0).all()


def test_same_as_torch_load_where_torch_load_is_safe(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = saved(tmp_path / "x.pt", model.state_dict())  # an OrderedDict with _metadata
    ours, theirs = read_checkpoint(path), torch.load(path, weights_only=True)
    assert list(ours.tensors) == list(theirs) and all(torch.equal(ours.tensors[k], v) for k, v in theirs.items())


def foreign_class(module, name):
    made = type(name, (), {"__module__": module})
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, made)
    return made


@pytest.fixture
def config_parser():
    "EgoVLP's, as far as a pickle knows it; gone again before the file is read."
    yield foreign_class("parse_config", "ConfigParser")
    sys.modules.pop("parse_config", None)


def test_what_training_scripts_put_beside_the_weights(tmp_path, config_parser):
    config = config_parser()
    config.__dict__ |= {"_config": collections.OrderedDict(arch={"args": {"num_frames": 4}}), "_save_dir": pathlib.PosixPath("/ckpt/run"), "resume": None}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    path = saved(tmp_path / "x.pt", {"arch": "FrozenInTime", "epoch": 1, "state_dict": {f"module.{k}": v for k, v in W.items()}, "optimizer": optimizer.state_dict(),
                                     "config": config, "args": argparse.Namespace(lr=3e-5, betas=(.9, .98), resume=""), "best_acc1": np.float64(29.5),
                                     "monitor_best": np.float32(1.5), "seen": {1, 2}, "shape": torch.Size([1, 2]), "device": torch.device("cuda:0"), "dtype": torch.float16})
    del sys.modules["parse_config"]
    got = read_checkpoint(path)
    assert set(got.tensors) == set(W) and torch.equal(got.tensors["a.weight"], W["a.weight"])
    r = got.rest
    assert r["config"] == Record("parse_config.ConfigParser", {"_config": {"arch": {"args": {"num_frames": 4}}}, "_save_dir": "/ckpt/run", "resume": None})
    assert r["args"].state == {"lr": 3e-5, "betas": (.9, .98), "resume": ""} and r["best_acc1"] == 29.5 and r["monitor_best"] == 1.5
    assert r["seen"] == {1, 2} and r["shape"] == (1, 2) and r["device"] == "cuda:0" and r["dtype"] == "torch.float16"
    assert isinstance(r["optimizer"]["state"][0]["exp_avg"], Stored), "tensors beside the weights stay in the file"
    assert "parse_config" not in sys.modules


def test_further_classes_by_name(tmp_path):
    path = saved(tmp_path / "x.pt", {"state_dict": W, "cfg": foreign_class("mycfg", "Config")()})
    del sys.modules["mycfg"]
    with pytest.raises(Refused, match=r"mycfg\.Config.*`also`"): read_checkpoint(path)
    assert read_checkpoint(path, also=("mycfg.Config",)).rest["cfg"].kind == "mycfg.Config"


def test_torchscript_is_read_and_its_code_is_not(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.scale, self.names, self.size = nn.Linear(3, 2), nn.Parameter(torch.ones(1)), ["a", "b"], 7
            self.register_buffer("attn_mask", torch.zeros(2, 2))

        def forward(self, x): return self.lin(x) * self.scale + self.size + len(self.names)

    model = Net().half()
    torch.jit.script(model).save(tmp_path / "x.pt")
    got = read_checkpoint(tmp_path / "x.pt")
    assert got.format == "torchscript" and set(got.tensors) == set(model.state_dict())
    assert all(torch.equal(got.tensors[k], v) and v.dtype == torch.float16 for k, v in model.state_dict().items())
    with pytest.raises(Refused, match="__torch__"):  # such names only in such files
        Unpickler().run(b"\x80\x02c__torch__.x\nNet\n.")


def test_safetensors(tmp_path):
    save_file(W, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors").tensors["a.weight"], W["a.weight"])
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged"): read_checkpoint(tmp_path / "x.safetensors")


def test_which():
    named, rest = weights_of({"ema": {"x": W["a.bias"]}, "model": W}, "ema")
    assert set(named) == {"x"} and "model" in rest
    with pytest.raises(ValueError, match="no weights under 'no'.*ema"): weights_of({"ema": {}}, "no")
    with pytest.raises(ValueError, match="expected a dict"): weights_of([1], None)
    assert set(flatten({"a": {"b": W["a.bias"]}, "n": 3})) == {"a.b"}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [[1, -2, 2 ** 100, 0, 255, 256, 65536, -2 ** 31], [1.5, float("inf"), None, True, False], {"é": [b"raw", "x" * 300]}, ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
                                   {"a": {"b": [{}]}}, list(map(str, range(700)))])
def test_plain_data_as_pickle_itself_reads_it(value, protocol):
    assert Unpickler().run(pickle.dumps(value, protocol)) == value


# ---- hostile files: nothing runs

class Reduce:
    def __init__(self, *made): self.made = made
    def __reduce__(self): return self.made


MARK = "VR_PWNED"
HOSTILE = {
    "os.system": (Reduce(os.system, (f"export {MARK}=1; touch pwned",)), r"(posix|nt|os)\.system"),
    "eval": (Reduce(eval, (f"__import__('os').environ.update({MARK}='1')",)), r"builtins\.eval|__builtin__\.eval"),
    "exec": (Reduce(exec, (f"import os; os.environ['{MARK}'] = '1'",)), r"exec"),
    "open": (Reduce(open, ("pwned", "w")), r"\bopen"),
    "getattr": (Reduce(getattr, ("x", "upper")), r"getattr"),
    "partial": (functools.partial(os.system, "touch pwned"), r"functools\.partial"),
    "nested": ([{"a": [(1, {"deep": Reduce(os.putenv, (MARK, "1"))})]}], r"putenv"),
    "module loader": (Reduce(__import__, ("antigravity",)), r"__import__"),
    "torch.load": (Reduce(torch.load, ("x",)), r"torch.*load"),
    "torch.hub": (Reduce(torch.hub.load, ("a", "b")), r"torch\.hub"),
    "numpy object array": (np.array([Reduce(os.system, ("touch pwned",))], dtype=object), r"numpy.*_reconstruct|posix"),
    "numpy array": (np.zeros(3), r"numpy.*_reconstruct|numpy"),
    "a class of ours": (collections.Counter("a"), r"collections\.Counter"),
    "a tensor subclass": (Reduce(torch._tensor._rebuild_from_type_v2, (os.system, int, ("touch pwned",), {})), r"_rebuild_from_type_v2"),
}


@pytest.fixture
def watched(tmp_path, monkeypatch):
    "An empty folder to stand in; afterwards it must still be empty, and no variable set."
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv(MARK, raising=False)
    yield tmp_path
    assert not list((tmp_path / "here").iterdir()) and MARK not in os.environ


def test_the_trap_is_real(tmp_path, monkeypatch):
    "Not vacuous: a trusting reader does run the first of them."
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(HOSTILE["os.system"][0]))
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("where", ["value", "beside the weights"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values(watched, name, where):
    value, told = HOSTILE[name]
    path = saved(watched / "x.pt", value if where == "value" else {"state_dict": W, "extra": value})
    with pytest.raises(Refused, match=told) as caught: read_checkpoint(path)
    assert str(path) in str(caught.value) and "Nothing was executed" in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["os.system", "eval", "nested", "partial"])
def test_hostile_in_every_protocol(watched, name, protocol):
    with pytest.raises(Refused): Unpickler().run(pickle.dumps(HOSTILE[name][0], protocol))


ASSEMBLED = {  # what no honest pickler writes
    "INST": b"(S'touch pwned'\nios\nsystem\n.", "OBJ": b"(cos\nsystem\nS'touch pwned'\no.", "stack global with dots": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93.",
    "NEWOBJ of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "NEWOBJ_EX": b"\x80\x04cargparse\nNamespace\n)}\x92.",
    "call of a string": b"\x80\x02X\x09\x00\x00\x00os.system)R.", "call of a record class": b"\x80\x02cargparse\nNamespace\n)R.",
    "call of a record": b"\x80\x02cargparse\nNamespace\n)\x81)R.", "call of a storage": b"\x80\x02ctorch\nFloatStorage\n)R.", "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pos.system\n.", "state for a list": b"\x80\x02]}b.", "namespace look-alike": b"\x80\x02cargparse\nNamespace.__init__\n.",
    "parse_config.os": b"\x80\x02cparse_config\nos.system\n.", "dotted dtype": b"\x80\x02ctorch\nfloat32.__class__\n.", "codecs": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R.",
    "numpy dtype of objects": b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "newline in a name": b"\x80\x04\x8c\x08argparse\x8c\x0aNamespace\n\x93."}


@pytest.mark.parametrize("name", ASSEMBLED)
def test_assembled_by_hand(watched, name):
    with pytest.raises(Refused): Unpickler().run(ASSEMBLED[name])


@pytest.mark.parametrize("program", [b"", b".", b"\x80\x02", b"\x80\x02]", b"0.", b"a.", b"R.", b"\x81.", b"b.", b"t.", b"\x80\x02h\x05.", b"\x80\x02}K\x01s.", b"\x80\x02}]K\x01s.", b"\x80\x02ctorch\nSize\nK\x01\x85R.",
                                     b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", b"\x80\x02)Q.", b"\x80\x02K\x01Q.", b"\x80\x02X\xff\xff\xff\x7fabc.", b"\xff\xff", b"\x80\x02}(K\x01u."])
def test_broken_pickles(program):
    with pytest.raises(ValueError): Unpickler().run(program)


@pytest.mark.parametrize("bad", [(-1, (2,), (1,)), (0, (-2,), (1,)), (0, (2,), (-1,)), (5, (2,), (1,)), (0, (7,), (1,)), (0, (2, 2), (6, 1)), (0, (2,), ()), (0, (True,), (1,)), (0, (2.,), (1,)), (0, (2 ** 40, 2 ** 40), (0, 6))])
def test_tensors_that_reach_beyond_their_storage(bad):
    offset, shape, stride = bad
    with pytest.raises(ValueError): Stored(torch.float32, "0", 6, offset, shape, stride)


def rezipped(src, dst, change, compress=zipfile.ZIP_STORED):
    "The archive with its entries run through `change(name, bytes) -> (name, bytes) or None`."
    with zipfile.ZipFile(src) as a, zipfile.ZipFile(dst, "w", compress) as b:
        for info in a.infolist():
            if (new := change(info.filename, a.read(info))) is not None: b.writestr(*new)
    return dst


def test_paths_inside_lead_nowhere(watched):
    secret = watched / "secret"
    secret.write_bytes(b"\0" * 24)
    src = saved(watched / "x.pt", {"w": torch.arange(6.)})
    for key in (b"../../secret", str(secret).encode()):
        def change(name, data):
            if not name.endswith("data.pkl"): return name, data
            return name, data.replace(b"X\x01\x00\x00\x000", b"X" + len(key).to_bytes(4, "little") + key)
        with pytest.raises(ValueError, match="no entry"): read_checkpoint(rezipped(src, watched / "bad.pt", change))
    got = read_checkpoint(rezipped(src, watched / "ok.pt", lambda n, d: (n, d)))
    assert torch.equal(got.tensors["w"], torch.arange(6.))

    def climbing(name, data): return ("../" + name if "/data/" in name else name), data
    with pytest.raises(ValueError, match="no entry"): read_checkpoint(rezipped(src, watched / "bad.pt", climbing))


def test_archives_that_are_not_torch_saves(tmp_path):
    src = saved(tmp_path / "x.pt", {"w": torch.arange(1000.)})
    cases = {"compressed": (lambda n, d: (n, d), zipfile.ZIP_DEFLATED), "expected 1": (lambda n, d: None if n.endswith("data.pkl") else (n, d), zipfile.ZIP_STORED),
             "expected 1000": (lambda n, d: (n, d[:400] if n.endswith("/data/0") else d), zipfile.ZIP_STORED),
             "no entry": (lambda n, d: None if n.endswith("/data/0") else (n, d), zipfile.ZIP_STORED),
             "big-endian": (lambda n, d: (n, b"big" if n.endswith("byteorder") else d), zipfile.ZIP_STORED)}
    for told, (change, compress) in cases.items():
        with pytest.raises(ValueError, match=told): read_checkpoint(rezipped(src, tmp_path / "bad.pt", change, compress))
    flipped = bytearray(src.read_bytes())
    at = flipped.find(torch.arange(1000.).numpy().tobytes())
    flipped[at + 100] ^= 1
    (tmp_path / "bad.pt").write_bytes(flipped)
    with pytest.raises(ValueError, match="CRC"): read_checkpoint(tmp_path / "bad.pt")


def test_what_lies_there_instead_of_a_checkpoint(tmp_path):
    whole = saved(tmp_path / "x.pt", {"w": torch.arange(1000.)}).read_bytes()
    old = io.BytesIO()
    torch.save(W, old, _use_new_zipfile_serialization=False)
    for content, told in [(b"", "empty"), (b"<html>no</html>", "web page"), (b"version https://git-lfs.github.com/spec/v1\noid", "LFS"), (whole[:1500], "cut short"), (whole[:-30], "cut short"),
                          (old.getvalue(), "before 1.6"), (b"rubbish", "neither a zip"), (pickle.dumps(W["a.bias"].tolist()), "neither a zip")]:
        (tmp_path / "y.pt").write_bytes(content)
        with pytest.raises(ValueError, match=told): read_checkpoint(tmp_path / "y.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint"): read_checkpoint(tmp_path / "z.pt")
    with pytest.raises(FileNotFoundError, match="folder"): read_checkpoint(tmp_path)


# ---- the report

def test_report_accounts_for_every_name():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.LayerNorm(2))
    own = model.state_dict()
    file = {"0.weight": own["0.weight"], "0.bias": torch.ones(3), "1.weight": torch.full((2, 2), torch.inf), "2.weight": torch.ones(4), "x": torch.ones(1), "head.w": torch.ones(1)}
    kw = dict(resize={r"2\.weight": lambda t, shape: t[:shape[0]]}, fresh=r"1\.bias", ignore=r"head\..*")
    report = load_weights(model, file, **kw, strict=False)
    assert report == KeyReport(("0.weight",), (("2.weight", (4,), (2,)),), ("1.bias",), ("head.w",), ("2.bias",), ("x",), (("0.bias", (3,), (2,)),), ("1.weight",))
    everything = {n for v in vars(report).values() for n in (x if isinstance(x, str) else x[0] for x in v)}
    assert everything == own.keys() | file.keys()
    for told in ("missing 1", "unexpected 1", "misshapen 1", "broken 1"):
        with pytest.raises(ValueError, match=told): load_weights(model, file, **kw)


def test_nothing_is_loaded_when_it_raises():
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(ValueError): load_weights(model, {"weight": torch.ones(2, 3)})
    assert torch.equal(model.weight, before)


# ---- loaders against the peers' numbers, from files as the peers write them

@pytest.mark.parametrize("name", ["lavila_clip_a", "lavila_clip_b_smallnorm"])
@torch.no_grad()
def test_lavila_file_to_recorded_features(name, tmp_path):
    case = Case(name)
    path = saved(tmp_path / "x.pth", {"epoch": 4, "state_dict": {f"module.{k}": v for k, v in case.w.items()}, "args": argparse.Namespace(model="CLIP_OPENAI_TIMESFORMER_BASE")})
    loaded = from_pretrained(path, heads=4)
    assert loaded.kind == "lavila" and loaded.report.ok and len(loaded.report.matched) == len(case.w) and loaded.notes["model"] == "CLIP_OPENAI_TIMESFORMER_BASE"
    case.check("image_embed", loaded.model.encode_video(case.x["video"]))
    case.check("text_embed", loaded.model.encode_text(case.x["text"]))
    assert loaded.preprocessing == Preprocessing(size=32, frames=case.config["vision"]["num_frames"]) and loaded.preprocessing.mean[0] == 108.3272985
    wrong = from_pretrained(path, heads=2)  # the one thing no shape tells
    assert case.off("image_embed", wrong.model.encode_video(case.x["video"])) > 1e-3


@torch.no_grad()
def test_egovlp_file_to_recorded_features(tmp_path, config_parser):
    case = Case("egovlp_frozen_a")
    path = saved(tmp_path / "x.pth", {"arch": "FrozenInTime", "state_dict": {f"module.{k}": v for k, v in case.w.items()} | {"module.text_model.embeddings.position_ids": torch.arange(32)[None]},
                                      "config": config_parser(), "monitor_best": 1.})
    loaded = from_pretrained(path, heads=4)
    assert loaded.kind == "egovlp" and loaded.report.ignored == ("text_model.embeddings.position_ids",)
    case.check("video_embed", loaded.model.encode_video(case.x["video"], unit=False))
    case.check("text_embed", loaded.model.encode_text(case.x["input_ids"], case.x["attention_mask"], unit=False))
    assert loaded.preprocessing.layout == "BTCHW" and loaded.preprocessing.mean == PREPROCESSING["egovlp"]["mean"]
    longer = from_pretrained(path, heads=4, frames=6)
    assert (longer.model.video_model.temporal_embed[0, 4:] == 0).all() and longer.preprocessing.frames == 6


def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    model = VideoTextEncoder(DualSettings(SIZES, 32, 64, 1, 1, 12, 50, **kw)).eval()
    for p in model.parameters():
        if p.ndim: p.data += .1 * torch.randn_like(p)
    return model


def openai_names(model):
    "Our tensors as OpenAI's CLIP calls them; what its picture tower lacks is left out."
    table = {"patch_embed.proj.weight": "conv1.weight", "pos_embed": "positional_embedding", "cls_token": "class_embedding", "norm.weight": "ln_post.weight", "norm.bias": "ln_post.bias"}
    parts = {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "blocks.": "transformer.resblocks."}
    new = {"visual.proj": model.image_projection.data}
    for k, v in model.state_dict().items():
        if k == "image_projection" or "timeattn" in k or "norm3" in k or "temporal" in k: continue
        if k.startswith("visual."):
            k = k[7:]
            v = v.flatten() if k == "cls_token" else v[0] if k == "pos_embed" else v
            for a, b in parts.items() if k.startswith("blocks") else (): k = k.replace(a, b)
            k = f"visual.{table.get(k, k)}"
        new[k] = v.clone()
    return new


class AsModules(nn.Module):
    "Any state dict as a tree of modules, to save it as TorchScript."

    def __init__(self, tensors):
        super().__init__()
        for k, v in tensors.items():
            at = self
            for part in k.split(".")[:-1]:
                if not hasattr(at, part): at.add_module(part, AsModules({}))
                at = getattr(at, part)
            at.register_parameter(k.split(".")[-1], nn.Parameter(v, requires_grad=False))

    def forward(self, x): return x


@pytest.mark.parametrize("script", [False, True])
@torch.no_grad()
def test_openai_clip_as_state_dict_and_as_torchscript(tmp_path, script):
    model = tiny()
    theirs = openai_names(model)
    if script: torch.jit.script(AsModules(theirs)).save(tmp_path / "clip.pt")
    else: torch.save(theirs | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12), "vocab_size": torch.tensor(50)}, tmp_path / "clip.pt")
    loaded = from_pretrained(tmp_path / "clip.pt", frames=4)
    assert loaded.kind == "clip" and loaded.notes["format"] == ("torchscript" if script else "torch") and loaded.preprocessing.mean[0] > 122
    assert all("timeattn" in k or "norm3" in k or "temporal" in k for k in loaded.report.fresh) and len(loaded.report.fresh) == 7
    film, ids = torch.randn(2, 3, 1, 32, 32), torch.tensor([[48, 7, 9, 49] + [0] * 8])
    for b in model.visual.blocks: b.timeattn.qkv.weight.zero_(), b.timeattn.qkv.bias.zero_(), b.timeattn.proj.bias.zero_()
    model.visual.temporal_embed.zero_()
    assert torch.allclose(loaded.model.encode_video(film), model.encode_video(film), atol=1e-6) and torch.equal(loaded.model.encode_text(ids), model.encode_text(ids))
    other = from_pretrained(tmp_path / "clip.pt", out=16)
    assert {"image_projection", "text_projection"} <= set(other.report.fresh)
    torch.save(theirs | {"visual.layer9": torch.ones(1)}, tmp_path / "clip.pt")
    with pytest.raises(KeyError, match="layer9"): from_pretrained(tmp_path / "clip.pt")


def test_wrong_checkpoint_for_the_architecture(tmp_path):
    model = tiny()
    state = model.state_dict()
    for change, told in [(lambda s: {k: v for k, v in s.items() if "norm3" not in k}, "missing 2"), (lambda s: s | {"visual.blocks.0.gate": torch.ones(1)}, "unexpected 1"),
                         (lambda s: s | {"ln_final.bias": torch.ones(3)}, "misshapen 1"), (lambda s: s | {"ln_final.bias": torch.full((64,), torch.nan)}, "broken 1")]:
        with pytest.raises(ValueError, match=told): from_pretrained(saved(tmp_path / "x.pth", change(state)))
        assert not from_pretrained(tmp_path / "x.pth", strict=False).report.ok
    for other in ({"fc.weight": torch.ones(1)}, {}):
        with pytest.raises(ValueError, match="no architecture"): from_pretrained(saved(tmp_path / "x.pth", other))
    with pytest.raises(ValueError, match="load_timm"): from_pretrained(saved(tmp_path / "x.pth", {"patch_embed.proj.weight": torch.ones(1), "blocks.0.attn.qkv.weight": torch.ones(1), "cls_token": torch.ones(1)}))


@pytest.mark.parametrize("change", [dict(init_values=.1), dict(reg_tokens=2), dict(qkv_norm=True), dict(global_pool="avg", fc_norm=True)])
def test_vits_with_extras_are_refused(change):
    from timm.models import VisionTransformer
    change = {"qk_norm" if k == "qkv_norm" else k: v for k, v in change.items()}
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=0, **change)
    with pytest.raises(ValueError, match="unexpected|misshapen|square of patches"): load_timm(vit)


# ---- ours, and the fingerprint

def test_folder_round_trip(tmp_path):
    model = tiny()
    loaded = Pretrained(model, Preprocessing(size=32), KeyReport(), "lavila", "note", {"epoch": 4})
    save_pretrained(tmp_path / "ours", loaded)
    again = from_pretrained(tmp_path / "ours")
    assert again.preprocessing == loaded.preprocessing and (again.kind, again.licence, again.notes) == ("lavila", "note", {"epoch": 4})
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in model.state_dict().items())
    config = tmp_path / "ours" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model": "os.system"}))
    with pytest.raises(ValueError, match="unknown model 'os.system'"): from_pretrained(tmp_path / "ours")


def test_the_light_encoder_is_verified_too(tmp_path):
    DualEncoder(EncoderSettings(dim_in=16, frames=4, cells=3, width=32, heads=2, out=8, text_in=12, text_hidden=16)).save_pretrained(tmp_path / "e")
    told = verify_text(tmp_path / "e")
    assert "DualEncoder" in told and "frozen backbone" in told and told == verify_text(tmp_path / "e")


def test_verify_text_names_everything(tmp_path):
    path = saved(tmp_path / "x.pth", {"epoch": 4, "state_dict": tiny().state_dict()})
    told = verify_text(path)
    for word in ("VideoTextEncoder", "quick_gelu", "108.3272985", "MIT", "epoch=4", "matched", "video fingerprint", "text fingerprint", f"{sum(p.numel() for p in tiny().parameters()):,}"):
        assert word in told, word
    assert "frames=8" in verify_text(path, frames=8) and "resized 1" in verify_text(path, frames=8)


def test_fingerprints_tell_functions_apart():
    def mark(model, pre=Preprocessing(size=32)): return {k: fingerprint_of(v) for k, v in outputs(Pretrained(model, pre, KeyReport(), "lavila", "")).items()}
    right = tiny()
    again, other = mark(tiny()), mark(tiny(seed=1))
    assert all(apart(mark(right)[k], again[k]) < 1e-6 and apart(mark(right)[k], other[k]) > .1 for k in again)
    gelu = VideoTextEncoder(replace(right.settings, video=replace(SIZES, act="gelu"))).eval()
    gelu.load_state_dict(right.state_dict())
    assert apart(mark(right)["video"], mark(gelu)["video"]) > 1e-3 and apart(mark(right)["text"], mark(gelu)["text"]) < 1e-6
    mean = Preprocessing(**PREPROCESSING["clip"] | dict(size=32))
    assert apart(mark(right)["video"], mark(right, mean)["video"]) > 1e-3


def test_builtin_clip_moves_and_is_the_same_everywhere():
    clip = builtin_clip(4, 64)
    assert clip.shape == (4, 64, 64, 3) and clip.dtype == np.uint8 and clip.astype(np.int64).sum() == 5356032
    assert len({c.tobytes() for c in clip}) == 4 and len({c.tobytes() for c in builtin_clip(16, 64)}) > 8


@pytest.mark.parametrize("frames", [np.zeros((4, 8, 8, 3), np.float32), np.zeros((4, 8, 8), np.uint8), np.zeros((5, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 4), np.uint8)])
def test_wrong_frames_are_refused(frames):
    with pytest.raises(ValueError, match="expected uint8|frames a clip"): Preprocessing()(frames)


def test_preprocessing_follows_the_weights(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (2, 3, 40, 64, 3), dtype=np.uint8)
    for kind, layout in (("lavila", (2, 3, 3, 32, 32)), ("egovlp", (2, 3, 3, 32, 32))):
        p = Preprocessing(**PREPROCESSING[kind] | dict(size=32))
        assert p(x).shape == layout and torch.equal(p(x[1])[0], p(x)[1])
    square = x[:, :, :32, 16:48]
    by_hand = (torch.tensor(square).permute(0, 4, 1, 2, 3).float() - torch.tensor(Preprocessing().mean).view(3, 1, 1, 1)) / torch.tensor(Preprocessing().std).view(3, 1, 1, 1)
    assert torch.allclose(Preprocessing(size=32)(square), by_hand, atol=1e-6)


def test_full_size_is_identified():
    with torch.device("meta"): state = timesformer_base_clip().state_dict()
    assert identify(state) == "lavila"
