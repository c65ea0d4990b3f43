"""eval/retrieval.py: figures against scikit-learn and plain numpy, for stored embeddings and for
networks, alone and on two ranks."""

import json
import sys

import numpy as np
import pytest
import simplejpeg
import torch
from sklearn.metrics import average_precision_score
from support.pictures import jpeg
from support.programs import program
from support.ranks import run_on_ranks
from support.script import run_script
from torchvision.transforms.v2.functional import center_crop, resize

from backbones import get_model
from bct import distributed
from bct.data.sets import open_images
from bct.errors import BctError
from bct.metrics import chain
from bct.protocols.class_templates import class_templates

NAMES = ["ant", "bee", "cat", "dog", "eel"]
EACH = 6  # images of a class


@pytest.fixture(scope="module")
def module():
    return program()


@pytest.fixture
def run(module, monkeypatch, tmp_path):
    """Runs the command line; gives its figures, and its page as lines."""

    def call(*arguments):
        line = ["eval/retrieval.py", "-o", tmp_path / "out", "--name", "r", "--overwrite",
                "--amp", "off", "-j", "0", "--resamples", "50", "--cache", tmp_path / "cache",
                *arguments]  # fmt: skip
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        module.main()
        found = json.loads((tmp_path / "out/r.json").read_text())
        return found, (tmp_path / "out/r.md").read_text()

    return call


def make_set(folder, names=NAMES, each=EACH):
    """A folder of classes whose images nobody decodes; labels follow the sorted names."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for k in range(each):
            # every file is another image; what stands behind a JPEG is not decoded
            mark = f"{folder.name}/{name}/{k}".encode()
            (folder / name / f"{k}.jpg").write_bytes(jpeg(0, 0, 8) + mark)
    return folder, np.repeat(np.arange(len(names)), each)


def make_model(path, labels, width, noise, seed, lengths=False):
    """Stored embeddings: the class's own vector, whose start is that of narrower models, plus noise
    of the model's own; lengths: rows of very different norms."""
    rng = np.random.default_rng(seed)
    own = np.random.default_rng(99).standard_normal((20, 64))[labels, :width]
    x = own + noise * rng.standard_normal((len(labels), width))
    if lengths:
        x *= rng.uniform(0.2, 5, (len(labels), 1))
    path.parent.mkdir(exist_ok=True)
    np.save(path, x.astype(np.float32))
    return path


def plain(query, query_labels, gallery, gallery_labels, metric="cosine", own=True, width=None):
    """(ap, rank) by the definitions, in float64."""
    query, gallery = (x[:, :width].astype(np.float64) for x in (query, gallery))
    if metric == "cosine":
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    scores = -np.square(query[:, None] - gallery[None]).sum(2)
    ap, rank = np.full(len(query), np.nan), np.zeros(len(query), int)
    for i, row in enumerate(scores):
        keep = np.arange(len(row)) != i if own else np.ones(len(row), bool)
        relevant, row = (gallery_labels == query_labels[i])[keep], row[keep]
        if relevant.any():
            ap[i] = average_precision_score(relevant, row)
            rank[i] = 1 + np.sum(row > row[relevant].max())
    return ap, rank


def expect(figures, ap, rank, ks=(1, 5)):
    found = rank > 0
    assert (figures["queries"], figures["without"]) == (found.sum(), (~found).sum())
    assert figures["map"] == pytest.approx(ap[found].mean(), abs=1e-9)
    for k in ks:
        assert figures[f"top{k}"] == pytest.approx(np.mean(rank[found] <= k))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_all_tests_and_parts_of_stored_embeddings(run, tmp_path, metric):
    folder, labels = make_set(tmp_path / "val")
    x = {
        label: make_model(tmp_path / f"{label}.npy", labels, 16, noise, seed, lengths=True)
        for label, noise, seed in (("old", 2.5, 1), ("new", 1.5, 2), ("alone", 1.3, 3))
    }
    (tmp_path / "names.json").write_text(json.dumps({"class_names": ["dog", "bee", "yak"]}))
    found, page = run(
        "-m", x["new"], "-m_old", x["old"], "-m_alone", x["alone"], "--data", folder,
        "--leave-one-out", "--metric", metric, "--old-classes", tmp_path / "names.json",
        "--ks", "3", "1", "--per-class",
    )  # fmt: skip
    x = {label: np.load(file) for label, file in x.items()}
    tests = found["tests"]
    assert list(tests) == ["old / old", "new / old", "new / new", "alone / alone", "alone / old"]
    of_old = np.isin(labels, [1, 3])
    plainly = {}
    for name, test in tests.items():
        query, gallery = name.split(" / ")
        plainly[name] = ap, rank = plain(x[query], labels, x[gallery], labels, metric)
        expect(test["all queries"], ap, rank, (1, 3))
        expect(test["queries of old classes"], ap[of_old], rank[of_old], (1, 3))
        expect(test["queries of new classes"], ap[~of_old], rank[~of_old], (1, 3))
        assert test["cmc"] == pytest.approx([np.mean(rank <= k) for k in range(1, 21)])
        assert set(test["classes"]) == set(NAMES)
        assert test["classes"]["cat"]["map"] == pytest.approx(ap[labels == 2].mean())
        assert test["classes"]["cat"]["queries"] == EACH

    for part, chosen in (("all queries", labels >= 0), ("queries of old classes", of_old)):
        figures = found["compatibility"]["new"][part]
        o, c, s, p = (
            plainly[name][0][chosen].mean()
            for name in ("old / old", "new / old", "new / new", "alone / alone")
        )
        assert figures["map"]["compatible"] == (c > o)
        assert figures["map"]["difference"]["estimate"] == pytest.approx(c - o)
        assert figures["map"]["price"] == pytest.approx(p - s)
        assert figures["map"]["update_gain"] == pytest.approx((c - o) / (p - o))
        assert figures["map"]["p_up"] == pytest.approx(1 / (1 + np.exp((p - s) / p)))
        gap = figures["top1"]["difference"]
        assert gap["low"] <= gap["estimate"] <= gap["high"]
        hits = [(plainly[n][1][chosen] <= 1).mean() for n in ("old / old", "new / old")]
        assert gap["estimate"] == pytest.approx(hits[1] - hits[0])
    for title in ("queries of old classes: query / gallery", "top-3", "update gain", "new, mAP"):
        assert title in page


def test_two_sets_meet_by_class_names(run, tmp_path):
    """Label 0 is "bee" in one set and "ant" in the other; "dog" is in the queries only."""
    queries, q = make_set(tmp_path / "queries", ["bee", "cat", "dog"])
    gallery, g = make_set(tmp_path / "gallery", ["ant", "bee", "cat"], each=4)
    q, g = q + 1, g  # labels over all names in NAMES' order
    files = [make_model(tmp_path / f"{k}.npy", y, 16, 1.0, k) for k, y in enumerate((q, g))]
    found, _ = run("-m", f"{files[0]},{files[1]}", "--data", queries, "--gallery", gallery)
    figures = found["tests"]["new / new"]["all queries"]
    ap, rank = plain(*(np.load(files[0]), q, np.load(files[1]), g), own=False)
    expect(figures, ap, rank)
    assert figures["without"] == EACH and figures["top1"] > 0.8
    with pytest.raises(BctError, match=r"1 file\(s\) of embeddings for 2 set"):
        run("-m", files[0], "--data", queries, "--gallery", gallery)


def test_random_queries_find_by_chance(run, tmp_path):
    """With a separate gallery the reference evaluators report 100 %."""
    queries, q = make_set(tmp_path / "queries", each=60)
    gallery, g = make_set(tmp_path / "gallery", each=20)
    files = [make_model(tmp_path / f"{k}.npy", y, 16, 1e3, k) for k, y in enumerate((q, g))]
    found, page = run("-m", f"{files[0]},{files[1]}", "--data", queries, "--gallery", gallery)
    figures = found["tests"]["new / new"]["all queries"]
    assert abs(figures["top1"] - 0.2) < 0.07 and abs(figures["map"] - 0.2) < 0.05
    assert "compatibility" not in found and "old and new classes" not in page.lower()


def test_widths_that_differ(run, tmp_path):
    """Refused unless it is said how they meet; cut rows are normalised after the cut."""
    folder, labels = make_set(tmp_path / "val")
    old = make_model(tmp_path / "old.npy", labels, 16, 1.0, 1)
    new = make_model(tmp_path / "new.npy", labels, 24, 1.0, 2, lengths=True)
    alone = make_model(tmp_path / "alone.npy", labels, 32, 1.0, 3)
    x, o = np.load(new), np.load(old)
    x[:, 16:] *= np.random.default_rng(0).uniform(0, 4, (len(x), 1))  # of each norm another share
    np.save(new, x)
    common = ("-m_old", old, "--data", folder, "--leave-one-out")
    with pytest.raises(BctError, match="24 and 16 dimensions"):
        run("-m", new, *common)
    found, page = run("-m", new, *common, "--dimensions", "leading")
    expect(found["tests"]["new / old"]["all queries"], *plain(x, labels, o, labels, width=16))
    expect(found["tests"]["new / new"]["all queries"], *plain(x, labels, x, labels))
    # where the gallery is the side that is cut, order depends on what it is divided by
    turned, _ = run("-m", old, "-m_old", new, *common[2:], "--dimensions", "leading")
    cut = plain(o, labels, x, labels, width=16)
    expect(turned["tests"]["new / old"]["all queries"], *cut)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert plain(o, labels, unit[:, :16], labels, "l2")[0].mean() < cut[0].mean() - 1e-3
    found, _ = run("-m", new, *common, "--dimensions", "zero_pad", "--metric", "l2")
    padded = np.pad(o, ((0, 0), (0, 8)))
    expect(found["tests"]["new / old"]["all queries"], *plain(x, labels, padded, labels, "l2"))
    # the model alone need not meet the old model
    found, page = run("-m", old, *common, "-m_free", alone)
    assert "alone / old is left out: 32 and 16 dimensions" in page
    assert "update_gain" in found["compatibility"]["new"]["all queries"]["top1"]


def test_a_chain(run, tmp_path):
    folder, labels = make_set(tmp_path / "val")
    names = ["old", "transformed", "alone"]  # of a chain these are names like others
    files = [
        make_model(tmp_path / f"{name}.npy", labels, 8 + 4 * k, 2.0 - 0.5 * k, k)
        for k, name in enumerate(names)
    ]
    found, page = run("--matrix", *files, "--data", folder, "--leave-one-out",
                      "--dimensions", "leading", "--old-classes", "2")  # fmt: skip
    x = [np.load(file) for file in files]
    matrix = found["chain"]["map"]["matrix"]
    for i, j in np.ndindex(3, 3):
        ap, rank = plain(x[i], labels, x[j], labels, width=8 + 4 * min(i, j))
        assert matrix[i][j] == pytest.approx(ap.mean(), abs=1e-9)
        of_old = labels < 2
        test = found["tests"][f"{names[i]} / {names[j]}"]
        expect(test["queries of old classes"], ap[of_old], rank[of_old])
    for key in ("average_compatibility", "average_quality", "backward_transfer",
                "forward_transfer"):  # fmt: skip
        assert found["chain"]["map"][key] == pytest.approx(getattr(chain, key)(np.array(matrix)))
    assert "| alone gallery |" in page and "backward transfer" in page


def test_backfill_of_a_transformed_gallery(run, tmp_path):
    """Old rows in the new space, worse and worse; the uncertainty knows which."""
    folder, labels = make_set(tmp_path / "val")
    old = make_model(tmp_path / "old.npy", labels, 12, 2.5, 1)
    new = make_model(tmp_path / "new.npy", labels, 16, 0.8, 2)
    x = np.load(new)
    sigma = np.random.default_rng(3).uniform(0, 6, len(x)).astype(np.float32)
    noise = np.random.default_rng(4).standard_normal(x.shape)
    h = (x + sigma[:, None] * noise).astype(np.float32)
    np.save(tmp_path / "h.npy", h)
    np.save(tmp_path / "sigma.npy", sigma[:, None])
    found, page = run(
        "-m", new, "-m_old", old, "--old-gallery", tmp_path / "h.npy", "--data", folder,
        "--leave-one-out", "--backfill", "random", tmp_path / "sigma.npy", "distance",
    )  # fmt: skip
    tests = {name: test["all queries"] for name, test in found["tests"].items()}
    assert list(tests) == ["old / old", "new / transformed", "new / new"]
    expect(tests["new / transformed"], *plain(x, labels, h, labels))
    curves = found["backfill"]["new"]
    for figures in curves.values():
        for quality, curve in figures.items():
            assert curve["values"][0] == tests["new / transformed"][quality]
            assert curve["values"][-1] == pytest.approx(tests["new / new"][quality], abs=1e-12)
    best = curves[str(tmp_path / "sigma.npy")]["map"]
    worst_half = np.argsort(-sigma, kind="stable")[: len(x) // 2]
    mixed = h.copy()
    mixed[worst_half] = x[worst_half]
    assert best["values"][5] == pytest.approx(plain(x, labels, mixed, labels)[0].mean(), abs=1e-9)
    values = np.array(best["values"])
    assert best["area"] == pytest.approx(np.trapezoid(values, dx=0.1))
    assert best["published_mean"] == pytest.approx(values.mean())
    goal = tests["old / old"]["map"]
    assert best["enough_for_old"] == pytest.approx(np.flatnonzero(values >= goal)[0] / 10)
    assert best["area"] > curves["random"]["map"]["area"]
    assert "new, sigma, top-1" in page


def test_what_a_model_is_called_decides_nothing(run, tmp_path):
    """New models in files called as roles are: who is who is what the options said."""
    folder, labels = make_set(tmp_path / "val")
    names = ["transformed", "alone"]
    files = [make_model(tmp_path / f"{k}.npy", labels, 8, 1.0, i) for i, k in enumerate(names)]
    old = make_model(tmp_path / "x.npy", labels, 8, 2.0, 5)
    common = ("--data", folder, "--leave-one-out")
    found, _ = run("-m", *files, "-m_old", old, *common)
    assert list(found["tests"]) == ["old / old", "transformed / old", "transformed / transformed",
                                    "alone / old", "alone / alone"]  # fmt: skip
    x = np.load(files[0])
    expect(found["tests"]["transformed / transformed"]["all queries"], *plain(x, labels, x, labels))
    assert all(set(parts["all queries"]["map"]) == {"compatible", "difference", "over"}
               for parts in found["compatibility"].values())  # fmt: skip
    roles = {"new": names, "old": "old", "mapped": None, "alone": None, "chain": False}
    assert found["roles"] == roles
    found, _ = run("--matrix", old.rename(tmp_path / "old.npy"), *files, *common)
    assert "compatibility" not in found and found["roles"]["old"] is None
    with pytest.raises(BctError, match="two have one name"):
        run("-m", *files, "-m_alone", tmp_path / "old.npy", *common)


def test_the_same_model_again_is_not_compatible(run, tmp_path):
    """One array for both, so that not even rounding tells them apart."""
    folder, labels = make_set(tmp_path / "val")
    old = make_model(tmp_path / "old.npy", labels, 16, 2.0, 1)
    found, page = run("-m", old, "-m_old", old, "--data", folder, "--leave-one-out")
    for quality in ("top1", "top5", "map"):
        figures = found["compatibility"]["new"]["all queries"][quality]
        assert not figures["compatible"] and set(figures["difference"].values()) == {0.0}
    assert "Old and new classes are not told apart" in page


# ---- networks


def make_networks(tmp_path):
    """Two small networks: one says in its model.json that it sees 112 pixels as faces, the other, a
    foreign one, sees 28 as ImageNet's; and 13 images, whose last batch of 4 is a single one."""
    torch.manual_seed(0)
    for name, network in (("old", "demo_w16"), ("new", "conv4_w32")):
        (tmp_path / name).mkdir()
        torch.save(get_model(network, 8).state_dict(), tmp_path / name / "model.pt")
    view = {"size": 112, "crop": "none", "mirror": True, "pixels": "face"}
    about = {"network": "demo_w16", "view": view, "class_names": ["ant", "bee"]}
    (tmp_path / "old/model.json").write_text(json.dumps(about))
    for k in range(13):
        folder = tmp_path / "val" / NAMES[k // 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(k // 4, k))
    return ["-m", tmp_path / "new/model.pt", "-m_old", tmp_path / "old/model.pt",
            "--data", tmp_path / "val", "--leave-one-out", "-b", "4", "-E", "-net", "conv4_w32",
            "--size", "28", "--crop", "resized", "--pixels", "imagenet"]  # fmt: skip


def through(network, file, pixels):
    """Embeddings of uint8 (B, 3, H, W) pixels brought to the network's range by hand."""
    model = get_model(network, 8)
    model.load_state_dict(torch.load(file))
    if network == "demo_w16":
        x = (pixels.float() - 127.5) / 127.5
    else:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        x = (pixels.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        return model.eval()(x).numpy()


def on_rank(line):
    """The evaluation on one of two ranks; only the first one writes."""
    sys.argv = line
    distributed.setup, distributed.shutdown = lambda: torch.device("cpu"), lambda: None  # it is up
    program().main()


def test_networks_see_what_they_were_trained_on(run, tmp_path):
    arguments = make_networks(tmp_path)
    found, page = run(*arguments)
    out = tmp_path / "out"
    assert "new/model.pt, 8 dimensions, 28 pixels, crop resized, imagenet" in page
    assert "old/model.pt, 8 dimensions, 112 pixels, crop none, face" in page
    assert set(found["tests"]["new / old"]) >= {"queries of old classes", "queries of new classes"}
    files = sorted((tmp_path / "val").glob("*/*.jpg"))
    labels = np.array([NAMES.index(file.parent.name) for file in files])
    pixels = torch.stack(
        [torch.from_numpy(simplejpeg.decode_jpeg(file.read_bytes())) for file in files]
    )
    pixels = pixels.permute(0, 3, 1, 2)
    small = center_crop(resize(pixels, [32, 32], antialias=True), [28, 28])
    x = {
        "old": through("demo_w16", tmp_path / "old/model.pt", pixels),
        "new": through("conv4_w32", tmp_path / "new/model.pt", small),
    }
    for label, rows in x.items():
        np.testing.assert_allclose(np.load(out / f"r_{label}.npy"), rows, atol=2e-3)
    kept = {label: np.load(out / f"r_{label}.npy") for label in x}
    for name in ("old / old", "new / old", "new / new"):
        query, gallery = (kept[label] for label in name.split(" / "))
        ap, rank = plain(query, labels, gallery, labels)
        expect(found["tests"][name]["all queries"], ap, rank)
        expect(found["tests"][name]["queries of old classes"], ap[labels < 2], rank[labels < 2])
    # what was saved stands for the models, the images shared by two ranks change nothing
    again, _ = run("-m", out / "r_new.npy", "-m_old", out / "r_old.npy", *arguments[4:7],
                   "--old-classes", tmp_path / "old/model.json")  # fmt: skip
    assert again["tests"] == found["tests"]
    line = ["x", "-o", tmp_path / "two", "--name", "r", "--amp", "off", "-j", "0",
            "--cache", tmp_path / "two/cache", *arguments]  # fmt: skip
    run_on_ranks(2, on_rank, list(map(str, line)))
    for label in x:
        two = np.load(tmp_path / f"two/r_{label}.npy")
        np.testing.assert_allclose(two, kept[label], rtol=1e-4, atol=1e-5)


# ---- the upgrade report on an image set


def test_an_image_set_as_a_protocol(tmp_path):
    """3 images of each of 4 classes and one of a fifth, in an order of the labels' own."""
    folder, _ = make_set(tmp_path / "val", NAMES[:4], each=3)
    make_set(folder, ["zoo"], each=1)
    faces = open_images(folder)
    protocol = class_templates(faces)
    assert [g.subjects.tolist() for g in protocol.galleries] == [[0, 2], [1, 3]]
    assert protocol.probes.subjects.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    ids = protocol.templates.ids
    assert ids[protocol.templates.row].tolist() == [0, 6, 7, 1, 9, 10, 2, 12, 13, 3, 15, 16, 17]
    first, second, genuine = protocol.pairs
    pairs = set(zip(ids[first], ids[second], genuine, strict=True))
    assert len(pairs) == 4 * 9
    assert {(a, b) for a, b, genuine in pairs if genuine} == {
        (0, 6), (0, 7), (1, 9), (1, 10), (2, 12), (2, 13), (3, 15), (3, 16)
    }  # fmt: skip
    assert protocol.fingerprint == faces.fingerprint
    assert not protocol.remarks
    make_set(tmp_path / "three", NAMES[:3], each=2)
    few = class_templates(open_images(tmp_path / "three"))
    assert not few.galleries and few.probes is None  # one template: nobody could be mistaken
    assert "3 classes are too few" in few.remarks[0] and len(few.pairs.first) == 9
    make_set(tmp_path / "two/val", ["a"], each=4)
    make_set(tmp_path / "two/val", ["b"], each=1)
    with pytest.raises(BctError, match="1 classes of two images or more"):
        class_templates(open_images(tmp_path / "two/val"))


def test_the_upgrade_report_of_an_image_set(monkeypatch, tmp_path):
    """Its search figures against plain numpy; models of two widths; pictures on request."""
    folder, labels = make_set(tmp_path / "val", [f"c{k:02}" for k in range(20)])
    old = make_model(tmp_path / "old.npy", labels, 16, 1.2, 1)
    new = make_model(tmp_path / "new.npy", labels, 24, 0.5, 2)
    module = program("report")
    line = ["x", "-m", new, "-m_old", old, "--images", folder, "-o", tmp_path / "report",
            "--far", "1e-2", "--resamples", "20", "--thumbnails"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    with pytest.raises(BctError, match="16 and 24 dimensions"):
        module.main()
    monkeypatch.setattr(sys, "argv", list(map(str, [*line, "--dimensions", "leading"])))
    module.main()
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["protocol"]["images"] == 120 and report["protocol"]["pairs"] == 20 * 60
    assert report["verdict"]["decision"] == "deploy now"
    x, o = np.load(new)[:, :16], np.load(old)
    enrolled = np.arange(120) % EACH < EACH // 2
    centres = np.stack([o[enrolled & (labels == c)].sum(0) for c in range(20)])
    rank = plain(x[~enrolled], labels[~enrolled], centres, np.arange(20), own=False)[1]
    assert report["tests"]["new / old"]["search"]["mixed"]["top1"] == np.mean(rank == 1)
    assert (tmp_path / "report/report.html").read_text().count("<img") > 0


# ---- refusals


def test_results_of_others_are_not_replaced(module, monkeypatch, tmp_path):
    folder, labels = make_set(tmp_path / "val")
    a, b = (make_model(tmp_path / f"{k}/new.npy", labels, 8, 1.0, k) for k in (1, 2))
    common = ["--data", folder, "--leave-one-out", "-o", tmp_path / "out"]

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", list(map(str, ["x", *arguments, *common])))
        module.main()

    call("-m", a)
    path = tmp_path / "out/new_val.json"
    first = path.read_bytes()
    call("-m", a, "--ks", "1")  # the same models and data: only more or fewer figures of them
    with pytest.raises(BctError, match="results of other models"):
        call("-m", b)
    call("-m", a)
    assert path.read_bytes() == first
    call("-m", b, "--overwrite")
    assert path.read_bytes() != first
    call("-m", b, "--metric", "l2")
    with pytest.raises(BctError, match="data or settings"):
        call("-m", b, "--metric", "l2", "--name", "new_val")
    call("-m", b, "-m_old", a.rename(tmp_path / "1/old.npy"))
    assert {p.name for p in path.parent.glob("*.json")} == {
        "new_val.json", "new_val_l2.json", "new_vs_old_val.json"
    }  # fmt: skip


def test_refusals(run, tmp_path):
    folder, labels = make_set(tmp_path / "val")
    new = make_model(tmp_path / "new.npy", labels, 8, 1.0, 1)
    (tmp_path / "names.json").write_text("[1, 2]")
    np.save(tmp_path / "short.npy", np.ones(7, np.float32))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    common = ("--data", folder, "--leave-one-out")
    with_old = ("-m", new, "-m_old", new, *common)
    for words, arguments in {
        "model nothing.pt does not exist": ("-m", "nothing.pt", *common),
        "there is no data set": ("-m", new, "--data", tmp_path / "none", "--leave-one-out"),
        "2 networks for 1 models": ("-m", new, "-net", "a", "b", *common),
        "two have one name": ("-m", new, new, *common),
        "30 rows|rows for": ("-m", make_model(tmp_path / "x.npy", labels[1:], 8, 1, 1), *common),
        "no list of class names": (*with_old, "--old-classes", tmp_path / "names.json"),
        "has no class names": (*with_old, "--old-classes", tmp_path / "none.json"),
        "is no order": (*with_old, "--backfill", "by_weight"),
        "7 rows for 30 images": (*with_old, "--backfill", tmp_path / "short.npy"),
        "can't be read": (*with_old, "--backfill", tmp_path / "broken.npy"),
        "is no .npy": (*with_old, "--old-gallery", folder / "ant/0.jpg"),
    }.items():
        with pytest.raises(BctError, match=words) as caught:
            run(*arguments)
        assert len(str(caught.value).splitlines()) == 2
    for arguments in (
        common,
        ("-m", new, "--ks", "0", *common),
        ("-m", new, "--matrix", new, new, *common),
        ("--matrix", new, *common),
        ("--matrix", new, new, "-m_old", new, *common),
        ("-m", new, "--backfill", "random", *common),
        ("-m", new, "--data", folder),
        ("-m", new, "--gallery", folder, *common),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)


def test_an_error_is_two_lines(tmp_path):
    done = run_script(
        "eval/retrieval.py", "-m", "nothing.pt", "--data", tmp_path, "--leave-one-out"
    )
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 2, done.stderr
