"""No recorded case is forgotten."""
from pathlib import Path

import pytest

from cases import FIXTURES

WAITING = ("ae2_", "croco_")  # for the frame metrics and for single-life learning


def test_every_recorded_case_is_compared():
    if not FIXTURES.is_dir(): pytest.skip("the recorded numbers are not here (set VR_PARITY to their folder)")
    tests = "".join(p.read_text(encoding="utf-8") for p in [*Path(__file__).parent.glob("test_*_parity.py")])
    names = {p.stem for p in FIXTURES.glob("*.json") if not p.stem.startswith(WAITING)}
    stems = lambda name: (name, name[:-1] + "{which}")  # the two cases of one loss are one parametrized test
    assert len(names) >= 15 and not [n for n in names if not any(s in tests for s in stems(n))]
