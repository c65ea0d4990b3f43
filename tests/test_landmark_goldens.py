"""Retrieval of landmarks and people against what the published evaluations gave."""

import csv
import json

import numpy as np
import pytest
from support import landmark_goldens as golden

from bct.metrics.average_precision import average_precision, precision_at
from bct.metrics.backfill import Curve, area, refreshed, regressions, violations
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.positions import LATER, Positions
from bct.metrics.relevance import ByClass, ByItem, Rows
from bct.metrics.reranking import reranked, retrieve_reranked
from bct.metrics.retrieval import cmc, retrieve, retrieve_readings

KS = (1, 5, 10)


@pytest.fixture(scope="module")
def expected(shared):
    return golden.expected(shared)


@pytest.fixture(scope="module")
def inputs(shared):
    return golden.inputs(shared)


def check_readings(found, wanted, tolerance):
    """mAP and mP@k of each reading, and those of each query where they are given."""
    for name, of_reading in wanted.items():
        result = found[name]
        assert result.mean_ap == pytest.approx(of_reading["mAP"], abs=tolerance)
        at = [result.mean_precision[k] for k in KS]
        assert at == pytest.approx(of_reading["mP"], abs=tolerance)
        assert result.queries == of_reading["queries"]
        if "ap" in of_reading:
            np.testing.assert_allclose(result.ap, numbers(of_reading["ap"]), rtol=0, atol=tolerance)
        if "p_at" in of_reading:
            precision = np.stack([result.precision[k] for k in KS], axis=1)
            wanted_at = np.stack([numbers(row) for row in of_reading["p_at"]])
            np.testing.assert_allclose(precision, wanted_at, rtol=0, atol=tolerance)


def numbers(values):
    """null is what counts in no mean."""
    return np.array([np.nan if value is None else value for value in values])


def revisited(query, gallery, gnd):
    return retrieve_readings(query, gallery, golden.readings(gnd), ks=KS, way="trapezoid")


def test_revisited(expected, inputs):
    gnd = expected["revisited"]["gnd"]
    found = revisited(inputs["rev_query"], inputs["rev_db"], gnd)
    check_readings(found, expected["revisited"]["expected"], 1e-9)
    assert {name: result.without for name, result in found.items()} == {"E": 2, "M": 1, "H": 2}
    of_one = {
        name: retrieve(inputs["rev_query"], inputs["rev_db"], reading, ks=KS, way="trapezoid")
        for name, reading in golden.readings(gnd).items()
    }
    check_readings(of_one, expected["revisited"]["expected"], 1e-9)


def test_revisited_average_precision_of_ranks(expected):
    for case, ap in expected["revisited"]["compute_ap"].items():
        ranks = json.loads(case[case.index("[") : case.index("]") + 1])
        number = int(case.split()[-1])
        places = [rank + 1 for rank in ranks] + [LATER] * (number - len(ranks))
        positions = Positions(np.array([0, number]), np.array(places))
        assert average_precision(positions, "trapezoid")[0] == pytest.approx(ap, abs=1e-9)


def test_hot_refresh(expected, inputs):
    wanted, gnd = expected["hot_refresh"], expected["revisited"]["gnd"]
    query, order = inputs["hot_query_new"], inputs["hot_order"]
    galleries = [inputs["hot_db_old"], inputs["hot_db_new"]]
    points = wanted["points"]
    fractions = np.array([point["fraction"] for point in points])
    rows = refreshed(order, fractions)
    assert rows.sum(1).tolist() == [point["refreshed"] for point in points]
    for name, reading in golden.readings(gnd).items():
        (found,) = retrieve_mixed(query, galleries, [rows], reading, ks=KS, way="trapezoid")
        curve = Curve(fractions, np.array([result.mean_ap for result in found]))
        assert curve.values == pytest.approx(
            [p["revisited"][name]["mAP"] for p in points], abs=1e-9
        )
        assert area(curve) == pytest.approx(wanted["area"][name], abs=1e-9)
        drawdown = violations(curve).drawdown
        assert drawdown == pytest.approx(wanted["max_drawdown"][name], abs=1e-9)
        for row, result, point in zip(rows, found, points, strict=True):
            plain = np.where(row[:, None], *galleries[::-1])
            alone = retrieve(query, plain, reading, ks=KS, way="trapezoid")
            check_readings(
                {name: alone}, {name: point["revisited"][name] | {"queries": alone.queries}}, 1e-9
            )
            np.testing.assert_allclose(result.ap, alone.ap, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(result.rank, alone.rank)
    labels = ByClass(inputs["hot_labels_query"], inputs["hot_labels_db"])
    (found,) = retrieve_mixed(query, galleries, [rows], labels)
    assert [r.mean_ap for r in found] == pytest.approx([p["label_mAP"] for p in points], abs=1e-9)
    assert [r.top[1] for r in found] == pytest.approx([p["top1"] for p in points], abs=1e-9)
    lost = regressions(np.stack([r.ap for r in found]), np.stack([r.rank for r in found]))
    assert lost.negative_flips.tolist() == [p["negative_flips_top1"] for p in points]
    old = revisited(inputs["rev_query"], inputs["hot_db_old"], gnd)
    for name, mean_ap in wanted["old_self"].items():
        assert old[name].mean_ap == pytest.approx(mean_ap, abs=1e-9)


# ---- Google Landmarks v2


@pytest.fixture(scope="module")
def landmarks(shared, expected, inputs):
    """usage -> (rows of gld_query, relevance)."""
    protocols = golden.folder(shared) / "protocols"
    index = {
        name: i for i, name in enumerate((protocols / "gldv2_index_ids.txt").read_text().split())
    }
    with open(protocols / "retrieval_solution_synthetic.csv", newline="") as file:
        solution = {row["id"]: row for row in csv.DictReader(file)}
    out = {}
    for usage in ("Private", "Public"):
        of_usage = [
            i
            for i, name in enumerate(expected["gldv2"]["query_ids"])
            if solution[name]["Usage"] == usage
        ]
        images = [solution[expected["gldv2"]["query_ids"][i]]["images"].split() for i in of_usage]
        positive = Rows.of_lists([[index[name] for name in names] for names in images])
        out[usage] = np.array(of_usage), ByItem(positive, Rows.of_lists([[]] * len(of_usage)))
    return out


@pytest.mark.parametrize("usage", ["Private", "Public"])
def test_gldv2(expected, inputs, landmarks, usage):
    rows, relevance = landmarks[usage]
    wanted = expected["gldv2"]["expected"][usage]
    ks = tuple(int(k) for k in wanted["mean_precision_at"])
    query, gallery = inputs["gld_query"][rows], inputs["gld_index"]
    result = retrieve(query, gallery, relevance, ks=ks, way="first100")
    assert result.mean_ap == pytest.approx(wanted["mAP_at_100"], abs=1e-9)
    assert result.mean_ap != pytest.approx(
        wanted["mAP_with_denominator_n_positives_WRONG"], abs=1e-4
    )
    names = [expected["gldv2"]["query_ids"][i] for i in rows]
    np.testing.assert_allclose(result.ap, [wanted["ap"][name] for name in names], rtol=0, atol=1e-9)
    at = {str(k): value for k, value in result.mean_precision.items()}
    assert at == pytest.approx(wanted["mean_precision_at"], abs=1e-9)
    assert result.rank.mean() == pytest.approx(wanted["mean_first_position"], abs=1e-9)
    assert np.median(result.rank) == wanted["median_first_position"]
    (mixed,) = retrieve_mixed(
        query, [gallery], [np.zeros((1, len(gallery)), int)], relevance, way="first100"
    )
    np.testing.assert_allclose(mixed[0].ap, result.ap, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(mixed[0].rank, result.rank)


def test_gldv2_sizes_around_100(expected, landmarks):
    """The denominator is min(n, 100): queries on both sides of it."""
    sizes = {int(n) for _, relevance in landmarks.values() for n in relevance.positive.counts()}
    assert {150, 120, 99} <= sizes
    of = [Positions(np.array([0, n]), np.arange(1, n + 1)) for n in (99, 100, 101, 150)]
    assert [average_precision(one, "first100")[0] for one in of] == [1, 1, 1, 1]


def test_gldv2_official_unit_test_and_duplicates(expected):
    """Ranked lists as a submission has them: a duplicate keeps its place and counts once."""
    official = expected["gldv2"]["official_unit_test"]
    positions = submitted(official["solution"], official["predictions"])
    assert average_precision(positions, "first100").mean() == pytest.approx(
        official["mAP"], abs=1e-6
    )
    at = [precision_at(positions, k, whole=True).mean() for k in (1, 2)]
    assert at == pytest.approx(official["mean_precisions_at_1_2"])
    case = expected["gldv2"]["duplicates"]
    positions = submitted({"q": case["solution"]}, {"q": case["predictions"]})
    assert average_precision(positions, "first100")[0] == pytest.approx(case["mAP"], abs=1e-9)


def submitted(solution, predictions):
    places = []
    for query, images in solution.items():
        ranked = predictions.get(query, [])
        places.append(sorted(ranked.index(x) + 1 if x in ranked else LATER for x in images))
    offsets = np.cumsum([0, *map(len, places)])
    return Positions(offsets, np.concatenate(places))


# ---- Market-1501


@pytest.mark.parametrize("test", ["self", "cross"])
def test_market(expected, inputs, test):
    wanted = expected["market1501"]
    names = wanted["gallery_names"]
    kept = golden.kept(names)
    assert kept.sum() == wanted["gallery_kept"]
    gallery = inputs["mkt_gallery" if test == "self" else "mkt_gallery_old"][kept]
    relevance = golden.people(
        wanted["query_names"], [n for n, k in zip(names, kept, strict=True) if k]
    )
    result = retrieve(inputs["mkt_query"], gallery, relevance)
    check_market(result, wanted[test], 1e-9)
    np.testing.assert_allclose(result.ap, numbers(wanted[test]["ap"]), rtol=0, atol=1e-9)
    assert result.queries == wanted[test]["valid_queries"]


def check_market(result, wanted, tolerance):
    assert result.mean_ap == pytest.approx(wanted["mAP"], abs=tolerance)
    curve = cmc(result, 50)
    for k, value in wanted["cmc"].items():  # float32 in the published code
        assert curve[int(k) - 1] == pytest.approx(value, abs=1e-7)
    if "cmc_curve" in wanted:
        assert curve.tolist() == pytest.approx(wanted["cmc_curve"], abs=1e-7)


def test_market_reranked(expected, inputs):
    wanted = expected["market1501"]
    names = wanted["gallery_names"]
    kept = golden.kept(names)
    relevance = golden.people(
        wanted["query_names"], [n for n, k in zip(names, kept, strict=True) if k]
    )
    query, gallery = inputs["mkt_query"], inputs["mkt_gallery"][kept]
    for case in expected["rerank"].values():
        how = {"k1": case["k1"], "k2": case["k2"], "weight": case["lam"]}
        result = retrieve_reranked(query, gallery, {"": relevance}, **how)[""]
        assert result.top[1] == pytest.approx(case["rank1"], abs=1e-7)
        if "mAP" in case:
            assert result.mean_ap == pytest.approx(case["mAP"], abs=1e-6)
            published = retrieve_reranked(
                query, gallery, {"": relevance}, **how, parity="published"
            )[""]
            assert published.mean_ap == pytest.approx(case["mAP_as_published_float16"], abs=1e-6)


# ---- real lists with made-up descriptors, and real descriptors


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_real_landmark_lists(shared, expected, name):
    stored = golden.inputs(shared, "real_lists_descriptors")
    gnd = golden.gnd_of(shared, name)["gnd"]
    found = revisited(stored[f"{name}_query"], stored[f"{name}_db"], gnd)
    wanted = expected[f"real/{name}"]
    check_readings(found, wanted["expected"], 1e-8)
    assert {k: result.without for k, result in found.items()} == wanted["empty"]


def test_real_market_lists(shared, expected):
    stored, wanted = golden.inputs(shared, "real_lists_descriptors"), expected["real/market1501"]
    query, test = (golden.market_names(shared, part) for part in ("query", "test"))
    kept = golden.kept(test)
    assert (kept.sum(), (~kept).sum()) == (wanted["gallery"], wanted["dropped_junk"])
    gallery = [name for name, k in zip(test, kept, strict=True) if k]
    result = retrieve(
        stored["market_query"], stored["market_test"][kept], golden.people(query, gallery)
    )
    check_market(result, wanted, 1e-6)
    assert result.queries == wanted["queries"]


@pytest.fixture(scope="module")
def oxford(shared):
    """(query, gallery) of the new and of the old descriptors, and the ground truth."""
    gnd = golden.gnd_of(shared, "roxford5k")
    features = golden.fvecs(shared / "data/landmarks/oxford_features/oxford_features.fvecs")
    names = sorted(gnd["imlist"] + gnd["qimlist"])
    row = {name: i for i, name in enumerate(names)}
    wanted = json.loads((golden.folder(shared) / "real_oxford/expected.json").read_text())
    old = np.sign(features) * np.sqrt(np.abs(features))
    old[:, wanted["old_dims"] :] = 0
    sides = [[row[name] for name in gnd[key]] for key in ("qimlist", "imlist")]
    return [[x[side] for side in sides] for x in (features, old)], gnd["gnd"], wanted


def test_real_oxford(oxford):
    (new, old), gnd, wanted = oxford
    found = revisited(*new, gnd)
    check_readings(found, wanted["new_self"], 1e-7)
    shown = [f"{100 * found[name].mean_ap:.2f}" for name in "EMH"]
    assert shown == ["28.89", "21.13", "4.60"]  # what the issue names
    check_readings(revisited(*old, gnd), wanted["old_self"], 1e-7)
    check_readings(revisited(new[0], old[1], gnd), wanted["cross"], 1e-7)


def test_real_oxford_backfill_dips(shared, oxford):
    (new, old), gnd, wanted = oxford
    order = np.load(golden.folder(shared) / "real_oxford/order.npy")
    points = wanted["hot_refresh"]
    fractions = np.array([point["fraction"] for point in points])
    for name, reading in golden.readings(gnd).items():
        rows = refreshed(order, fractions)
        (found,) = retrieve_mixed(new[0], [old[1], new[1]], [rows], reading, way="trapezoid")
        values = np.array([result.mean_ap for result in found])
        assert values == pytest.approx([point[name]["mAP"] for point in points], abs=1e-7)
        assert area(Curve(fractions, values)) == pytest.approx(wanted["area"][name], abs=1e-7)
        if name == "M":
            assert [f"{100 * v:.2f}" for v in values] == [
                "21.15",
                "19.68",
                "19.50",
                "20.49",
                "21.13",
            ]


@pytest.mark.parametrize("case", ["paper", "code_default", "k2_1", "lam0"])
def test_reranked_distances(expected, inputs, case):
    how = expected["rerank"][case]
    gallery = inputs["mkt_gallery"][golden.kept(expected["market1501"]["gallery_names"])]
    for parity, suffix, tolerance in (
        ("corrected", "", 1e-6),
        ("published", "_as_published_float16", 5e-3),
    ):
        blocks = reranked(inputs["mkt_query"], gallery, how["k1"], how["k2"], how["lam"], parity)
        found = np.concatenate([block for _, block in blocks])
        wanted = inputs[f"rerank_{case}{suffix}"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
        if parity == "published":  # it does what the published code does, number by number
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
