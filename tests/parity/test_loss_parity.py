"""The losses of LaViLa, EgoVLP and EgoInstructor: values and gradients of the peers' own code."""
import pytest
import torch

from cases import Case
from viewpoint_rosetta import losses as L


def leaves(name):
    "A case whose embeddings and scales collect gradients: inputs, comparison, config."
    case = Case(name)
    return {k: v.requires_grad_("embed" in k or "scale" in k) for k, v in case.x.items()}, case.check, case.config


@pytest.mark.parametrize("suffix", ["", "_unnormalised"])
def test_lavila_clip_loss_parity(suffix):
    x, check, _ = leaves("lavila_cliploss_a")
    video, text, scale = (x[k + suffix] for k in ("image_embed", "text_embed", "logit_scale"))
    loss = L.clip_loss(video, text, scale)
    loss.backward()
    check("loss" + suffix, loss)
    check("clip_acc" + suffix, L.clip_accuracy(video, text))
    for name, leaf in (("image_embed", video), ("text_embed", text), ("logit_scale", scale)): check(f"grad_{name}{suffix}", leaf.grad)


@pytest.mark.parametrize("name, use", [("egonce", "nv"), ("egonce_noun_only", "n"), ("egonce_verb_only", "v")])
def test_egovlp_ego_nce_parity(name, use):
    x, check, config = leaves("egovlp_losses_a")
    positives = L.shared_words(x["noun_vec"] if "n" in use else None, x["verb_vec"] if "v" in use else None)
    if use == "nv": check("positives_egonce", positives)
    loss = L.ego_nce(x["video_embed"], x["text_embed"], positives, config["temperature"])
    loss.backward()
    check(name, loss)
    for side in ("text_embed", "video_embed"): check(f"grad_{side}_{name}", x[side].grad)


def test_egovlp_norm_softmax_is_ego_nce_with_the_diagonal():
    x, check, config = leaves("egovlp_losses_a")
    loss = L.ego_nce(x["video_embed"], x["text_embed"], torch.eye(8, dtype=torch.bool), config["temperature"])
    loss.backward()
    check("norm_softmax", loss)
    for side in ("text_embed", "video_embed"): check(f"grad_{side}_norm_softmax", x[side].grad)


@pytest.mark.parametrize("fix_norm", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
def test_egovlp_max_margin_parity(adaptive, fix_norm):
    x, check, config = leaves("egovlp_losses_a")
    name = ("adaptive_" if adaptive else "") + "max_margin" + ("" if fix_norm else "_no_fix_norm")
    loss = L.max_margin(x["video_embed"], x["text_embed"], config["adaptive_margin" if adaptive else "margin"],
                        x["relevance"] if adaptive else None, fix_norm)
    loss.backward()
    check(name, loss)
    for side in ("text_embed", "video_embed"): check(f"grad_{side}_{name}", x[side].grad)


@pytest.mark.parametrize("which", "ab")
def test_egoinstructor_egoexo_nce_parity(which):
    x, check, config = leaves(f"egoinstructor_egoexonce_{which}")
    words, block = L.shared_words(x["noun_vec"], x["verb_vec"]), config["pair_num"] + 1
    check("positives", words | L.same_block(len(words), block))
    loss = L.egoexo_nce(x["image_embed"], x["text_embed"], words, x["logit_scale"], block)
    loss.backward()
    check("loss", loss)
    for name in ("image_embed", "text_embed", "logit_scale"): check(f"grad_{name}", x[name].grad)
