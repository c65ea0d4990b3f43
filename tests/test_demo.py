"""The demo keeps what the README promises. Minutes long: `make test-slow`."""

import json
import os
import subprocess
import sys

import pytest

from bct.files import ROOT

pytestmark = pytest.mark.slow


def demo(out):
    return subprocess.run(
        ["bash", "runs/demo.sh"], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable, "DEMO_DIR": str(out)},
    ).stdout  # fmt: skip


def test_the_new_model_serves_the_old_gallery(tmp_path):
    first = demo(tmp_path)
    (file,) = tmp_path.glob("*.json")
    tests = json.loads(file.read_text())["tests"]
    new, alone = "demo_w16_MixBCT", "demo_w16_arc_class70"
    tar = {name: test["pairs"]["tar"]["1e-1"] for name, test in tests.items()}
    assert tar[f"{new} / old"] > tar["old / old"]  # compatible, and already an upgrade
    assert tar[f"{new} / {new}"] > tar[f"{new} / old"]
    assert tar[f"{alone} / old"] < 0.2  # near chance: 10 % of the impostors get in too
    assert 0.4 < tests[f"{alone} / old"]["pairs"]["auc"] < 0.6
    assert all(0.05 < value < 0.98 for value in (tar["old / old"], tar[f"{new} / {new}"]))

    second = demo(tmp_path)
    assert second.count("reusing it") == 10 and "cached" in second  # no stage is done twice
    assert second.split("| query")[1] == first.split("| query")[1]  # the same table
