"""Cases 9, r_06, r_09: figures that lied, a picture that cost the results."""

import json

import numpy as np
import pytest
from support.script import run_script

from bct.errors import BctError
from tools.ijbc.protocol import read_protocol


def ijbc(tmp_path, *arguments):
    common = ("-o", tmp_path / "out", "--cache", tmp_path / "cache", "--amp", "off", "-j", "0")
    return run_script("eval/ijbc.py", *common, *arguments)


@pytest.mark.parametrize("case", ["zero", "neg"])
def test_9_a_face_that_was_not_found_is_left_out(shared, tmp_path, case):
    """Line 4 is image 3; template 2 is image 2 alone, whatever the embedding of image 3 is."""
    folder = shared / "cases/9" / case
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 8)).astype(np.float32)
    tables = []
    for name, row in (("a", rows[3]), ("b", 1e4 * rng.standard_normal(8))):
        rows[3] = row
        np.save(tmp_path / f"{name}.npy", rows)
        done = ijbc(tmp_path, "-m", tmp_path / f"{name}.npy", "-d", folder)
        assert done.returncode == 0, done.stderr
        assert "1 of 12 images are left out of their templates" in done.stdout
        assert "ijbc_name_5pts_score.txt, line 4: its five landmarks are one point" in done.stdout
        assert not done.stderr
        saved = np.load(tmp_path / "out" / f"{name}_IJBC_11.npz")
        unit = [rows[k].sum(0) for k in ([0, 1], [2])]
        cosine = unit[0] @ unit[1] / np.linalg.norm(unit[0]) / np.linalg.norm(unit[1])
        assert saved["scores"][0, 0] == pytest.approx(cosine, abs=1e-6)
        tables.append(json.loads((tmp_path / "out" / f"{name}_IJBC_11.json").read_text())["tests"])
    assert tables[0] == tables[1]


def test_9_a_template_whose_images_weigh_nothing_is_refused(shared, tmp_path):
    with pytest.raises(BctError, match="names template 2, which has no image with a face") as info:
        read_protocol(shared / "cases/9/score0", identification=False)
    assert "take it out of ijbc_template_pair_label.txt" in info.value.do
    done = ijbc(tmp_path, "-m", "README.md", "-d", shared / "cases/9/score0")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 2


def test_r06_more_tests_than_colours(shared, ijb, tmp_path):
    """16 tests of a matrix of 4 versions, on a protocol of 36 images; everything is there."""
    names = ("better", "f16", "thirdzero", "good")
    for name in names:
        rows = np.load(shared / "cases/r_06_ijbc_more_than_10_curves" / f"{name}.npy")
        np.save(tmp_path / f"{name}.npy", rows[:36])
    *new, old = (tmp_path / f"{name}.npy" for name in names)
    line = ("-m", *new, "-m_old", old, "-d", ijb.parent, "--matrix")
    done = ijbc(tmp_path, *line, "--far", "1e-1")
    assert done.returncode == 0, done.stderr
    stem = tmp_path / "out" / "better+f16+thirdzero_vs_good_IJBC_11_matrix"
    assert len(json.loads(stem.with_suffix(".json").read_text())["tests"]) == 16
    assert "f16 / f16" in stem.with_suffix(".md").read_text() and "f16 / f16" in done.stdout
    assert np.load(stem.with_suffix(".npz"))["scores"].shape == (16, 72)
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def retrieval(tmp_path, *arguments):
    common = ("-o", tmp_path / "out", "--cache", tmp_path / "cache", "--resamples", "20")
    return run_script("eval/retrieval.py", *common, *arguments)


def test_r09_a_gallery_of_the_queries_is_refused(shared, tmp_path):
    folder = shared / "cases/r_09_retrieval_gallery_is_query_set"
    noise, data = folder / "noise.npy", folder / "set"
    done = retrieval(tmp_path, "-m", f"{noise},{noise}", "--data", data, "--gallery", data)
    assert done.returncode == 1 and "has the very images of the queries" in done.stderr
    assert "--leave-one-out" in done.stderr and len(done.stderr.strip().splitlines()) == 2
    done = retrieval(tmp_path, "-m", noise, "--data", data, "--leave-one-out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/noise_set.json").read_text())["tests"]["new / new"]
    assert found["all queries"]["top1"] == pytest.approx(0.25)


def test_r09_one_class_is_refused(shared, tmp_path):
    folder = shared / "cases/r_09_retrieval_gallery_is_query_set"
    models = ("-m", folder / "r4.npy", "-m_old", folder / "r4.npy")
    done = retrieval(tmp_path, *models, "--data", folder / "set1", "--leave-one-out")
    assert done.returncode == 1 and "no item can be wrong" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
