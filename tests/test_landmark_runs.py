"""eval/landmarks.py and eval/reid.py: published figures of real lists and descriptors, readings,
backfills, what refines a ranking, and what is refused."""

import csv
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from support import landmark_goldens as golden
from support.landmark_sets import drawn_landmarks, drawn_people
from support.programs import program

from backbones import get_model
from bct.errors import BctError
from bct.metrics.backfill import refreshed, refreshed_in_batches
from bct.protocols.compare import compare
from bct.protocols.landmarks import open_landmarks
from bct.protocols.market import open_market
from bct.protocols.search_backfill import PUBLISHED, read_orders
from bct.search.orders import UNCERTAINTIES, uncertainty

KS = (1, 5, 10)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a script's command line; gives its figures and its page."""

    def call(script, *arguments):
        line = [script, "-o", tmp_path / "out", "--name", "r", "--overwrite",
                "--resamples", "50", *arguments]  # fmt: skip
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        program(script).main()
        text = (tmp_path / "out/r.json").read_text()
        assert "NaN" not in text and "nan" not in (tmp_path / "out/r.md").read_text().split()
        return json.loads(text), (tmp_path / "out/r.md").read_text()

    return call


def saved(folder, name, query, gallery):
    """queries.npy,gallery.npy of a model."""
    folder.mkdir(exist_ok=True)
    for side, rows in (("q", query), ("g", gallery)):
        np.save(folder / f"{name}_{side}.npy", np.asarray(rows, np.float32))
    return f"{folder / name}_q.npy,{folder / name}_g.npy"


def check_readings(test, wanted, tolerance):
    for part, letter in (("all queries", "M"), ("easy", "E"), ("hard", "H")):
        found, of_reading = test[part], wanted[letter]
        assert found["map"] == pytest.approx(of_reading["mAP"], abs=tolerance)
        at = [found[f"mp{k}"] for k in KS]
        assert at == pytest.approx(of_reading["mP"], abs=tolerance)
        assert found["queries"] == of_reading["queries"]


# ---- real lists and real descriptors


@pytest.fixture(scope="module")
def oxford(shared, tmp_path_factory):
    """(new, old) stored descriptors of ROxford5k, and what they reach."""
    gnd = golden.gnd_of(shared, "roxford5k")
    features = golden.fvecs(shared / "data/landmarks/oxford_features/oxford_features.fvecs")
    row = {name: i for i, name in enumerate(sorted(gnd["imlist"] + gnd["qimlist"]))}
    wanted = json.loads((golden.folder(shared) / "real_oxford/expected.json").read_text())
    old = np.sign(features) * np.sqrt(np.abs(features))
    old[:, wanted["old_dims"] :] = 0
    sides = [[row[name] for name in gnd[key]] for key in ("qimlist", "imlist")]
    folder = tmp_path_factory.mktemp("oxford")
    models = [
        saved(folder, name, *(x[side] for side in sides))
        for name, x in (("new", features), ("old", old))
    ]
    return models, wanted


def test_real_oxford_and_its_backfill(run, shared, oxford, tmp_path):
    (new, old), wanted = oxford
    order = np.load(golden.folder(shared) / "real_oxford/order.npy")
    given = np.empty(len(order), np.float32)
    given[order] = -np.arange(len(order))
    np.save(tmp_path / "order.npy", given)
    root = shared / "data/landmarks/revisited"
    found, page = run(
        "landmarks", root, "--data", "roxford5k", "-m", new, "-m_old", old, "-m_alone", new,
        "--backfill", "random", tmp_path / "order.npy",
    )  # fmt: skip
    tests = found["tests"]
    check_readings(tests["new / new"], wanted["new_self"], 1e-7)
    check_readings(tests["old / old"], wanted["old_self"], 1e-7)
    check_readings(tests["new / old"], wanted["cross"], 1e-7)
    shown = [
        f"{100 * tests['new / new'][part]['map']:.2f}" for part in ("easy", "all queries", "hard")
    ]
    assert shown == ["28.89", "21.13", "4.60"]
    assert (found["readings"], found["average_precision"]) == (
        ["medium", "easy", "hard"],
        "trapezoid",
    )
    curve = found["backfill"]["new"][str(tmp_path / "order.npy")]["map"]
    wanted_at = {point["fraction"]: point["M"]["mAP"] for point in wanted["hot_refresh"]}
    for share, value in zip(curve["shares"], curve["values"], strict=True):
        if share in wanted_at:
            assert value == pytest.approx(wanted_at[share], abs=1e-7)
    assert [f"{100 * curve['values'][i]:.2f}" for i in (0, 5, 10)] == ["21.15", "19.50", "21.13"]
    assert curve["violations"]["drawdown"] > 0.01  # it dips
    assert (curve["negative_flips"][0], curve["ap_drops"][0]) == (0, 0)
    assert curve["negative_flips"][5] > 0 and curve["ap_drops"][5] > 0.5
    # figures of every reading, over landmarks
    judged = found["compatibility"]["new"]
    assert set(judged) == {"all queries", "easy", "hard"}
    for part, letter in (("all queries", "M"), ("easy", "E"), ("hard", "H")):
        gap = wanted["cross"][letter]["mAP"] - wanted["old_self"][letter]["mAP"]
        figures = judged[part]["map"]
        assert figures["difference"]["estimate"] == pytest.approx(gap, abs=1e-7)
        assert figures["over"] == "landmarks" and figures["compatible"] == (gap > 0)
        assert {"p_up", "p_comp", "p_1"} <= set(figures)
    for words in ("all queries (medium)", "mP@10", "95 % interval over landmarks",
                  "AP drops", "2 of 70 queries have no positive image (easy)"):  # fmt: skip
        assert words in page


def test_real_market_lists(run, shared, tmp_path):
    stored = golden.inputs(shared, "real_lists_descriptors")
    wanted = golden.expected(shared)["real/market1501"]
    model = saved(tmp_path / "m", "new", stored["market_query"], stored["market_test"])
    found, page = run("reid", shared / "data/reid", "-m", model)
    test = found["tests"]["new / new"]
    assert test["all queries"]["map"] == pytest.approx(wanted["mAP"], abs=1e-6)
    assert test["all queries"]["queries"] == wanted["queries"]
    for k, value in wanted["cmc"].items():
        if int(k) <= 20:
            assert test["cmc"][int(k) - 1] == pytest.approx(value, abs=1e-6)
    assert {"top1", "top5", "top10", "top20"} <= set(test["all queries"])
    assert "| all queries: query / gallery | top-1 | top-5 | top-10 | top-20 | mAP |" in page


def test_gldv2_by_its_official_rule(run, shared, tmp_path):
    wanted, inputs = golden.expected(shared)["gldv2"], golden.inputs(shared)
    protocols = golden.folder(shared) / "protocols"
    solution = protocols / "retrieval_solution_synthetic.csv"
    shutil.copy(solution, tmp_path / "retrieval_solution_v2.1.csv")
    ids = (protocols / "gldv2_index_ids.txt").read_text().split()
    (tmp_path / "index.csv").write_text("\n".join(["id", *ids]) + "\n")
    with open(solution, newline="") as file:
        rows = {row["id"]: row["Usage"] for row in csv.DictReader(file)}
    stored = wanted["query_ids"]
    for split in ("Private", "Public"):
        queries = [stored.index(name) for name, usage in rows.items() if usage == split]
        model = saved(tmp_path / split, "new", inputs["gld_query"][queries], inputs["gld_index"])
        found, page = run(
            "landmarks", tmp_path, "--data", "gldv2", "--split", split.lower(), "-m", model
        )
        figures = found["tests"]["new / new"]["all queries"]
        assert figures["map"] == pytest.approx(wanted["expected"][split]["mAP_at_100"], abs=1e-9)
        assert "mAP@100" in page


# ---- by hand: small searches against plain loops


def write_gnd(folder, rng, queries=14, gallery=60, landmarks=7):
    """A ground truth in which query i shows landmark i % 7; one has nothing, one no easy image."""
    folder.mkdir(exist_ok=True)
    shows = np.arange(gallery) % landmarks
    entries = []
    for i in range(queries):
        own = rng.permutation(np.flatnonzero(shows == i % landmarks)).tolist()
        entries.append({"bbx": [0, 0, 8, 8], "easy": own[:3], "hard": own[3:6], "junk": own[6:7]})
    entries[3] = dict(entries[3], easy=[], hard=[])
    entries[5] = dict(entries[5], easy=[])
    said = {
        "imlist": [f"g{k:03d}" for k in range(gallery)],
        "qimlist": [f"q{k:03d}" for k in range(queries)],
        "gnd": entries,
    }
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(said, protocol=2))
    return shows, np.arange(queries) % landmarks, entries


def embedded(rng, shows, noise, centres):
    return centres[shows] + noise * rng.standard_normal((len(shows), centres.shape[1]))


@pytest.fixture
def small(tmp_path):
    """A folder with gnd_small.pkl, and stored embeddings of two models by name."""
    rng = np.random.default_rng(3)
    shows, asked, entries = write_gnd(tmp_path / "set", rng)
    centres = rng.standard_normal((7, 12))
    arrays = {
        name: [embedded(rng, side, noise, centres) for side in (asked, shows)]
        for name, noise in (("old", 1.1), ("new", 0.9), ("alone", 0.7))
    }
    models = {name: saved(tmp_path / "m", name, *sides) for name, sides in arrays.items()}
    arrays = {name: [x.astype(np.float32) for x in sides] for name, sides in arrays.items()}
    return tmp_path / "set", models, arrays, entries


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


GRADES = {
    "all queries": (("easy", "hard"), ("junk",)),
    "easy": (("easy",), ("junk", "hard")),
    "hard": (("hard",), ("junk", "easy")),
}


def plain(scores, entries, part):
    """AP by trapezoids and mP@k of each query, None without a positive; and ranks of the first."""
    good, ignored = GRADES[part]
    ap, at, first = [], [], []
    for row, entry in zip(scores, entries, strict=True):
        positive = {i for grade in good for i in entry[grade]}
        out = {i for grade in ignored for i in entry[grade]}
        ranking = [i for i in np.argsort(-row, kind="stable") if i not in out]
        places = [p for p, i in enumerate(ranking) if i in positive]
        if not places:
            continue
        total = 0
        for j, place in enumerate(places):
            before = 1.0 if place == 0 else j / place
            total += (before + (j + 1) / (place + 1)) / 2
        ap.append(total / len(places))
        ends = [min(max(places) + 1, k) for k in KS]
        at.append([np.mean([i in positive for i in ranking[:end]]) for end in ends])
        first.append(places[0])
    return np.array(ap), np.array(at), np.array(first)


def test_readings_against_plain_loops(run, small):
    folder, models, arrays, entries = small
    found, page = run(
        "landmarks", folder, "--data", "small", "-m", models["new"], "-m_old", models["old"],
        "-m_alone", models["alone"], "--backfill", "random",
    )  # fmt: skip
    for name, test in found["tests"].items():
        query, gallery = name.split(" / ")
        scores = unit(arrays[query][0].astype(float)) @ unit(arrays[gallery][1].astype(float)).T
        for part, without in (("all queries", 1), ("easy", 2), ("hard", 1)):
            ap, at, first = plain(scores, entries, part)
            figures = test[part]
            assert figures["map"] == pytest.approx(ap.mean(), abs=1e-9)
            assert [figures[f"mp{k}"] for k in KS] == pytest.approx(at.mean(0).tolist(), abs=1e-9)
            assert figures["top1"] == pytest.approx((first == 0).mean())
            assert (figures["queries"], figures["without"]) == (14 - without, without)
    assert "1 of 14 queries have no positive image (medium)" in page
    assert found["compatibility"]["new"]["easy"]["mp5"]["over"] == "landmarks"
    assert set(found["backfill"]["new"]["random"]) == {"top1", "top5", "top10", "map"}


def test_the_table_over_seeds_has_the_readings(run, small, monkeypatch, tmp_path):
    folder, models, _, _ = small
    found, _ = run(
        "landmarks", folder, "--data", "small", "-m", models["new"], "-m_old", models["old"],
        "-m_alone", models["alone"],
    )  # fmt: skip
    (tmp_path / "runs/seed0").mkdir(parents=True)
    shutil.copytree(tmp_path / "out", tmp_path / "runs/seed0/retrieval")
    monkeypatch.setattr(sys, "argv", ["table", str(tmp_path / "runs")])
    program("retrieval_table").main()
    table = json.loads((tmp_path / "runs/retrieval_table.json").read_text())["map"]
    (of_new,) = (rows[0] for name, rows in table.items() if name != "alone")
    for shown, part in (("all", "all queries"), ("easy", "easy"), ("hard", "hard")):
        assert of_new[shown]["cross"] == found["tests"]["new / old"][part]["map"]


def test_a_backfill_against_galleries_that_are_mixed(run, small, tmp_path):
    folder, models, arrays, entries = small
    given = np.random.default_rng(0).permutation(60).astype(np.float32)
    np.save(tmp_path / "given.npy", given)
    found, _ = run(
        "landmarks", folder, "--data", "small", "-m", models["new"], "-m_old", models["old"],
        "--backfill", tmp_path / "given.npy",
    )  # fmt: skip
    curve = found["backfill"]["new"][str(tmp_path / "given.npy")]
    order = np.argsort(-given, kind="stable")
    query = unit(arrays["new"][0].astype(float))
    values, first, ap = [], [], []
    for mask in refreshed(order, np.linspace(0, 1, 11)):
        assert not first or mask.sum() == np.ceil(len(first) * 6)
        mixed = np.where(
            mask[:, None],
            unit(arrays["new"][1].astype(float)),
            unit(arrays["old"][1].astype(float)),
        )
        each, _, rank = plain(query @ mixed.T, entries, "all queries")
        ap.append(each), first.append(rank == 0), values.append(each.mean())
    assert curve["map"]["values"] == pytest.approx(values, abs=1e-9)
    assert curve["top1"]["values"] == pytest.approx([hit.mean() for hit in first])
    flips = [np.mean(first[0] & ~hit) for hit in first]
    assert curve["map"]["negative_flips"] == pytest.approx(flips)
    drops = [np.mean(each < ap[0] - 1e-12) for each in ap]
    assert curve["map"]["ap_drops"] == pytest.approx(drops)
    fall = max(max(values[:i]) - v for i, v in enumerate(values) if i)
    assert curve["map"]["violations"]["drawdown"] == pytest.approx(max(fall, 0), abs=1e-9)
    assert curve["map"]["area"] == pytest.approx(np.trapezoid(values, dx=0.1))


def test_the_published_backfill_takes_whole_batches(run, small):
    folder, models, arrays, entries = small
    found, page = run(
        "landmarks", folder, "--data", "small", "-m", models["new"], "-m_old", models["old"],
        "--backfill", "random", "--parity", "published",
    )  # fmt: skip
    curve = found["backfill"]["new"]["random"]["map"]
    assert curve["shares"] == [0, 0.25, 0.5, 0.75, 1] and found["parity"] == "published"
    masks = refreshed_in_batches(60, PUBLISHED)
    assert masks.sum(1).tolist()[1:4] != [15, 30, 45]  # batches of 16, 16, 16, 12
    query = unit(arrays["new"][0].astype(float))
    for mask, value in zip(masks, curve["values"], strict=True):
        mixed = np.where(
            mask[:, None],
            unit(arrays["new"][1].astype(float)),
            unit(arrays["old"][1].astype(float)),
        )
        assert value == pytest.approx(
            plain(query @ mixed.T, entries, "all queries")[0].mean(), abs=1e-9
        )
    assert "| 25 % refreshed |" in page


def test_what_refines_a_ranking(run, small, tmp_path):
    """Whitened, expanded and re-ranked, with a backfill of galleries that are really mixed."""
    folder, models, arrays, entries = small
    rows = np.random.default_rng(8).standard_normal((200, 12)) * np.linspace(1, 3, 12) + 0.3
    np.save(tmp_path / "train.npy", rows.astype(np.float32))
    common = ("landmarks", folder, "--data", "small", "-m", models["new"], "-m_old", models["old"])
    found, page = run(*common, "--whiten", tmp_path / "train.npy", "--backfill", "random")
    x = unit(rows.astype(np.float32).astype(float))
    values, directions = np.linalg.eigh(np.cov(x.T, bias=True))

    def white(y):
        return unit((unit(y.astype(float)) - x.mean(0)) @ (directions / np.sqrt(values)))

    new, old = ([white(side) for side in arrays[name]] for name in ("new", "old"))
    for name, scores in (("new / new", new[0] @ new[1].T), ("new / old", new[0] @ old[1].T)):
        wanted = plain(scores, entries, "easy")[0].mean()
        assert found["tests"][name]["easy"]["map"] == pytest.approx(wanted, abs=1e-6)
    assert "embeddings whitened" in page and found["whiten"]
    curve = found["backfill"]["new"]["random"]["map"]["values"]
    assert curve[0] == pytest.approx(found["tests"]["new / old"]["all queries"]["map"])

    found, page = run(*common, "--expand", 2, 3, "--backfill", "random")
    query, gallery = (unit(side.astype(float)) for side in arrays["new"])
    scores = query @ gallery.T
    best = np.argsort(-scores, axis=1)[:, :3]
    weight = np.maximum(np.take_along_axis(scores, best, 1), 0) ** 2
    asked = query + np.einsum("qk,qkd->qd", weight, gallery[best])
    wanted = plain(asked @ gallery.T, entries, "all queries")[0].mean()
    assert found["tests"]["new / new"]["all queries"]["map"] == pytest.approx(wanted, abs=1e-6)
    curve = found["backfill"]["new"]["random"]["map"]["values"]
    assert curve[-1] == pytest.approx(wanted, abs=1e-6)
    assert "expanded by their best 3 (alpha 2)" in page and found["expand"] == [2, 3]


def test_reranked_market(run, shared, tmp_path):
    wanted, inputs = golden.expected(shared), golden.inputs(shared)
    people = wanted["market1501"]
    for part, names in (("query", people["query_names"]), ("test", people["gallery_names"])):
        lines = [f"{name.split('_')[0]},{name}" for name in names]
        (tmp_path / f"small_{part}.csv").write_text("\n".join(lines) + "\n")
    model = saved(tmp_path / "m", "new", inputs["mkt_query"], inputs["mkt_gallery"])
    case = wanted["rerank"]["paper"]
    how = ("--rerank", case["k1"], case["k2"], case["lam"])
    found, page = run("reid", tmp_path, "-m", model, *how)
    figures = found["tests"]["new / new"]["all queries"]
    assert figures["map"] == pytest.approx(case["mAP"], abs=1e-6)
    assert figures["top1"] == pytest.approx(case["rank1"], abs=1e-7)
    assert "re-ranked (k1" in page
    found, page = run("reid", tmp_path, "-m", model, *how, "--parity", "published")
    half = found["tests"]["new / new"]["all queries"]["map"]
    assert half == pytest.approx(case["mAP_as_published_float16"], abs=1e-6)
    assert found["rerank_parity"] == "published"


# ---- networks on drawn images


def write_network(folder, seed, size):
    """A small network that nobody has trained, with a softmax classifier of 5 classes."""
    torch.manual_seed(seed)
    folder.mkdir()
    network = get_model("gem_w16", embedding_size=8)
    state = {**network.state_dict(), "cls_fc.weight": torch.randn(5, 8)}
    torch.save(state, folder / "model.pt")
    view = {"size": size, "crop": "none", "mirror": False, "pixels": "imagenet"}
    said = {"network": "gem_w16", "embedding_size": 8, "view": view}
    (folder / "model.json").write_text(json.dumps(said))
    return folder / "model.pt"


@pytest.mark.parametrize("what", ["people", "landmarks"])
def test_what_networks_have_left_stands_for_them(run, shared, tmp_path, what):
    """Embeddings that were saved, in place of the networks, give every figure again."""
    if what == "people":
        test, size = ("reid", drawn_people(shared)), [64, 32]
    else:
        root = drawn_landmarks(shared) / "gldv2"
        test, size = ("landmarks", root, "--data", "gldv2"), 32
    new, old = (write_network(tmp_path / f"m{seed}", seed, size) for seed in (1, 2))
    common = ("--amp", "off", "-j", "0", "--cache", tmp_path / "cache")
    found, page = run(*test, "-m", new, "-m_old", old, *common, "-E",
                      "--backfill", "least-confidence", "random")  # fmt: skip
    curves = found["backfill"]["new"]
    assert curves["least-confidence"]["map"]["values"][0] == pytest.approx(
        found["tests"]["new / old"]["all queries"]["map"]
    )
    assert "left out" in page  # of people the boxes of nobody, of landmarks the ignored queries
    kept = {
        label: ",".join(
            str(tmp_path / f"out/r_{label}_{side}.npy") for side in ("queries", "gallery")
        )
        for label in ("new", "old")
    }
    again, _ = run(*test, "-m", kept["new"], "-m_old", kept["old"])
    assert again["tests"] == found["tests"]
    assert again["compatibility"] == found["compatibility"]


# ---- orders by the old classifier


def test_uncertainties_in_plain_numpy():
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((40, 6)), rng.standard_normal((5, 6)), rng.standard_normal(5)
    for unit_rows in (False, True):
        logits = (unit(x) if unit_rows else x).astype(np.float32).astype(float) @ w.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        two = -np.sort(-p, axis=1)[:, :2]
        wanted = {
            "least-confidence": 1 - two[:, 0],
            "margin": 1 - (two[:, 0] - two[:, 1]),
            "entropy": -(p * np.log(p)).sum(1),
        }
        for kind in UNCERTAINTIES:
            found = uncertainty(
                x.astype(np.float32), torch.from_numpy(w), torch.from_numpy(b), unit_rows, kind
            )
            np.testing.assert_allclose(found, wanted[kind], rtol=1e-5, atol=1e-6)
    sure = uncertainty(np.array([[50.0, 0], [60.0, 0]]), torch.eye(2), kind="least-confidence")
    assert 0 < sure[1] < sure[0] < 1e-20  # 1 - p would be 0 for both
    for weight, kind, words in (
        (torch.eye(2), "temperature", "no uncertainty 'temperature'"),
        (torch.eye(3), "margin", "3 dimensions"),
        (torch.ones(1, 2), "margin", "1 classes"),
    ):
        with pytest.raises(BctError, match=words):
            uncertainty(np.ones((4, 2)), weight, kind=kind)


class Old:
    """A model file with its classifier."""

    def __init__(self, file, view="seen", network=None):
        self.file, self.view, self.network = str(file), view, network


def test_orders_of_the_old_models_classifier(small, tmp_path):
    folder, _, arrays, _ = small
    protocol = open_landmarks(folder, "small", stored=True)
    weight = torch.from_numpy(np.random.default_rng(2).standard_normal((7, 12))).float()
    torch.save({"fc.weight": weight, "other": torch.zeros(3)}, tmp_path / "model.pt")
    orders = read_orders(UNCERTAINTIES, protocol, Old(tmp_path / "model.pt"))
    gallery = arrays["old"][1]
    for kind, order in orders.items():
        course = order(None, gallery)
        first = np.argsort(-uncertainty(gallery, weight, kind=kind), kind="stable")[:30]
        (mask,) = [way[5] for way in course.ways]
        assert set(np.flatnonzero(mask)) == set(first)
        assert all((a <= b).all() for a, b in zip(course.ways[0], course.ways[0][1:], strict=False))
    # beside an imported model lies the classifier that it was trained with
    torch.save({"weight": -weight}, tmp_path / "classifier.pt")
    (tmp_path / "model.json").write_text(json.dumps({"head_unit": True}))
    (order,) = read_orders(["entropy"], protocol, Old(tmp_path / "model.pt")).values()
    first = np.argsort(-uncertainty(gallery, -weight, None, True), kind="stable")[:30]
    assert set(np.flatnonzero(order(None, gallery).ways[0][5])) == set(first)


def refused(words, call, *arguments):
    with pytest.raises(BctError) as error:
        call(*arguments)
    assert words in error.value.what, error.value.what
    assert "\n" not in error.value.what + error.value.do and error.value.do


def test_orders_that_cannot_be_had(run, small, tmp_path):
    folder, models, _, _ = small
    protocol = open_landmarks(folder, "small", stored=True)
    refused("the class is not known", read_orders, ["distance"], protocol, None)
    refused("comes without one", read_orders, ["margin"], protocol, Old("old.npy", None))
    refused("is no order", read_orders, ["surprise"], protocol, None)
    torch.save({"a": torch.zeros(3, 3, 3), "b": torch.ones(2)}, tmp_path / "x.pt")
    refused("holds no classifier", read_orders, ["entropy"], protocol, Old(tmp_path / "x.pt"))
    both = ("landmarks", folder, "--data", "small", "-m", models["new"], "-m_old", models["old"])
    refused("comes without one", run, *both, "--backfill", "entropy")
    assert not (tmp_path / "out").exists()  # nothing was begun


# ---- other bad input


def test_what_is_refused(run, small, tmp_path):
    folder, models, arrays, _ = small
    both = ("landmarks", folder, "--data", "small", "-m", models["new"])
    short = saved(tmp_path / "m", "short", arrays["new"][0][1:], arrays["new"][1])
    refused("13 rows", run, *both[:4], "-m", short)
    refused("of 74 and 6 among 74 items", run, *both, "--rerank", 74, 6, 0.3)
    refused("has no splits", run, *both, "--split", "public")
    refused("--expand and --rerank", run, *both, "--metric", "l2", "--rerank", 5, 2, 0.3)
    refused("gldv2 has neither", run, "landmarks", folder, "--data", "gldv2", "--standard",
            "-m", models["new"])  # fmt: skip
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).standard_normal((30, 9)))
    refused("none.npy do not exist", run, *both, "--whiten", tmp_path / "none.npy")
    refused("--whiten has rows of 9 dimensions", run, *both, "--whiten", tmp_path / "wide.npy")
    for more in (
        ("--whiten", "a", "b"),
        ("--rerank", "1.5", "2", "0.3"),
        ("--expand", "3", "0"),
        ("--rerank", "5", "2", "1.1"),
    ):
        with pytest.raises(SystemExit):
            run(*both, *more)
    gone, _ = run(*both)
    assert "compatibility" not in gone


def test_one_line_says_who_is_compatible(small):
    folder, _, arrays, _ = small
    protocol = open_landmarks(folder, "small", stored=True)
    rows = {name: np.concatenate(sides) for name, sides in arrays.items()}
    verdict = compare(protocol, rows["old"], rows["new"], rows["alone"], resamples=50)
    assert verdict.over == "landmarks" and verdict.measure == "mAP"
    scores = unit(arrays["new"][0].astype(float)) @ unit(arrays["old"][1].astype(float)).T
    ap = plain(scores, small[3], "all queries")[0]
    assert verdict.cross == pytest.approx(ap.mean(), abs=1e-9)


def test_the_page_of_a_report(monkeypatch, small, tmp_path):
    folder, models, arrays, entries = small
    line = ["report", "--landmarks", "small", folder, "-m", models["new"], "-m_old", models["old"],
            "-m_alone", models["alone"], "-o", tmp_path / "rep", "--resamples", "50",
            "--images-per-second", "10"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    program("report").main()
    report = json.loads((tmp_path / "rep/report.json").read_text())
    scores = unit(arrays["new"][0].astype(float)) @ unit(arrays["old"][1].astype(float)).T
    for reading, part in (("medium", "all queries"), ("easy", "easy"), ("hard", "hard")):
        found = report["tests"]["new / old"]["readings"][reading]["map"]
        assert found == pytest.approx(plain(scores, entries, part)[0].mean(), abs=1e-9)
    medium = report["tests"]["new / old"]["readings"]["medium"]["map"]
    assert report["compatibility"]["map"]["new / old"] == medium
    assert report["compatibility"]["over"] == "landmarks"
    text = (tmp_path / "rep/report.md").read_text()
    assert (
        "| query / gallery | medium | easy | hard |" in text and "nan" not in text.lower().split()
    )
    page = (tmp_path / "rep/report.html").read_text()
    assert "new / old, easy" in page and "by trapezoids" in page
    line[1:4] = ["--reid", folder]
    monkeypatch.setattr(sys, "argv", [*map(str, line), "--overwrite"])
    refused("has neither query/", program("report").main)


def test_results_of_another_ground_truth_are_not_replaced(monkeypatch, small, tmp_path):
    """The same names, other lists: images and models have not changed."""
    folder, models, _, entries = small

    def call(*more):
        line = ["x", folder, "--data", "small", "-m", models["new"], "-o", tmp_path / "out", *more]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        program("landmarks").main()

    call("--resamples", "20")
    page = next((tmp_path / "out").glob("*.json"))
    before = page.read_bytes()
    said = pickle.loads((folder / "gnd_small.pkl").read_bytes())
    said["gnd"] = [dict(entry, junk=[]) for entry in entries]
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(said, protocol=2))
    refused("holds the results of other models, data or settings", call)
    assert page.read_bytes() == before
    call("--overwrite")
    assert page.read_bytes() != before


def test_refinements_that_cannot_be_are_refused_before_the_work(run, small, monkeypatch, capsys):
    folder, models, _, _ = small
    monkeypatch.setattr("bct.protocols.search_run.embed_models", None)  # not called
    both = ("landmarks", folder, "--data", "small", "-m", models["new"])
    with pytest.raises(SystemExit, match="2"):
        run(*both, "--rerank", 5, 2, 1.3)
    assert "--rerank takes a LAMBDA from 0 to 1" in capsys.readouterr().err
    refused("among 74 items", run, *both, "--rerank", 74, 2, 0.3)


def test_what_tests_would_refuse_is_refused_before_the_work(run, small, monkeypatch, tmp_path):
    """Widths that do not meet, in a page or a report; a k beyond what GLDv2 looks at."""
    folder, models, arrays, _ = small
    for module in ("bct.protocols.search_run", "bct.report.write"):
        monkeypatch.setattr(f"{module}.embed_models", None)  # not called
    narrow = saved(tmp_path / "m", "narrow", *(rows[:, :9] for rows in arrays["old"]))
    two = ("-m", models["new"], "-m_old", narrow)
    line = ["report", "--landmarks", "small", folder, *two, "-o", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    refused("9 and 12 dim", program("report").main)
    refused("12 and 9 dim", run, "landmarks", folder, "--data", "small", *two)
    (tmp_path / "index.csv").write_text("id\naaaa\nbbbb\n")
    solution = "id,images,Usage\ncccc,aaaa,Private\n"
    (tmp_path / "retrieval_solution_v2.1.csv").write_text(solution)
    gldv2 = ("landmarks", tmp_path, "--data", "gldv2", "-m", models["new"])
    refused("top-200 is asked for of the first 100", run, *gldv2, "--ks", 1, 200)


def test_uncertainties_may_be_of_the_whole_list(tmp_path):
    """As embeddings may, of which an order is made: boxes of nobody are in the list, too."""
    names = {
        "query": ["0001_c1s1_1.jpg", "0002_c1s1_1.jpg"],
        "test": ["-1_c1s1_1.jpg", "0001_c2s1_1.jpg", "0002_c2s1_1.jpg", "0002_c3s1_1.jpg"],
    }
    for part, listed in names.items():
        lines = [f"{name.split('_')[0]},{name}" for name in listed]
        (tmp_path / f"market_{part}.csv").write_text("\n".join(lines))
    protocol = open_market(tmp_path, stored=True)
    np.save(tmp_path / "whole.npy", np.float32([9, 1, 3, 2]))
    np.save(tmp_path / "left.npy", np.float32([[1], [3], [2]]))
    np.save(tmp_path / "two.npy", np.float32([3, 2]))
    for name in ("whole", "left"):
        file = str(tmp_path / f"{name}.npy")
        course = read_orders([file], protocol, None)[file](np.zeros((3, 1)), None)
        assert course.ways[0][4].tolist() == [False, True, True]  # ceil(0.4 * 3) of them
    refused("has 2 rows for 3 images", read_orders, [str(tmp_path / "two.npy")], protocol, None)


def test_a_mapped_gallery_with_distractors_is_one_file_or_two(run, small, tmp_path):
    folder, models, arrays, _ = small
    (tmp_path / "more.txt").write_text("d1\nd2\nd3\n")
    rng = np.random.default_rng(5)
    more, mapped = (rng.standard_normal((n, 12)).astype(np.float32) for n in (3, 63))
    np.save(tmp_path / "more.npy", more)
    np.save(tmp_path / "mapped.npy", mapped)
    np.save(tmp_path / "first.npy", mapped[:60])
    np.save(tmp_path / "last.npy", mapped[60:])
    two = (
        "landmarks", folder, "--data", "small", "--distractors", tmp_path / "more.txt",
        "-m", f"{models['new']},{tmp_path / 'more.npy'}",
        "-m_old", f"{models['old']},{tmp_path / 'more.npy'}", "--backfill", "random",
    )  # fmt: skip
    one = run(*two, "--old-gallery", tmp_path / "mapped.npy")[0]
    parts = run(*two, "--old-gallery", f"{tmp_path / 'first.npy'},{tmp_path / 'last.npy'}")[0]
    assert one["tests"] == parts["tests"] and one["backfill"] == parts["backfill"]
    query = unit(arrays["new"][0].astype(float))
    ap = plain(query @ unit(mapped.astype(float)).T, small[3], "all queries")[0]
    assert one["tests"]["new / transformed"]["all queries"]["map"] == pytest.approx(ap.mean())
    refused("has 60 rows for 63", run, *two, "--old-gallery", tmp_path / "first.npy")
