"""The table of verdicts: each row from the facts that lead to it, and from embeddings."""

import json
import re

import numpy as np
import pytest
from support.pages import Nothing, Reader
from support.upgrades import UPGRADES, embeddings, protocol, study

from bct.errors import BctError
from bct.metrics.percentiles import Interval
from bct.metrics.relevance import ByClass
from bct.protocols.compare import compare
from bct.protocols.evidence import Evidence
from bct.protocols.protocol import Pairs, Protocol, Search
from bct.report import page
from bct.report.analysis import analyse
from bct.report.decision import AS_IT_IS, PARTLY, TABLE, WHOLLY, Facts, Step, Threshold, decide
from bct.report.pairs import measure_at
from bct.report.study import Study

ROWS = [row.when for row in TABLE]
STEP = Step("random", 0.45, 0.51, Interval(0.01, 0.001, 0.02))


def facts(before=0.5, cross=0.6, own=0.7, low=0.05, gain_low=0.05, step=None, **known):
    evidence = {"same": False, "few": "", "alike": 0.9, "chance": 0.01, "lost": False,
                "unrelated": False}  # fmt: skip
    gap, gain = Interval(cross - before, low, 1.0), Interval(own - before, gain_low, 1.0)
    known = Evidence(**{**evidence, **known})
    return Facts(measure_at(1e-2), before, cross, own, gap, gain, known, 0.002, step)


def threshold(tar=0.7, kept_tar=0.7, kept_far=0.01, far=0.01, later=0.01):
    return Threshold(0.3, far, 0.4, tar, kept_tar, kept_far, later)


def at(**galleries):
    """The deployed threshold can stay, but in these galleries."""
    return {AS_IT_IS: threshold(), PARTLY: threshold(), WHOLLY: threshold(), **galleries}


UNSURE = ", though the difference is within the uncertainty"
CASES = [  # one after the other as in the table, and the same with other headlines
    (0, facts(same=True, few="1 genuine pair", lost=True), "no verdict", None,
     "Nothing to decide: old and new are the same embeddings"),
    (1, facts(few="1 genuine pair", lost=True, unrelated=True), "no verdict", None,
     "No verdict: 1 genuine pair only, so the figures mean nothing"),
    (2, facts(lost=True, unrelated=True), "do not", None,
     "Do not deploy: the new model can't be told from chance on this set"),
    (3, facts(cross=0.0, own=0.5, unrelated=True), "do not", None,
     "Do not deploy: these spaces are unrelated, and the new model is no better"),
    (4, facts(cross=0.0, unrelated=True, step=STEP), "do not", WHOLLY,
     "These spaces are unrelated: re-embed everything"),
    (4, facts(cross=0.0, unrelated=True, gain_low=-0.1), "do not", WHOLLY,
     "These spaces are unrelated: re-embed everything" + UNSURE),
    (5, facts(own=0.5), "deploy now", AS_IT_IS,
     "Deploy now, and leave the gallery as it is: re-extracted it is no better than before"),
    (6, facts(), "deploy now", AS_IT_IS, "Deploy now: the old gallery can stay as it is"),
    (6, facts(low=-0.05), "deploy now", AS_IT_IS,
     "Deploy now: the old gallery can stay as it is" + UNSURE),
    (6, facts(low=0.0), "deploy now", AS_IT_IS,
     "Deploy now: the old gallery can stay as it is" + UNSURE),
    (7, facts(cross=0.5, own=0.5), "do not", None,
     "Do not deploy: a tie, the new model is no better than the old one"),
    (7, facts(cross=0.5 + 1e-12, own=0.5 + 1e-12), "do not", None,  # rounding is no gain
     "Do not deploy: a tie, the new model is no better than the old one"),
    (8, facts(cross=0.5, step=STEP), "tie", AS_IT_IS,
     "A tie: in the old gallery new queries do as well as old ones, no better"),
    (9, facts(cross=0.4, own=0.5, step=STEP), "do not", None,
     "Do not deploy: the new model is no better than the old one"),
    (9, facts(cross=0.4, own=0.3), "do not", None,
     "Do not deploy: the new model is no better than the old one"),
    (10, facts(cross=0.4, step=STEP), "backfill first", PARTLY,
     "Deploy and backfill 45 % of the gallery first"),
    (10, facts(cross=0.4, step=STEP._replace(gap=Interval(0.01, -0.1, 0.2))), "backfill first",
     PARTLY, "Deploy and backfill 45 % of the gallery first" + UNSURE),
    (11, facts(cross=0.4), "do not", WHOLLY,
     "Do not deploy until the whole gallery is re-extracted"),
    (11, facts(cross=0.4, gain_low=-0.1), "do not", WHOLLY,
     "Do not deploy until the whole gallery is re-extracted" + UNSURE),
]  # fmt: skip


def test_every_row_has_its_case():
    assert [TABLE[row].when for row in sorted({case[0] for case in CASES})] == ROWS
    assert set(UPGRADES) == set(ROWS)


@pytest.mark.parametrize(("row", "given", "decision", "gallery", "headline"), CASES)
def test_row(row, given, decision, gallery, headline):
    for thresholds in (None, at()):
        said = decide(given, thresholds)
        assert (said["when"], said["decision"]) == (ROWS[row], decision)
        assert (said["gallery"], said["headline"]) == (gallery, headline)
        named = [reason for reason in said["reasons"] if "deployed threshold" in reason]
        assert len(named) == (gallery is not None and thresholds is not None)


@pytest.mark.parametrize("row", [4, 6, 8, 10, 11])
@pytest.mark.parametrize(
    ("there", "words"),
    [
        (threshold(), "threshold 0.300 can stay: at it new queries reach TAR 0.700 at FAR 1.0e-02"),
        (threshold(kept_tar=0.6), "reach TAR 0.600 at FAR 1.0e-02; TAR 0.700 needs the threshold"),
        (threshold(kept_far=0.002), "threshold 0.300 can stay"),
        (threshold(kept_far=0.03), "from 0.300 to 0.400: at the old one, false accepts are 3.0 "),
        (threshold(kept_tar=0.3), "reach TAR 0.300 only, less than the old system; at the new one"),
        (threshold(later=0.03), "more is re-extracted: false accepts would become 3.0 times"),
        (threshold(far=0.0), "can't be told"),
    ],
)
def test_the_threshold_is_judged_for_the_gallery_that_is_recommended(row, there, words):
    """What it does to the others is of no interest."""
    _, given, _, gallery, headline = next(case for case in CASES if case[0] == row)
    others = dict.fromkeys((AS_IT_IS, PARTLY, WHOLLY), threshold(kept_far=0.9, kept_tar=0.0))
    said = decide(given, {**others, gallery: there})
    assert words in said["reasons"][-1]
    changed = said["reasons"][-1].startswith("Change")
    assert (said["headline"] != headline) == (changed and row in (6, 8, 10))
    assert ("with a new threshold" in said["headline"]) == (changed and row in (6, 8, 10))


# ---- from embeddings to the page


def dressed(report):
    """With what write_report adds."""
    models = {
        role: {"name": role, "file": f"{role}.pt", "sha256": "0" * 64} for role in ("old", "new")
    }
    return {"models": models, "data": "f" * 64, "date": "today", "resamples": 100, **report}


@pytest.mark.parametrize("kind", ["pairs", "search"])
@pytest.mark.parametrize("when", ROWS)
def test_a_page_for_each_verdict(tmp_path, when, kind):
    report, drawings = analyse(study(when, kind), 1e-2, resamples=100)
    verdict, orders = report["verdict"], report["backfill"]["orders"]
    assert verdict["when"] == when
    assert verdict["decision"] == TABLE[ROWS.index(when)].decision
    page.write(tmp_path, dressed(report), drawings)
    read = Reader((tmp_path / "report.html").read_text())
    for text in (read.words, (tmp_path / "report.md").read_text()):
        assert verdict["headline"] in text
        assert all(reason in text for reason in verdict["reasons"])
        assert not re.search(r"\b(None|nan|inf)\b|[{}]|-0\.000", text)
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == verdict
    bounds = [name for name, order in orders.items() if not order["available"]]
    assert bounds == ["old and new disagree most first"] and f"{bounds[0]} (a bound)" in read.words
    if kind == "pairs":
        promised_is_true(report)


def promised_is_true(report):
    """The figures of the threshold's sentence are those of the gallery that is recommended."""
    verdict, orders = report["verdict"], report["backfill"]["orders"]
    if verdict["gallery"] is None:
        return
    step = report["backfill"]["step"] or {"order": "random", "share": 0}
    share = {AS_IT_IS: 0, PARTLY: step["share"], WHOLLY: 1}[verdict["gallery"]]
    order, place = orders[step["order"]], report["backfill"]["shares"].index(share)
    said = verdict["reasons"][-1]
    if said.startswith("The deployed"):
        assert f"reach TAR {order['kept_tar'][place]:.3f} at" in said
        assert order["kept_tar"][place] >= report["compatibility"]["tar"]["old / old"]


def plain_tar(scores, genuine, threshold):
    return np.mean(scores[genuine] >= threshold), np.mean(scores[~genuine] >= threshold)


def test_the_kept_threshold_by_hand():
    """At each share: a gallery mixed by hand, and shares of pairs above the old threshold."""
    when = "as good once a part is re-extracted, in an order that can be had"
    made = study(when)
    report, _ = analyse(made, 1e-2, resamples=20)
    first, second, genuine = made.protocol.pairs
    old, new = made.items["old"], made.items["new"]
    before = (old[first] * old[second]).sum(1)
    deployed = np.nextafter(np.sort(before[~genuine])[-1 - int(0.01 * (~genuine).sum())], np.inf)
    gap = 1 - (old * new).sum(1)
    gallery = np.unique(first)
    order = gallery[np.argsort(-gap[gallery], kind="stable")]
    found = report["backfill"]["orders"]["old and new disagree most first"]
    for place, share in enumerate(report["backfill"]["shares"]):
        mixed = old.copy()
        fresh = order[: int(np.ceil(share * len(order) - 1e-9))]
        mixed[fresh] = new[fresh]
        scores = (mixed[first] * new[second]).sum(1)
        tar, far = plain_tar(scores, genuine, deployed)
        assert found["kept_tar"][place] == pytest.approx(tar, abs=2 / genuine.sum())
        assert found["kept_far"][place] == pytest.approx(far, abs=2 / (~genuine).sum())
    assert report["backfill"]["step"]["order"] == "random"  # the bound needs less: 10 %
    assert found["enough_for_old"] < report["backfill"]["step"]["share"]


# ---- bct.compare says the same


@pytest.mark.parametrize("kind", ["pairs", "search"])
@pytest.mark.parametrize(
    ("when", "remark"),
    [
        (ROWS[0], "old and new are the same embeddings"),
        (ROWS[1], "only: the figures mean nothing"),
        (ROWS[2], "can't be told from chance"),
        (ROWS[4], "unrelated: re-embed everything"),
        (ROWS[6], ""),
    ],
)
def test_compare_remarks(when, remark, kind):
    made = study(when, kind)
    verdict = compare(made.protocol, made.images["old"], made.images["new"], far=1e-2, resamples=50)
    assert remark in verdict.remark and bool(remark) == bool(verdict.remark)
    assert verdict.sentence().startswith(verdict.remark)
    assert verdict.figures().get("remark", "") == verdict.remark


def test_a_tie_is_said():
    made = study("as good in the old gallery")
    verdict = compare(made.protocol, made.images["old"], made.images["new"], far=1e-2, resamples=20)
    assert verdict.tie and not verdict.compatible
    assert verdict.sentence().startswith("not compatible at FAR 1e-2, a tie: cross - old self +0")


# ---- embeddings that are none


@pytest.mark.parametrize("kind", ["pairs", "search"])
@pytest.mark.parametrize("role", ["old", "new", "alone"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: 0 * x, "the {} embeddings: all 240 rows are zeros"),
        (lambda x: np.outer(1 + np.arange(len(x)), np.ones(x.shape[1])), "all 240 rows are alike"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), "{} embeddings: row 7 "),
        (lambda x: x[1:], "239 {} embeddings for 240 images"),
    ],
)
def test_dead_embeddings_are_refused(kind, role, spoil, words):
    models = embeddings()
    models["alone"] = models["new"]
    models[role] = np.float32(spoil(models[role]))
    made = protocol(kind)
    for call in (lambda: Study.of(made, models), lambda: compare(made, **models, far=1e-2)):
        with pytest.raises(BctError, match=words.format(role)):
            call()


@pytest.mark.parametrize("kind", ["pairs", "search"])
def test_rows_of_zeros_are_said(kind):
    models = embeddings()
    models["old"][[3, 5]] = 0
    report, _ = analyse(Study.of(protocol(kind), models), 1e-2, resamples=20)
    said = report["verdict"]["reasons"][-1]
    assert said.startswith("the old embeddings: 2 of 240 rows are zeros") and "row 3, 5" in said


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_no_verdict_depends_on_lengths(scale):
    models = embeddings()
    plain, _ = analyse(Study.of(protocol(), models), 1e-2, resamples=20)
    models["new"] = np.float32(models["new"] * scale)
    found, _ = analyse(Study.of(protocol(), models), 1e-2, resamples=20)
    assert found["compatibility"] == plain["compatibility"]
    assert found["verdict"] == plain["verdict"]


def odd(rng, labels, width):
    """Embeddings of some float type and kind, dead ones among them."""
    own = rng.standard_normal((labels.max() + 1, width))[labels]
    x = own + rng.choice([0, 0.1, 1, 10]) * rng.standard_normal(own.shape)
    kinds = (
        lambda: np.where(rng.random(len(x))[:, None] < 0.3, 0, x),
        lambda: np.round(x).astype(int),
        lambda: x.astype(np.float16),
        lambda: 1e-30 * x,
        lambda: 1e12 * x,
        lambda: np.repeat(x[:1], len(x), axis=0),
        lambda: np.sign(x),
        lambda: np.asfortranarray(x),
        lambda: x.astype(rng.choice(["complex64", "object", "bool"])),
    )
    return kinds[rng.integers(len(kinds))]()


@pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.faults)])
def test_any_embeddings_and_pairs_get_a_verdict_or_two_lines(count, tmp_path):
    """Few items, widths from 0, pairs of an item with itself, one class: no other error."""
    seen = set()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        n, width = int(rng.integers(1, 40)), int(rng.choice([0, 1, 2, 16]))
        labels = rng.integers(0, rng.integers(1, 8), n)
        made = Protocol("odd", Nothing(n), subjects=labels)
        if rng.random() < 0.5:
            first, second = rng.integers(0, n, (2, rng.integers(1, 60)))
            made.pairs = Pairs(first, second, labels[first] == labels[second])
        else:
            both = [rng.permutation(n)[: max(1, n // 2)] for _ in range(2)]
            made.search = Search(*both, ByClass(*(labels[rows] for rows in both)))
        models = {role: odd(rng, labels, width) for role in ("old", "new")}
        try:
            compare(made, **models, far=0.1, resamples=5).table()
            report, drawings = analyse(Study.of(made, models), 0.1, resamples=5)
        except BctError as error:
            assert "\n" not in error.what + error.do
            continue
        seen.add(report["verdict"]["when"])
        json.dumps(report, allow_nan=False)
        if seed % 10 == 0:
            page.write(tmp_path, dressed(report), drawings)
    assert len(seen) > 3
