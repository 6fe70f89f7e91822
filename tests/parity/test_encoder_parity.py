"""The published architectures against numbers that the peers' own code produced, and the slips those numbers must show.
"""
import copy
import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from cases import FIXTURES, Case
from viewpoint_rosetta.losses import clip_accuracy, clip_loss
from viewpoint_rosetta.text import TextTransformer, Tokenizer, clean_text, clip_vocabulary, pieces, read_merges
from viewpoint_rosetta.timesformer import (EGOVLP, DividedAttention, DualSettings, EgoVLPEncoder, TimeSformer, TimeSformerSettings, VideoTextEncoder,
                                           clip_to_timesformer, resize_time, timesformer_base_clip)

def tower(config, **kw):
    m = config
    return TimeSformerSettings(m["img_size"], m["patch_size"], m["embed_dim"], m["depth"], m["num_heads"], m["num_frames"], **kw)


def loaded(model, weights):
    model.load_state_dict(weights)  # strict
    return model.eval()


# ---- video towers

TOWERS = [("lavila_timesformer_a", {}), ("lavila_timesformer_b_smallnorm", {}),
          ("egovlp_timesformer_a", EGOVLP), ("egovlp_timesformer_b_smallnorm", EGOVLP)]


def video_tower(name, layout, **kw):
    case = Case(name)
    settings = replace(tower(case.config["model"]), **{k: v for k, v in layout.items() if k != "frames"} | kw)
    return case, loaded(TimeSformer(settings), case.w)


@pytest.mark.parametrize("name, layout", TOWERS)
@torch.no_grad()
def test_video_tower(name, layout):
    case, model = video_tower(name, layout)
    for f in case.config["frames"]:
        video = case.x[f"video_f{f}"]
        x, frames = model.embed(video)
        case.check(f"embed_f{f}", x)
        block = model.blocks[0]
        if f"block0_timeattn_f{f}" in case.out:
            t = block.timeattn(block.norm3(x), frames, "time")
            case.check(f"block0_timeattn_f{f}", t)
            case.check(f"block0_spaceattn_f{f}", block.attn(block.norm1(x + t), frames, "space"))
        for i, block in enumerate(model.blocks):
            x = block(x, frames)
            case.check(f"block{i}_f{f}", x)
        if f"tokens_f{f}" in case.out: case.check(f"tokens_f{f}", model.tokens(video))
        case.check(f"cls_f{f}", model(video))
    assert case.seen == set(case.out), "an output of the case was not compared"


def all_eps(model, eps, kind=nn.LayerNorm):
    for m in model.modules():
        if isinstance(m, kind): m.eps = eps


@pytest.mark.parametrize("name, layout", TOWERS)
@torch.no_grad()
def test_a_wrong_tower_is_seen(name, layout):
    "The slips of the manifests' list: each must move the result well beyond the tolerance."
    case, right = video_tower(name, layout)
    f = case.config["frames"][0]
    video, what = case.x[f"video_f{f}"], f"cls_f{f}"
    _, other = video_tower(name, layout, act="gelu" if right.settings.act == "quick_gelu" else "quick_gelu")
    moved = {"activation": case.off(what, other(video))}
    swapped = copy.deepcopy(right)
    for b in swapped.blocks: b.norm1, b.norm3 = b.norm3, b.norm1
    moved["norms swapped"] = case.off(what, swapped(video))
    moved["backwards"] = case.off(what, right(video.flip(right.settings.layout.index("T"))))
    if "smallnorm" in name:
        eps = copy.deepcopy(right)
        all_eps(eps, 1e-5)
        moved["eps 1e-5"] = case.off(what, eps(video))
        if right.settings.ln_pre:
            right.ln_pre.eps = 1e-6
            moved["ln_pre eps 1e-6"] = case.off(what, right(video))
    small = {k: v for k, v in moved.items() if v < 1e-4}
    assert not small, small


@torch.no_grad()
def test_the_usual_residual_is_seen():
    case, model = video_tower("lavila_timesformer_a", {})

    def usual(block):
        def forward(x, f):
            x = x + block.timeattn(block.norm3(x), f, "time")
            x = x + block.attn(block.norm1(x), f, "space")
            return x + block.mlp(block.norm2(x))
        return forward

    for b in model.blocks: b.forward = usual(b)
    assert case.off("cls_f4", model(case.x["video_f4"])) > 1


def test_gradients_flow_for_a_batch_of_one():
    "Where the peers' in-place scaling raises."
    model = TimeSformer(TimeSformerSettings(32, 16, 32, 1, 2, 2))
    model(torch.randn(1, 3, 2, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 5, 32, 32), (1, 2, 3, 32, 32), (1, 3, 2, 32, 48), (3, 2, 32, 32)])
def test_wrong_video_is_refused(shape):
    with pytest.raises(ValueError, match="up to 4 frames and 32 px"):
        TimeSformer(TimeSformerSettings(32, 16, 32, 1, 2, 4))(torch.zeros(shape))


# ---- LaViLa's dual encoder

DUALS = ["lavila_clip_a", "lavila_clip_b_smallnorm"]


def dual_encoder(name):
    case = Case(name)
    c, v = case.config["clip"], case.config["vision"]
    settings = DualSettings(tower(v), c["embed_dim"], c["transformer_width"], c["transformer_heads"], c["transformer_layers"],
                            c["context_length"], c["vocab_size"])
    return case, loaded(VideoTextEncoder(settings), case.w)


@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_lavila_dual_encoder(name):
    case, model = dual_encoder(name)
    video, ids = case.x["video"], case.x["text"]
    case.check("visual_cls", model.visual(video))
    v, t = model.encode_video(video), model.encode_text(ids)
    case.check("image_embed_raw", model.encode_video(video, unit=False))
    case.check("text_embed_raw", model.encode_text(ids, unit=False))
    case.check("image_embed", v)
    case.check("text_embed", t)
    case.check("text_embed_raw_without_eot", model.encode_text(case.x["text_without_eot"], unit=False))
    x = model.token_embedding(ids) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        x = block(x)
        case.check(f"text_block{i}", x)
    scale = model.scale()
    case.check("logit_scale", scale)
    case.check("logits_per_image", scale * v @ t.T)
    case.check("loss", clip_loss(v, t, scale))
    case.check("clip_acc", clip_accuracy(v, t))
    assert case.seen == set(case.out)


@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_a_wrong_text_tower_is_seen(name):
    case, model = dual_encoder(name)
    ids, moved = case.x["text"], {}
    gelu = copy.deepcopy(model)
    for b in gelu.transformer.resblocks: b.mlp.gelu = nn.GELU()
    moved["activation"] = case.off("text_embed_raw", gelu.encode_text(ids, unit=False))
    both = copy.deepcopy(model)
    x = both.token_embedding(ids) + both.positional_embedding
    last = both.ln_final(both.transformer.resblocks(x)[:, -1]) @ both.text_projection
    moved["last position"] = case.off("text_embed_raw", last)
    if "smallnorm" in name:
        all_eps(model, 1e-6)
        moved["eps 1e-6"] = case.off("text_embed_raw", model.encode_text(ids, unit=False))
    assert all(v > 1e-3 for v in moved.values()), moved


# ---- EgoVLP

@torch.no_grad()
def test_egovlp_frozen_in_time():
    case = Case("egovlp_frozen_a")
    c = case.config
    settings = replace(tower(c["video"]), **{k: v for k, v in EGOVLP.items() if k != "frames"})
    model = loaded(EgoVLPEncoder(settings, c["projection_dim"], c["text"]), case.w)
    video, ids, mask = case.x["video"], case.x["input_ids"], case.x["attention_mask"]
    case.check("video_cls", model.video_model(video))
    case.check("video_embed", model.encode_video(video, unit=False))
    case.check("text_embed", model.encode_text(ids, mask, unit=False))
    hidden = model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
    case.check("text_hidden", hidden * mask[..., None])
    case.check("sim_text_video", model.encode_text(ids, mask) @ model.encode_video(video).T)
    assert case.seen == set(case.out)
    assert case.off("text_embed", model.encode_text(ids, None, unit=False)) > .1, "an ignored mask must show"
    model.txt_proj[0] = nn.Identity()
    assert case.off("text_embed", model.encode_text(ids, mask, unit=False)) > .1, "a lost ReLU must show"


# ---- time tables and CLIP's names

@pytest.mark.parametrize("name, corners", [("lavila_inflate_remap_a", False), ("egovlp_inflate_a", True)])
def test_time_tables(name, corners):
    case = Case(name)
    for what in case.out:
        if m := re.fullmatch(r"temporal_embed_(\d+)to(\d+)_(\w+)", what):
            table = case.x[f"temporal_embed_{m[1]}"]
            case.check(what, resize_time(table, int(m[2]), m[3], corners))
            if m[3] == "bilinear" and int(m[2]) > int(m[1]):
                assert case.off(what, resize_time(table, int(m[2]), m[3], not corners)) > .01, "the other alignment must show"
    assert len(case.seen) >= 7
    with pytest.raises(ValueError, match="'zeros'"): resize_time(table, 99, "cubic")


def test_clip_names():
    case = Case("lavila_inflate_remap_a")
    before = {k: v.clone() for k, v in case.w.items()}
    new = clip_to_timesformer(case.w)
    assert {k for k in case.out if k.startswith("remap.")} == {f"remap.{k}" for k in new}
    for k, v in new.items():
        case.check(f"remap.{k}", v)
        assert torch.equal(v, case.out[f"remap.{k}"])
    for old, to in case.manifest["remap_old_to_new"]:
        assert (set(clip_to_timesformer({old: case.w[old]})) or {None}) == {to}
    assert case.w.keys() == before.keys(), "the given dict is left as it was (the peer changes it)"
    with pytest.raises(KeyError, match="layer1"): clip_to_timesformer({"layer1.0.conv1.weight": torch.ones(1)})


# ---- full size

def test_full_size_on_paper():
    with torch.device("meta"): lavila, ego = timesformer_base_clip(), EgoVLPEncoder()
    assert sum(p.numel() for p in lavila.parameters()) == 177_662_977
    shapes = {k: tuple(v.shape) for k, v in lavila.state_dict().items()}
    assert len(shapes) == 375 and sum(k.startswith("visual.") for k in shapes) == 224
    wanted = {"visual.cls_token": (1, 1, 768), "visual.pos_embed": (1, 197, 768), "visual.temporal_embed": (1, 4, 768),
              "visual.patch_embed.proj.weight": (768, 3, 16, 16), "visual.ln_pre.bias": (768,), "visual.norm.weight": (768,),
              "visual.blocks.11.timeattn.qkv.weight": (2304, 768), "visual.blocks.0.mlp.fc1.weight": (3072, 768),
              "transformer.resblocks.11.attn.in_proj_weight": (1536, 512), "transformer.resblocks.0.mlp.c_fc.weight": (2048, 512),
              "token_embedding.weight": (49408, 512), "positional_embedding": (77, 512), "ln_final.weight": (512,),
              "image_projection": (768, 256), "text_projection": (512, 256), "logit_scale": ()}
    assert {k: shapes.get(k) for k in wanted} == wanted and "visual.patch_embed.proj.bias" not in shapes
    ego_shapes = {k: tuple(v.shape) for k, v in ego.state_dict().items()}
    assert sum(k.startswith("video_model.") for k in ego_shapes) == 223
    assert ego_shapes["video_model.patch_embed.proj.bias"] == (768,) and ego_shapes["video_model.temporal_embed"] == (1, 16, 768)
    assert ego_shapes["txt_proj.1.weight"] == ego_shapes["vid_proj.0.weight"] == (256, 768)


def by_rule(model):
    "Weights from a rule that needs no file: a sine of the element's number, scaled so that nothing explodes."
    for i, (name, p) in enumerate(model.named_parameters()):
        wave = torch.sin(torch.arange(p.numel()) * .7 + i).view(p.shape)
        norm = re.search(r"(norm\d?|ln_pre)\.weight", name)
        p.copy_(1 + .1 * wave if norm else wave * (p.numel() / p.shape[0]) ** -.5 if p.ndim > 1 else .1 * wave)
    return model


@torch.no_grad()
def test_full_size_video_tower_computes(monkeypatch):
    "TimeSformer-B on one clip of 2 frames at 224 px, against the plain masked form of the same attention."
    with torch.device("meta"): model = timesformer_base_clip().visual
    model = by_rule(model.to_empty(device="cpu")).eval()
    video = torch.sin(torch.arange(3 * 2 * 224 * 224) * .01).view(1, 3, 2, 224, 224)
    z = model(video)
    assert z.shape == (1, 768) and z.isfinite().all() and z.std() > .1
    monkeypatch.setattr(DividedAttention, "forward", masked)
    assert torch.allclose(model(video), z, atol=1e-4)


@torch.no_grad()
def test_full_size_text_tower_computes():
    "One narration of 12 ids, against all 77 positions through torch's own attention."
    model = by_rule(TextTransformer()).eval()
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :12] = torch.tensor([49406, *range(320, 330), 49407])
    z, x = model.text_states(ids), (model.token_embedding(ids) + model.positional_embedding)
    mask = nn.Transformer.generate_square_subsequent_mask(77)
    theirs = nn.MultiheadAttention(512, 8, batch_first=True)
    for b in model.transformer.resblocks:
        theirs.load_state_dict(b.attn.state_dict())
        y = b.ln_1(x)
        x = x + theirs(y, y, y, attn_mask=mask, need_weights=False)[0]
        x = x + b.mlp(b.ln_2(x))
    assert torch.allclose(model.ln_final(x[:, 11]), z, atol=1e-4) and z.std() > .1


def masked(attn, x, f, over):
    "One attention over all tokens, what is not allowed masked out: slow, and plainly right."
    n = (x.shape[1] - 1) // f
    group = torch.arange(n).repeat(f) if over == "time" else torch.arange(f).repeat_interleave(n)
    allowed = torch.ones(1 + f * n, 1 + f * n, dtype=torch.bool)
    allowed[1:, 1:] = group[:, None] == group
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
    w = (q @ k.mT / q.shape[-1] ** .5).masked_fill(~allowed, -torch.inf).softmax(-1)
    return attn.proj((w @ v).transpose(1, 2).flatten(2))


# ---- byte pairs

def bpe_rows():
    path = FIXTURES / "lavila_clip_bpe.json"
    if not path.exists(): pytest.skip("parity fixture lavila_clip_bpe is not here (set VR_PARITY to its folder)")
    return json.loads(path.read_text())


def test_token_ids_equal_the_peers():
    rows = bpe_rows()
    digest = hashlib.sha256(clip_vocabulary().read_bytes()).hexdigest()
    assert digest == rows["vocabulary_sha256"], "another vocabulary than the one the numbers were made with"
    tokenize = Tokenizer()
    assert (tokenize.start, tokenize.end) == (rows["start_id"], rows["end_id"])
    for r in rows["rows"]:
        assert tokenize.encode(r["text"]) == r["encode"], r["text"]
        assert tokenize([r["text"]])[0].tolist() == r["call_77"], r["text"]


@pytest.mark.parametrize("text, cleaned", [("  A\t\nb ", "a b"), ("&amp;amp;lt;", "<"), ("L&AMP;R", "l&r"), ("", ""), ("\x0b\x0c", "")])
def test_cleaning(text, cleaned): assert clean_text(text) == cleaned


@pytest.mark.parametrize("text, cut", [("don't they'll we've i'm he'd you're it's", ["don", "'t", "they", "'ll", "we", "'ve", "i", "'m", "he", "'d", "you", "'re", "it", "'s"]),
                                       ('"\'s', ['"\'', "s"]), ("a1b22", ["a", "1", "b", "2", "2"]), ("ⅷ²½", ["ⅷ", "²", "½"]), ("été_x", ["été", "_", "x"]),
                                       ("e\u0301a", ["e", "\u0301", "a"]), ("x\u00a0y", ["x", "y"]), ("你好。🙂!", ["你好", "。🙂!"]), ("<|endoftext|>a", ["<|endoftext|>", "a"])])
def test_pieces(text, cut):
    assert pieces(text) == cut
    regex = pytest.importorskip("regex")  # CLIP's own pattern, where the module that understands it is there
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    assert regex.findall(pattern, text, regex.IGNORECASE) == cut


def test_decode_returns_any_bytes():
    tokenize = Tokenizer([("h", "i</w>")])
    for text in ("hi", "é 你 🙂", "a-b"): assert tokenize.decode(tokenize.encode(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("content", [b"\x1f\x8bnot gzip", b"\xff\xfe\x00bin"])
def test_files_that_are_no_vocabulary(tmp_path, content):
    path = tmp_path / ("v.txt.gz" if content[0] == 0x1f else "v.txt")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no byte-pair vocabulary"): read_merges(path)
    (tmp_path / "v.txt").write_text("#version\none\nt h\n")
    with pytest.raises(ValueError, match="line 2"): read_merges(tmp_path / "v.txt")


def test_text_is_cut_after_the_last_end_and_nothing_changes():
    torch.manual_seed(0)
    model, seen = TextTransformer(16, 2, 2, 32, 50).eval(), []
    model.transformer.resblocks.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    ids = torch.zeros(3, 32, dtype=torch.long)
    for row, n in zip(ids, (2, 7, 5)): row[:n] = torch.tensor([48, *range(1, n - 1), 49])
    with torch.no_grad():
        together = model.text_states(ids)
        alone = torch.cat([model.text_states(r[None]) for r in ids])
    assert seen == [7, 2, 7, 5] and torch.allclose(together, alone, atol=1e-6)
