"""Cases r_07 and r_08 of ../shared/cases: what the report's headline may say."""

import json

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from support.pages import Nothing
from support.script import run_script

from bct.errors import BctError
from bct.models.model import open_models
from bct.protocols.class_templates import class_templates
from bct.protocols.compare import compare
from bct.protocols.protocol import Pairs, Protocol
from bct.report.analysis import analyse
from bct.report.study import DISAGREEMENT, Study
from bct.report.write import write_report
from bct.rows import unit_rows


@pytest.fixture
def case(shared):
    def find(name):
        return next((shared / "cases").glob(f"{name}_*"))

    return find


def classes_of(*models, count=20):
    """The case says no labels: vectors that lie together in all models are of one class."""
    images = Nothing(len(models[0]))
    tree = linkage(np.hstack([unit_rows(x) for x in models]), "ward")
    images.labels, images.path = fcluster(tree, count, "maxclust") - 1, "case"
    return class_templates(images)


def test_r_07_an_order_that_cannot_be_had_is_a_bound(case):
    models = {"old": np.load(case("r_07") / "oo.npy"), "new": np.load(case("r_07") / "on.npy")}
    report, _ = analyse(Study.of(classes_of(*models.values()), models), 1e-1, resamples=50)
    verdict, orders = report["verdict"], report["backfill"]["orders"]
    enough = {name: order["enough_for_old"] for name, order in orders.items()}
    had = min(share for name, share in enough.items() if name != DISAGREEMENT)
    assert enough[DISAGREEMENT] < had  # the bound would have been taken
    assert verdict["headline"].startswith(f"Deploy and backfill {100 * had:.0f} % of the gallery")
    assert not any(DISAGREEMENT in reason for reason in verdict["reasons"])
    assert report["backfill"]["step"]["share"] == had
    assert [order["available"] for order in orders.values()] == [True, True, False]


def test_r_08_old_embeddings_of_zeros_are_refused(case, tmp_path):
    good, zeros = (case("r_08") / name for name in ("good.npy", "zeros.npy"))
    made = classes_of(np.load(good))
    models = {"old": np.load(zeros), "new": np.load(good)}
    for call in (lambda: Study.of(made, models), lambda: compare(made, **models)):
        with pytest.raises(BctError, match="all 220 rows are zeros"):
            call()
    opened = open_models([("old", zeros, None), ("new", good, None)])
    with pytest.raises(BctError, match="all 220 rows are zeros"):
        write_report(tmp_path / "out", made, opened, far=0.1)
    assert not (tmp_path / "out").exists()


def run(case, tmp_path, *arguments):
    files = ["-m", case("r_08") / "r_ok.npy", "-m_old", case("r_08") / "r_z4.npy"]
    line = ["-o", tmp_path / "out", "--cache", tmp_path / "cache", "-j", "0", "--resamples", "20"]
    return run_script("eval/report.py", *files, *line, *arguments)


def test_r_08_a_tie_is_a_tie(case, tmp_path):
    done = run(case, tmp_path, "--images", case("r_08") / "set", "--far", "1e-1")
    assert done.returncode == 0, done.stderr
    assert "A tie: in the old gallery new queries do as well as old ones, no better" in done.stdout
    assert "4 of 20 rows are zeros" in done.stdout and "backfill 0 %" not in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["compatibility"]["tar"]["new / old"] == 0.8
    assert report["verdict"]["decision"] == "tie"


def test_r_08_a_far_that_is_not_resolved_says_which_is(case, tmp_path):
    done = run(case, tmp_path, "--images", case("r_08") / "set")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr.splitlines() == [
        "error: FAR 1e-4 allows no false accept among 40 impostor pairs",
        "  -> give 1e-1, the smallest that they resolve, or a larger protocol",
    ]


def test_r_08_one_genuine_pair_means_nothing(case):
    first, second, genuine = np.loadtxt(case("r_08") / "pairs1.txt", int).T
    models = {"old": np.load(case("r_07") / "oo.npy"), "new": np.load(case("r_07") / "on.npy")}
    pairs = Pairs(first, second, genuine > 0)
    made = Protocol("one", Nothing(len(models["old"])), pairs=pairs)
    report, _ = analyse(Study.of(made, models), 1e-1, resamples=20)
    assert report["verdict"]["decision"] == "no verdict"
    assert report["verdict"]["headline"] == (
        "No verdict: 1 genuine pair only, so the figures mean nothing"
    )
    verdict = compare(made, **models, far=1e-1, resamples=20)
    assert verdict.sentence().startswith("1 genuine pair only: the figures mean nothing (")


@pytest.mark.parametrize(
    ("old", "new", "when"),
    [
        ("xiaoccer", "foamliu", "unrelated spaces"),
        ("foamliu", "honghu_0516", "unrelated spaces"),  # the search finds a little by accident
        ("crd_mobilenet_mxnet", "insightface_y1", "unrelated spaces"),
        ("honghu_0516", "xiaoccer", "unrelated spaces, and the new model is no better"),
        ("crd_mobilenet_mxnet", "crd_mfn",
         "as good once a part is re-extracted, in an order that can be had"),
        ("crd_mfn", "crd_mobilenet_mxnet", "no better in a new gallery"),
    ],
)  # fmt: skip
def test_real_networks_trained_apart_are_unrelated(shared, old, new, when):
    """Six networks, of which two have the same origin."""
    stored = np.load(shared / "data/face_vectors/lfw_dev_embeddings.npz")
    labels = stored["labels"].astype(int)
    models = {"old": stored[old], "new": stored[new]}  # float16, as they were stored
    gallery = np.unique(labels, return_index=True)[1][:600]
    probes = np.setdiff1d(np.flatnonzero(labels <= labels[gallery[-1]]), gallery)[:900]
    first, second = (side.ravel() for side in np.meshgrid(gallery, probes, indexing="ij"))
    pairs = Pairs(first, second, labels[first] == labels[second])
    made = Protocol("lfw", Nothing(len(labels)), pairs=pairs, subjects=labels)
    report, _ = analyse(Study.of(made, models), 1e-3, resamples=50)
    assert report["verdict"]["when"] == when
    assert (report["evidence"]["alike"] < 0.55) == when.startswith("unrelated")
