"""The upgrade report of protocols other than IJB's: searches, and pairs alone."""

import json
import pickle
import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from support.pages import Nothing, Reader
from support.pictures import jpeg
from support.script import run_script

from bct.errors import BctError
from bct.metrics.relevance import ByClass, ByItem, Rows
from bct.models.model import open_models
from bct.protocols.compare import compare
from bct.protocols.image_search import open_search
from bct.protocols.protocol import Pairs, Protocol, Search
from bct.protocols.templates import Templates
from bct.report.analysis import analyse
from bct.report.cost import Cost
from bct.report.searches import BY_CENTRE
from bct.report.study import SHARES, Study
from bct.report.write import write_report

CLASSES, EACH, DIM = 12, 5, 16
LABELS = np.repeat(np.arange(CLASSES), EACH)
N = len(LABELS)


def vectors(new_noise=0.5, old_noise=1.0, rotate=False, alone=False):
    """Each class's own vector plus noise, which is the same for both models."""
    rng = np.random.default_rng(0)
    own, noise = rng.standard_normal((CLASSES, DIM))[LABELS], rng.standard_normal((N, DIM))
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    models = {"old": own + old_noise * noise, "new": own + new_noise * noise}
    if rotate:
        models["new"] = models["new"] @ rotation
    if alone:
        models["alone"] = models["new"] @ rotation
    scale = np.random.default_rng(1).uniform(0.2, 5, (N, 1))  # no report depends on lengths
    return {role: (scale * x).astype(np.float32) for role, x in models.items()}


def among_all():
    rows = np.arange(N)
    return Protocol("toy", Nothing(N), search=Search(rows, rows, ByClass(LABELS, LABELS, True)))


def by_item():
    """The same relevance, item by item."""
    others = [[j for j in np.flatnonzero(LABELS[i] == LABELS) if j != i] for i in range(N)]
    relevance = ByItem(Rows.of_lists(others), Rows.of_lists([[i] for i in range(N)]))
    return Protocol("items", Nothing(N), search=Search(np.arange(N), np.arange(N), relevance))


def report_of(protocol, embeddings, resamples=100):
    return analyse(Study.of(protocol, embeddings), far=1e-4, resamples=resamples)[0]


def plain(query, gallery):
    """(average precision, rank of the first right one) of each image among all the others."""
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    ap, rank = [], []
    for i, scores in enumerate(q @ g.T):
        others = np.arange(N) != i
        right, scores = (LABELS[i] == LABELS)[others], scores[others]
        ap.append(average_precision_score(right, scores))
        rank.append(1 + np.count_nonzero(scores > scores[right].max()))
    return np.array(ap), np.array(rank)


@pytest.mark.parametrize("protocol", [among_all, by_item])
def test_the_same_model_again(protocol):
    """No gain, no flips, a flat curve; nothing is said of FAR or thresholds."""
    report = report_of(protocol(), vectors(new_noise=1.0))
    quality = plain(*[vectors()["old"]] * 2)[0].mean()
    assert list(report["compatibility"]["map"].values()) == pytest.approx([quality] * 3)
    assert not report["compatibility"]["compatible"]
    for difference in report["compatibility"]["differences"].values():
        assert list(difference.values()) == pytest.approx([0] * 3, abs=1e-12)
    assert report["flips"]["first place"]["negative"] == 0
    assert report["flips"]["first place"]["positive"] == 0
    assert not any(report["flips"]["examples"].values())
    for order in report["backfill"]["orders"].values():
        assert order["map"] == pytest.approx([quality] * len(SHARES))
        assert order["enough_for_old"] == order["enough_for_all_new"] == 0
    signals = report["label_free"]
    assert signals["overlap"] == 1 and signals["cosine"] == pytest.approx(1)
    assert signals["procrustes_residual"] == pytest.approx(0, abs=1e-6)
    assert report["verdict"]["headline"].startswith("Nothing to decide")
    assert not {"far", "drift"} & report.keys()
    assert len(report["verdict"]["reasons"]) == 2
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("protocol", [among_all, by_item])
def test_a_better_compatible_model(protocol):
    models = vectors(old_noise=2.0, alone=True)
    report = report_of(protocol(), models, resamples=200)
    found = {
        f"{q} / {g}": plain(models[q], models[g]) for q in models for g in models
    }  # (ap, rank) by scikit-learn
    assert report["tests"].keys() == found.keys()
    for name, (ap, rank) in found.items():
        figures = report["tests"][name]["retrieval"]
        assert figures["map"] == pytest.approx(ap.mean())
        assert figures["top1"] == np.mean(rank == 1) and figures["top5"] == np.mean(rank <= 5)
        assert figures["queries"] == N
    o, c, s = (found[name][0].mean() for name in ("old / old", "new / old", "new / new"))
    assert o < c < s
    judged = report["compatibility"]
    assert judged["compatible"] and judged["price"] == pytest.approx(0, abs=1e-6)
    assert judged["update_gain"] == pytest.approx((c - o) / (s - o), abs=1e-4)
    gap = judged["differences"]["new / old"]
    assert gap["low"] < gap["estimate"] < gap["high"]
    assert gap["estimate"] == pytest.approx(c - o)
    for order in report["backfill"]["orders"].values():
        assert (order["map"][0], order["map"][-1]) == pytest.approx((c, s))
    was, now = found["old / old"][1], found["new / old"][1]
    flips = report["flips"]["first place"]
    assert flips["negative"] == np.count_nonzero((was == 1) & (now > 1))
    assert flips["positive"] == np.count_nonzero((was > 1) & (now == 1)) > 0
    won = report["flips"]["examples"]["first places won"]
    assert [(was[one["query"]], now[one["query"]]) for one in won] == [
        (one["old"], one["new"]) for one in won
    ]
    assert [one["old"] for one in won] == sorted(was[(was > 1) & (now == 1)])[::-1][: len(won)]
    assert report["verdict"]["decision"] == "deploy now"
    assert f"reach mAP {c:.3f}; the old system has {o:.3f}" in report["verdict"]["reasons"][0]


def test_an_unrelated_model_needs_the_gallery():
    report = report_of(among_all(), vectors(rotate=True))
    quality = report["compatibility"]["map"]
    assert quality["new / old"] < 0.25 < quality["old / old"]  # by chance 4 of 59 are right
    assert report["verdict"]["decision"] in ("backfill first", "do not")
    assert report["label_free"]["procrustes_residual"] < 0.6 < 1 - report["label_free"]["cosine"]
    for order in report["backfill"]["orders"].values():
        assert order["enough_for_old"] is None or order["enough_for_old"] > 0.3


def test_orders_of_a_backfill():
    """The old gallery's images that lie furthest from their class's centre come first."""
    models = vectors()
    orders = report_of(among_all(), models)["backfill"]["orders"]
    assert len(orders) == 3 and len(report_of(by_item(), models)["backfill"]["orders"]) == 2
    unit = models["old"] / np.linalg.norm(models["old"], axis=1, keepdims=True)
    centres = np.stack([unit[c == LABELS].sum(0) for c in range(CLASSES)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    first = np.argsort(-np.linalg.norm(unit - centres[LABELS], axis=1), kind="stable")[: N // 2]
    new = models["new"] / np.linalg.norm(models["new"], axis=1, keepdims=True)
    mixed = unit.copy()
    mixed[first] = new[first]
    assert orders[BY_CENTRE]["map"][10] == pytest.approx(plain(new, mixed)[0].mean())


def test_what_intervals_are_over():
    """Of queries of one class a resample of classes is always the same, one of queries is not."""
    queries, gallery, models = np.arange(EACH), np.arange(EACH, N), vectors(old_noise=2.0)
    labels = np.concatenate([np.zeros(EACH, int), LABELS[: N - EACH]])
    by_class = ByClass(labels[queries], labels[gallery])
    rows = Rows.of_lists([np.flatnonzero(labels[gallery] == 0)] * EACH)
    by_item = ByItem(rows, Rows.of_lists([[]] * EACH))
    found = {}
    for relevance in (by_class, by_item):
        protocol = Protocol("one", Nothing(N), search=Search(queries, gallery, relevance))
        judged = report_of(protocol, models)["compatibility"]
        verdict = compare(protocol, models["old"], models["new"], resamples=100)
        found[judged["over"]] = judged["differences"]["new / old"]
        assert verdict.over == judged["over"]
        assert verdict.interval._asdict() == pytest.approx(found[judged["over"]])
    assert found["classes"]["low"] == found["classes"]["high"] == found["classes"]["estimate"]
    assert found["queries"]["low"] < found["queries"]["estimate"] < found["queries"]["high"]
    assert found["queries"]["estimate"] == found["classes"]["estimate"]


def test_queries_with_nothing_to_find_are_counted_apart():
    models, queries, gallery = vectors(), np.arange(0, N, EACH), np.arange(2 * EACH, N)
    relevance = ByClass(LABELS[queries], LABELS[gallery])
    protocol = Protocol("few", Nothing(N), search=Search(queries, gallery, relevance))
    report = report_of(protocol, models)
    said = report["protocol"]
    assert (said["queries"], said["without"], said["gallery"]) == (CLASSES, 2, N - 2 * EACH)
    assert report["flips"]["first place"]["queries"] == CLASSES - 2
    shown = {one["query"] for kind in report["flips"]["examples"].values() for one in kind}
    assert shown <= set(queries[2:].tolist())


def test_items_may_be_templates():
    """Each item is made of two equal images, so the figures are those of the items."""
    models, plainly = vectors(), among_all()
    unit = {role: x / np.linalg.norm(x, axis=1, keepdims=True) for role, x in models.items()}
    layout = Templates(np.repeat(np.arange(N) + 100, 2))
    twice = Protocol("twice", Nothing(2 * N), layout, search=plainly.search)
    report = report_of(twice, {role: np.repeat(x, 2, axis=0) for role, x in unit.items()})
    assert report["compatibility"]["map"] == pytest.approx(
        report_of(plainly, unit)["compatibility"]["map"]
    )
    shown = [one["query"] for kind in report["flips"]["examples"].values() for one in kind]
    assert shown and min(shown) >= 100  # by the protocol's own numbers


# ---- the page


def stored(folder, **embeddings):
    """Models that left their embeddings in files."""
    files = []
    for role, rows in embeddings.items():
        np.save(folder / f"{role}.npy", rows)
        files.append((role, folder / f"{role}.npy", None))
    return open_models(files)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("protocol", [among_all, by_item])
def test_the_page_of_a_search(tmp_path, protocol, alone):
    """Only sections that a search has, none of them empty; every word of it makes sense."""
    models = stored(tmp_path, **vectors(old_noise=2.0, alone=alone))
    report = write_report(
        tmp_path / "out", protocol(), models, resamples=20, cost=Cost(100.0, 10**6, 2.0)
    )
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    page = Reader((tmp_path / "out/report.html").read_text())
    assert page.tags["svg"] == page.tags["figure"] == 2
    assert list(page.text)[1:] == [
        "headline", "matrix", "gain", "flips", "backfilling", "signals", "how"
    ]  # fmt: skip
    for section, text in page.text.items():
        assert len(text.split()) > 10, section
    for section in ("matrix", "gain", "flips", "backfilling"):
        assert page.inside[section]["td"] > 0, section
    markdown = (tmp_path / "out/report.md").read_text()
    for text in (page.words, markdown):
        assert not re.search(r"\b(None|nan|FAR|TAR|genuine|impostors?|thresholds?)\b", text)
        assert "mAP" in text and "{" not in text
        assert ("Update gain" in text) == alone
    assert max(page.ids.values()) == 1
    for address in page.addresses:
        assert address.startswith("data:") or address[1:] in page.ids
    over = "classes" if protocol is among_all else "queries"
    assert f"95 % interval over {over}" in page.words and "2.8 hours" in page.words
    assert ("centre" in page.words) == (protocol is among_all)


def test_a_page_without_a_cost(tmp_path):
    models = stored(tmp_path, **vectors())
    report = write_report(tmp_path / "out", among_all(), models, models_rows(models), resamples=20)
    words = Reader((tmp_path / "out/report.html").read_text()).words
    assert "cost" not in report and "images/s" not in words and "e-extraction" not in words


def models_rows(models):
    return {role: np.load(model.file) for role, model in models.items()}


def test_a_report_that_cannot_be_made_leaves_nothing(tmp_path):
    models, toy = stored(tmp_path, **vectors()), among_all()
    other = {**models_rows(models), "old": np.ones((3, DIM), np.float32)}
    impostors = Pairs(np.arange(9), np.arange(9, 18), np.zeros(9, bool))
    cases = [
        ({"protocol": toy, "models": {"old": models["old"]}}, "a report of old"),
        ({"protocol": toy, "models": {**models, "free": models["old"]}}, "free"),
        ({"protocol": toy, "embeddings": {"old": other["old"]}}, "of old can't"),
        ({"protocol": toy, "embeddings": {**other, "alone": other["old"]}}, "new and embeddings"),
        ({"protocol": toy, "embeddings": other}, "3 old embeddings for 60 images"),
        ({"protocol": toy, "thumbnails": True}, "no pictures"),
        ({"protocol": Protocol("bare", Nothing(N))}, "neither pairs nor a search"),
        ({"protocol": Protocol("p", Nothing(N), pairs=impostors), "far": 0.1}, "FAR 1e-1 allows"),
        ({"protocol": Protocol("p", Nothing(N), pairs=impostors), "far": 0.3}, "not a FAR"),
    ]
    for given, words in cases:
        with pytest.raises(BctError, match=words):
            write_report(tmp_path / "out", **{"models": models, **given})
        assert not (tmp_path / "out").exists()
    many = Pairs(*np.zeros((2, 20), int), np.zeros(20, bool))
    with pytest.raises(BctError, match="impostor pairs only"):
        write_report(tmp_path / "out", Protocol("p", Nothing(N), pairs=many), models, far=0.1)


def test_figures_are_saved_before_they_are_drawn(tmp_path):
    """A picture that is gone costs no figures, and the page before it does not stay."""
    models, toy = stored(tmp_path, **vectors(old_noise=2.0)), among_all()
    write_report(tmp_path / "out", toy, models, resamples=20)

    def gone(image, out):
        raise BctError(f"image {image} can't be read", "look for it")

    toy.thumbnail = gone
    with pytest.raises(BctError, match="can't be read"):
        write_report(tmp_path / "out", toy, models, resamples=30, thumbnails=True)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["resamples"] == 30
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md"}
    assert report["verdict"]["headline"] in (tmp_path / "out/report.md").read_text()


def test_a_report_that_asks_something_else_is_not_replaced(tmp_path):
    """The same models and images: other pairs, another FAR, a search, a gallery of its own."""
    models, subjects = stored(tmp_path, **vectors()), LABELS
    first, second = (side.ravel() for side in np.meshgrid(np.arange(N), np.arange(N)))
    apart = first < second

    def of_pairs(chosen):
        a, b = first[chosen], second[chosen]
        pairs = Pairs(a, b, LABELS[a] == LABELS[b])
        return Protocol("toy", Nothing(N), pairs=pairs, subjects=subjects)

    queries, gallery = np.arange(0, N, 2), np.arange(1, N, 2)
    relevance = ByClass(LABELS[queries], LABELS[gallery])
    asked = [
        {"protocol": of_pairs(apart), "far": 0.1},
        {"protocol": of_pairs(apart), "far": 0.01},
        {"protocol": of_pairs(apart & (first > 2)), "far": 0.1},
        {"protocol": among_all()},
        {"protocol": by_item()},
        {"protocol": Protocol("toy", Nothing(N), search=Search(queries, gallery, relevance))},
        {"protocol": among_all(), "dimensions": "leading"},
    ]
    for there in asked:
        write_report(tmp_path / "out", **there, models=models, resamples=20, overwrite=True)
        before = (tmp_path / "out/report.json").read_bytes()
        for other in asked:
            if other is there:
                continue
            with pytest.raises(BctError, match="other models, data or settings"):
                write_report(tmp_path / "out", **other, models=models, resamples=20)
            assert (tmp_path / "out/report.json").read_bytes() == before
    write_report(tmp_path / "out", **asked[-1], models=models, resamples=30)  # more of the same


def test_what_was_left_out_of_a_protocol_is_said(tmp_path):
    """Its own remarks, queries that can find nothing wrong, vectors that are on both sides."""
    halves, models = (np.arange(0, N, 2), np.arange(1, N, 2)), vectors()
    models["old"][halves[0][3]] = models["old"][halves[1][7]]
    relevance = ByClass(*(LABELS[half] for half in halves))
    made = Protocol("toy", Nothing(N), search=Search(*halves, relevance), remarks=["Two are lost."])
    write_report(tmp_path / "out", made, stored(tmp_path, **models), resamples=20)
    said = json.loads((tmp_path / "out/report.json").read_text())["verdict"]["reasons"]
    assert said[-2] == "Two are lost."
    assert said[-1].startswith("the old embeddings: 1 queries have the very vector of another")
    for text in ("report.md", "report.html"):
        assert "Two are lost." in (tmp_path / "out" / text).read_text()
    models["old"][halves[0]] = models["old"][halves[1]]  # one file for both sides
    with pytest.raises(BctError, match="the old embeddings: each query's vector is in the gallery"):
        report_of(made, models)


def test_names_break_no_page(tmp_path):
    """Newlines and escape codes in names of files and sets are written as such."""
    folder = tmp_path / "a\n# b\x1b[31m"
    folder.mkdir()
    made = Protocol("x\ny", Nothing(N), search=among_all().search, remarks=["lost\x1b[0m"])
    write_report(tmp_path / "out", made, stored(folder, **vectors()), resamples=20)
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "\x1b" not in text and "x\\ny" in text and "lost\\x1b[0m" in text
        assert "\n# b" not in text


def test_a_folder_that_takes_no_report_is_refused_before_the_work(tmp_path):
    models, asked = stored(tmp_path, **vectors()), []

    class Watched(Nothing):
        def __len__(self):
            asked.append(1)
            return N

    made = Protocol("toy", Watched(N), search=among_all().search)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out/report.html").mkdir(parents=True)
    for folder in ("file", "file/below", "out"):
        with pytest.raises(BctError, match=r"is no folder|is a folder, and"):
            write_report(tmp_path / folder, made, models)
    assert not asked and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"resamples": 0}, "resamples is 0"),
        ({"cost": Cost(images_per_second=float("nan"))}, "images_per_second is nan"),
        ({"cost": Cost(100.0, gallery_size=-5)}, "gallery_size is -5"),
        ({"cost": Cost(100.0, 10, float("inf"))}, "price_per_hour is inf"),
    ],
)
def test_settings_that_mean_nothing(tmp_path, given, words):
    with pytest.raises(BctError, match=words):
        write_report(tmp_path / "out", among_all(), stored(tmp_path, **vectors()), **given)
    assert not (tmp_path / "out").exists()


# ---- the command line


def run(folder, *arguments):
    line = ["-o", folder / "report", "--cache", folder / "cache", "-j", "0", "--resamples", "20"]
    return run_script("eval/report.py", *line, *arguments)


@pytest.fixture
def sets(tmp_path):
    """Folders of the toy's classes and of the first four of them, and models of both together."""
    for name, classes in (("all", CLASSES), ("few", 4)):
        for label in range(classes):
            (tmp_path / name / f"c{label:02}").mkdir(parents=True)
            for k in range(EACH):
                (tmp_path / name / f"c{label:02}/{k}.jpg").write_bytes(jpeg(label, k, 16))
    for role, rows in vectors(old_noise=2.0).items():
        np.save(tmp_path / f"{role}.npy", rows)
        np.save(tmp_path / f"{role}_few.npy", 3 * rows[: 4 * EACH])
    return tmp_path


def test_a_search_from_the_command_line(sets):
    both = ["-m", sets / "new.npy", "-m_old", sets / "old.npy"]
    done = run(sets, *both, "--search", sets / "all", "--thumbnails")
    assert done.returncode == 0, done.stderr
    report = json.loads((sets / "report/report.json").read_text())
    assert report["verdict"]["headline"] in done.stdout
    ap = plain(np.load(sets / "new.npy"), np.load(sets / "old.npy"))[0]
    assert report["tests"]["new / old"]["retrieval"]["map"] == pytest.approx(ap.mean())
    page = Reader((sets / "report/report.html").read_text())
    assert page.tags["img"] == sum(map(len, report["flips"]["examples"].values())) > 0

    files = [f"{sets}/{role}_few.npy,{sets}/{role}.npy" for role in ("new", "old")]
    line = ["-m", files[0], "-m_old", files[1], "--search", sets / "few", "--gallery", sets / "all"]
    done = run(sets, *line)
    assert done.returncode == 1 and "results of other models" in done.stderr
    done = run(sets, *line, "--overwrite")
    assert done.returncode == 0, done.stderr
    report = json.loads((sets / "report/report.json").read_text())
    assert (report["protocol"]["queries"], report["protocol"]["gallery"]) == (4 * EACH, N)
    old = np.load(sets / "old.npy")
    ap, rank = (of_all[: 4 * EACH] for of_all in plain(old, old))  # none finds itself
    figures = report["tests"]["old / old"]["retrieval"]
    assert figures["map"] == pytest.approx(ap.mean()) and figures["top1"] == np.mean(rank == 1)
    assert "20 of 20 queries are in the gallery, too" in report["verdict"]["reasons"][-1]
    assert report["verdict"]["reasons"][-1] in done.stdout
    assert "20 queries, searched among 60 items" in " ".join(
        Reader((sets / "report/report.html").read_text()).words.split()
    )


def test_a_verification_set_from_the_command_line(tmp_path):
    """Pairs alone: no 1:N figures, and intervals over pairs."""
    same = [True, False] * 20
    images = [jpeg(i if s else i + 100 * k, k) for i, s in enumerate(same) for k in (0, 1)]
    (tmp_path / "toy.bin").write_bytes(pickle.dumps((images, same)))
    rng = np.random.default_rng(0)
    whose = np.array([i if s else i + 100 * k for i, s in enumerate(same) for k in (0, 1)])
    own, noise = rng.standard_normal((200, DIM))[whose], rng.standard_normal((80, DIM))
    for role, scale in (("old", 2.0), ("new", 0.5)):
        np.save(tmp_path / f"{role}.npy", (own + scale * noise).astype(np.float32))
    both = ["-m", tmp_path / "new.npy", "-m_old", tmp_path / "old.npy", "--far", "1e-1"]
    done = run(tmp_path, *both, "--set", tmp_path / "toy.bin", "--thumbnails")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["measure"] == {"key": "tar", "name": "TAR", "at": "FAR 1e-1"}
    assert report["compatibility"]["over"] == "pairs"
    assert not report["protocol"]["identification"] and report["protocol"]["pairs"] == 40
    x = {role: np.load(tmp_path / f"{role}.npy") for role in ("old", "new")}
    x = {role: rows / np.linalg.norm(rows, axis=1, keepdims=True) for role, rows in x.items()}
    scores = (x["new"][1::2] * x["old"][0::2]).sum(1)
    limit = np.sort(scores[~np.array(same)])[-3]  # two of twenty impostors may pass
    want = np.mean(scores[np.array(same)] > limit)
    assert report["compatibility"]["tar"]["new / old"] == want
    page = Reader((tmp_path / "report/report.html").read_text())
    assert "threshold" in page.text and page.tags["svg"] == 5
    assert "1:N" not in page.words and not re.search(r"\b(None|nan)\b", page.words)
    assert page.tags["img"] == sum(2 * len(p) for p in report["flips"]["examples"].values()) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--search", "nowhere"], "nowhere"),
        (["--search", "single"], "no query has a positive"),
        (["--search", "few"], "60 rows for 20 images"),
        (["--search", "all", "-m_alone", "wide.npy"], "16 and 24 dimensions"),
        (["--search", "all", "--resamples", "0"], "argument --resamples: it can't be '0'"),
        (["--set", "nothing.bin"], "nothing.bin does not exist"),
    ],
)
def test_refusals(sets, change, words):
    for label in range(N):
        (sets / "single" / f"c{label}").mkdir(parents=True)
        (sets / "single" / f"c{label}/0.jpg").write_bytes(jpeg(0, 0, 16))
    np.save(sets / "wide.npy", np.eye(N, 24, dtype=np.float32) + 1)
    change = [sets / one if (sets / one).exists() else one for one in change]
    done = run(sets, "-m", sets / "new.npy", "-m_old", sets / "old.npy", *change)
    assert done.returncode == 1 + ("argument" in words) and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not (sets / "report").exists()


def test_options_that_need_a_search(sets):
    for options, words in (
        (["--set", "x.bin", "--gallery", "y"], "--gallery is for --search"),
        (["--set", "x.bin", "--search", "y"], "not allowed with"),
        (["--search", "y", "--far", "1e-2"], "--far is for pairs"),
        (["--search", "y", "--resamples", "0"], "--resamples"),
    ):
        done = run(sets, "-m", "new.npy", "-m_old", "old.npy", *options)
        assert done.returncode == 2 and words in done.stderr


def test_an_image_set_searched_has_pictures(sets):
    protocol, pixels = open_search(sets / "few", sets / "all"), np.zeros((112, 112, 3), np.uint8)
    protocol.thumbnail(4 * EACH, pixels)
    first = pixels.copy()
    protocol.thumbnail(0, pixels)
    assert first.any() and (first == pixels).all()  # both sets begin with the same picture
