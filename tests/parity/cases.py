"""The recorded numbers of peers' code, as cases: config, weights, inputs, and a comparison within the recorded tolerance."""
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

FIXTURES = Path(os.environ.get("VR_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))


class Case:
    "A parity case: config, weights `w`, inputs `x`, and the comparison with the recorded outputs."

    def __init__(self, name):
        path = FIXTURES / f"{name}.safetensors"
        if not path.exists(): pytest.skip(f"parity fixture {name} is not here (set VR_PARITY to its folder)")
        self.tensors, self.manifest = load_file(path), json.loads(path.with_suffix(".json").read_text())
        self.config = self.manifest["config"]
        self.w, self.x, self.out = ({k[len(p):]: v for k, v in self.tensors.items() if k.startswith(p)} for p in ("w.", "in.", "out."))
        self.seen = set()

    def off(self, what, got): return (got.float() - self.out[what].float()).abs().max().item()

    def check(self, what, got):
        atol = self.manifest["tensors"][f"out.{what}"]["atol"]
        assert got.shape == self.out[what].shape and self.off(what, got) <= atol, (what, self.off(what, got), atol)
        self.seen.add(what)
