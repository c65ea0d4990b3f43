"""Shared fixtures. BCT_SHARED names the folder with golden values (default ../shared)."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import settings
from support.pictures import picture, write_faces
from support.tiny import Job

from backbones import get_model
from tools.ijbc.align import TEMPLATE

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("BCT_SHARED", ROOT.parent / "shared"))

settings.register_profile("any machine", deadline=None)  # no test asserts a time
settings.load_profile("any machine")

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_collection_modifyitems(items):
    """The demo takes longest: it begins first, while the other worker does the rest."""
    items.sort(key=lambda item: "test_demo.py" not in item.nodeid)


def pytest_collection_finish():
    """What is imported by now stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return never_skipped_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return never_skipped_in_ci((yield))


def never_skipped_in_ci(report):
    """CI has all extras, the shared files and a browser: a skip would hide that one is missing."""
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist (set BCT_SHARED)")
    return SHARED


@pytest.fixture
def job(tmp_path):
    """A tiny training job on 20 drawn pictures, see tiny.Job."""
    write_faces(tmp_path / "train.rec", [4, 5, 3, 4, 4])
    return Job(tmp_path)


@pytest.fixture
def ijb(tmp_path):
    """A small valid protocol with drawn pictures: 6 subjects, 3 templates each."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data" / "IJBC"
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    boxes, media, rows = [], [], []
    number = 0
    for subject in range(6):
        for template in range(3):
            for _ in range(2):
                name = f"{number}.jpg"
                (root / "loose_crop" / name).write_bytes(
                    simplejpeg.encode_jpeg(picture(subject, number, 140), 95)
                )
                points = (TEMPLATE * 1.1 + 8 + rng.normal(0, 0.5, (5, 2))).ravel()
                boxes.append(" ".join([name, *(f"{v:.3f}" for v in points), "0.9"]))
                media.append(f"{name} {10 * subject + template} {number}")
                rows.append((10 * subject + template, subject))
                number += 1
    pairs = [
        f"{10 * a} {10 * b + t} {int(a == b)}" for a in range(6) for b in range(6) for t in (1, 2)
    ]
    header = "TEMPLATE_ID,SUBJECT_ID,FILENAME"
    files = {
        "ijbc_name_5pts_score.txt": boxes,
        "ijbc_face_tid_mid.txt": media,
        "ijbc_template_pair_label.txt": pairs,
        "ijbc_1N_gallery_G1.csv": [header]
        + [f"{t},{s},x" for t, s in rows if t == 10 * s and s < 3],
        "ijbc_1N_gallery_G2.csv": [header]
        + [f"{t},{s},x" for t, s in rows if t == 10 * s and s >= 3],
        "ijbc_1N_probe_mixed.csv": [header] + [f"{t},{s},x" for t, s in rows if t != 10 * s],
    }
    for name, lines in files.items():
        (root / "meta" / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def weights(tmp_path):
    files = []
    for name, seed in (("old", 0), ("new", 1)):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()
        model = get_model("demo_w16", 8)
        torch.save(model.state_dict(), tmp_path / name / "model.pt")
        files.append(str(tmp_path / name / "model.pt"))
    return files
