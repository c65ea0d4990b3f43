"""runs/omniglot.sh from zips to its table, on drawn characters. A minute long: `make test-slow`."""

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO

import pytest
from PIL import Image
from support.pictures import picture

from bct.files import ROOT

pytestmark = pytest.mark.slow
METHODS = ["OpenBCT/configs/omniglot_l2", "BT2/configs/omniglot_bt2", "FCT/configs/omniglot_fct"]


def write_zip(path):
    """8 characters of 2 alphabets, drawn 20 times, as Omniglot's zips have them."""
    with zipfile.ZipFile(path, "w") as file:
        for character in range(8):
            for drawer in range(20):
                name = f"character{character % 4 + 1:02}/{character:04}_{drawer + 1:02}.png"
                data = BytesIO()
                Image.fromarray(picture(character, drawer, 30)).convert("L").save(data, "PNG")
                alphabet = ("Greek", "Latin")[character // 4]
                file.writestr(f"images/{alphabet}/{name}", data.getvalue())


def run(out, source, *arguments):
    short = "num_epoch=2 batch_size=8 num_workers=0 warmup_epoch=0"
    methods = " ".join(f"methods/{m}.py" for m in METHODS)
    return subprocess.run(
        ["bash", "runs/omniglot.sh", f"SOURCE={source}", f"OUT={out}", "SEEDS=0", *arguments,
         f"METHODS={methods}", *(f"{who}_EXTRA={short}" for who in ("OLD", "NEW", "MAP"))],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip


def test_from_zips_to_the_table(tmp_path):
    write_zip(tmp_path / "small.zip")
    out = tmp_path / "out"
    first = run(out, tmp_path)
    assert first.returncode == 0, first.stderr
    table = json.loads((out / "retrieval_table.json").read_text())
    assert set(table) == {"map", "top1"} and set(table["map"]) == {"l2", "bt2", "fct", "alone"}
    for rows in table["map"].values():
        assert set(rows[0]) == {"all", "old classes", "new classes"}
        assert all(0 < rows[0]["all"][key] <= 1 for key in ("old", "cross", "own"))
    page = (out / "retrieval.md").read_text()
    assert page.count("| bt2 |") == 6 and page.count(" of 1 |") == 4 * 3 * 2
    backfilled = json.loads((out / "seed0" / "retrieval" / "fct.json").read_text())["backfill"]
    assert len(backfilled["new"]) == 2  # in a random and in the predicted order
    again = run(out, tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "retrieval_table.json").read_text()) == table
    assert again.stdout.count("reusing it") >= 5  # every network, and what was extracted


def test_a_wrong_path_ends_it_at_once(tmp_path):
    failed = run(tmp_path / "out", tmp_path / "nowhere")
    assert failed.returncode and "there is no zip" in failed.stderr
    assert len(failed.stderr.splitlines()) == 2 and not (tmp_path / "out").exists()
