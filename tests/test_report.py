"""The upgrade report: its figures on toy cases, the verdict, and the page in a real browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from support.pages import Nothing, Reader
from support.script import run_script

from bct.protocols.protocol import Pairs, Protocol, Side
from bct.protocols.templates import Templates, pair_scores
from bct.report import page
from bct.report.analysis import analyse
from bct.report.pairs import spread
from bct.report.study import SHARES, Study

SUBJECTS, PROBES, DIM = 30, 4, 16


def study(new_noise=0.5, old_noise=1.0, rotate=False, alone=False):
    """30 subjects with a gallery template of 2 images and 4 probes of 1; embeddings are the
    subject's own vector plus noise, the new ones rotated away on request."""
    rng = np.random.default_rng(0)
    enrolled = np.repeat(np.arange(SUBJECTS) * 10, 2)
    probes = np.concatenate([np.arange(SUBJECTS) * 10 + 1 + k for k in range(PROBES)])
    templates = np.concatenate([enrolled, probes])
    n = len(templates)
    layout = Templates(templates)
    gallery, probe = layout.rows(np.unique(enrolled)), layout.rows(probes)
    first, second = (a.ravel() for a in np.meshgrid(gallery, probe))
    subjects = layout.ids // 10
    protocol = Protocol(
        "IJBC", Nothing(n), layout, Pairs(first, second, subjects[first] == subjects[second]),
        Side("probe_mixed", probe, probes // 10),
        [Side("gallery_G1", gallery[:15], np.arange(15)),
         Side("gallery_G2", gallery[15:], np.arange(15, 30))],
        subjects=subjects,
    )  # fmt: skip
    own = rng.standard_normal((SUBJECTS, DIM))[templates // 10]
    noise = rng.standard_normal((n, DIM))  # the same for both: equal noise is the same model
    features = {
        "old": (own + old_noise * noise).astype(np.float32),
        "new": (own + new_noise * noise).astype(np.float32),
    }
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    if rotate:
        features["new"] = (features["new"] @ rotation).astype(np.float32)
    if alone:
        features["alone"] = (features["new"] @ rotation).astype(np.float32)
    return Study.of(protocol, features)


def test_the_same_model_again():
    """Cross = self, no gain, no flips, no drift, a flat backfill curve."""
    report, drawings = analyse(study(new_noise=1.0), 1e-2, resamples=50)
    tar = set(report["compatibility"]["tar"].values())
    assert len(tar) == 1 and not report["compatibility"]["compatible"]
    for difference in report["compatibility"]["differences"].values():
        assert set(difference.values()) == {0.0}
    for kind in ("genuine", "impostor"):
        assert report["flips"][kind]["negative"] == report["flips"][kind]["positive"] == 0
    assert not any(report["flips"]["examples"].values())
    for point in report["drift"]:
        assert point["far_ratio"] == 1 and point["old_tar"] == point["new_tar"]
    for order in report["backfill"]["orders"].values():
        assert set(order["tar"]) == tar and order["violations"]["steps"] == 0
        assert order["enough_for_old"] == order["enough_for_all_new"] == 0
    assert report["label_free"]["overlap"] == 1
    assert report["label_free"]["procrustes_residual"] == pytest.approx(0, abs=1e-6)
    assert report["verdict"]["headline"].startswith("Nothing to decide")
    assert (drawings.scores["old / old"] == drawings.scores["new / old"]).all()


def test_a_better_compatible_model():
    made = study(alone=True)
    report, _ = analyse(made, 1e-2, resamples=200)
    tar = report["compatibility"]["tar"]
    assert tar["old / old"] < tar["new / old"] < tar["new / new"]
    # the model trained alone is the new one in other coordinates
    assert tar["alone / alone"] == tar["new / new"]
    assert report["compatibility"]["price"] == 0 and report["compatibility"]["p_up"] == 0.5
    o, c, s = (tar[name] for name in ("old / old", "new / old", "new / new"))
    assert report["compatibility"]["update_gain"] == pytest.approx((c - o) / (s - o))
    gap = report["compatibility"]["differences"]["new / old"]
    assert gap["estimate"] == c - o and gap["low"] <= c - o <= gap["high"]
    for order in report["backfill"]["orders"].values():
        assert (order["tar"][0], order["tar"][-1]) == (c, s)
        assert len(order["tar"]) == len(SHARES)
    flips = report["flips"]["genuine"]
    assert (flips["positive"] - flips["negative"]) / flips["pairs"] == pytest.approx(c - o)
    assert report["verdict"]["decision"] == "deploy now"
    assert len(report["tests"]) == 9
    json.dumps(report, allow_nan=False)


def test_an_incompatible_model_needs_the_whole_gallery():
    report, _ = analyse(study(rotate=True), 1e-2, resamples=50)
    assert not report["compatibility"]["compatible"]
    assert report["verdict"]["decision"] in ("backfill first", "do not")
    assert report["label_free"]["procrustes_residual"] < 0.5  # a rotation explains most of it
    needed = [o["enough_for_old"] for o in report["backfill"]["orders"].values()]
    assert all(share is None or share > 0.3 for share in needed)


def test_examples_are_the_largest_changes():
    made = study()
    report, _ = analyse(made, 1e-2, resamples=20)
    first, second, genuine = made.protocol.pairs
    old, new = (
        pair_scores(made.items["old"], made.items[m], first, second) for m in ("old", "new")
    )
    ids = made.protocol.templates.ids
    at = {pair: i for i, pair in enumerate(zip(ids[first], ids[second], strict=True))}
    won = report["flips"]["examples"]["genuine pairs won"]
    assert won
    for pair in won:
        i = at[pair["gallery"], pair["query"]]
        assert genuine[i]
        assert (pair["old"], pair["new"]) == (old[i], new[i])
    changes = [pair["new"] - pair["old"] for pair in won]
    assert changes == sorted(changes, reverse=True)


def test_spread_is_the_mean_distance_of_a_templates_images():
    made = study()
    unit = made.images["old"] / np.linalg.norm(made.images["old"], axis=1, keepdims=True)
    got = spread(made, made.protocol.templates.rows(np.arange(SUBJECTS) * 10))
    for subject in range(SUBJECTS):
        mine = unit[made.protocol.templates.ids[made.protocol.templates.row] == 10 * subject]
        centre = mine.sum(0) / np.linalg.norm(mine.sum(0))
        assert got[subject] == pytest.approx(np.linalg.norm(mine - centre, axis=1).mean(), rel=1e-5)


# ---- the page


def whole(made, **changes):
    report, drawings = analyse(made, 1e-2, resamples=20)
    models = {
        label: {"name": f"<{label}>", "file": "x", "sha256": "0" * 64} for label in made.items
    }
    cost = {"images_per_second": 100.0, "measured": True, "gallery_size": 10**6,
            "price_per_hour": 2.0, "hours": 2.8, "price": 5.6}  # fmt: skip
    return {
        "models": models,
        "data": "f" * 64,
        "date": "today",
        "resamples": 20,
        **report,
        "cost": cost | changes,
    }, drawings


@pytest.mark.parametrize("alone", [False, True])
def test_page_is_self_contained_and_described(tmp_path, alone):
    made = study(alone=alone)
    report, drawings = whole(made)
    page.write(tmp_path, report, drawings)
    text = (tmp_path / "report.html").read_text()
    read = Reader(text)
    assert read.tags["svg"] == read.tags["figure"] == text.count('role="img"') == 5
    assert read.tags["img"] == read.tags["script"] == 0  # no faces unless asked for
    assert max(read.ids.values()) == 1
    for address in read.addresses:
        assert address.startswith(("#", "data:"))
        if address.startswith("#"):
            assert address[1:] in read.ids, address
    assert "&lt;new&gt;" in text and "<new>" not in text
    assert not re.search(r"#0\\d0a0b|#01010|#02020|#03030", text)  # every colour is the page's
    assert "2.8 hours" in text and "5.60" in text
    assert f"TAR at FAR 1e-2 on IJBC: {len(made.protocol.pairs.genuine):,} pairs" in text
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    markdown = (tmp_path / "report.md").read_text()
    assert report["verdict"]["headline"] in markdown
    assert ("Update gain" in markdown) == alone


def test_unknown_speed_is_said(tmp_path):
    made = study()
    report, drawings = whole(made, images_per_second=None, hours=None, price=None)
    page.write(tmp_path, report, drawings)
    assert "Give <code>--images-per-second</code>" in (tmp_path / "report.html").read_text()


def run(*arguments):
    return run_script("eval/report.py", *arguments)


@pytest.fixture
def command(ijb, weights, tmp_path):
    old, new = weights
    return [
        "-d", ijb.parent, "-m", new, "-net", "demo_w16", "-m_old", old, "-old_net", "demo_w16",
        "--far", "1e-1", "-o", tmp_path / "report", "--cache", tmp_path / "cache", "--amp", "off",
        "-j", "1", "--resamples", "20",
    ]  # fmt: skip


def test_command_line_with_faces_on_request(command, tmp_path):
    done = run(*command, "--thumbnails", "--gallery-size", "1000", "--price-per-hour", "3")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["verdict"]["headline"] in done.stdout
    assert report["cost"]["measured"] and report["cost"]["hours"] > 0
    shown = sum(2 * len(pairs) for pairs in report["flips"]["examples"].values())
    read = Reader((tmp_path / "report/report.html").read_text())
    assert read.tags["img"] == shown > 0

    new, old = command.index("-m") + 1, command.index("-m_old") + 1
    command[new], command[old] = command[old], command[new]
    done = run(*command)
    assert done.returncode == 1 and "results of other models" in done.stderr
    assert json.loads((tmp_path / "report/report.json").read_text()) == report
    assert run(*command, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--far", "1e-4"], "allows no false accept"),
        (["--far", "0.3"], "not a FAR of the tables"),
        (["-m_alone", "nothing.pt"], "nothing.pt does not exist"),
        (["-d", "nowhere"], "holds no IJBC/meta"),
    ],
)
def test_refusals(command, tmp_path, change, word):
    done = run(*command, *change)
    assert done.returncode == 1 and word in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not (tmp_path / "report").exists()


def test_embeddings_of_another_protocol(command, tmp_path):
    np.save(tmp_path / "e.npy", np.ones((35, 8), np.float32))
    command[command.index("-m") + 1] = tmp_path / "e.npy"
    done = run(*command)
    assert done.returncode == 1 and "35 rows for 36 images" in done.stderr


# ---- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [400, 1280])
def test_in_chromium(tmp_path, width):
    """No console message, five figures with a size, nothing wider than the window."""
    made = study(alone=True)
    report, drawings = whole(made)
    page.write(tmp_path, report, drawings)
    probe = """<script>
        const boxes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
        document.documentElement.dataset.found = JSON.stringify({
            figures: boxes.filter(b => b.width > 100 && b.height > 50).length,
            overflow: document.documentElement.scrollWidth - window.innerWidth,
        });
    </script>"""
    probed = tmp_path / "probed.html"
    text = (tmp_path / "report.html").read_text()
    probed.write_text(text.replace("</body>", f"{probe}</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom",
         f"file://{probed}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-found="([^"]*)"', done.stdout)[1].replace("&quot;", '"')
    found = json.loads(found)
    assert found["figures"] == 5 and found["overflow"] <= 0, found
    assert "CONSOLE" not in done.stderr, done.stderr
