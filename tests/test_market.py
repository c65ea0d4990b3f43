"""Market-1501: people by their files' names, the camera rule, images to learn from."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from support.landmark_sets import drawn_people
from support.plain_precision import cosines, places, steps

from bct.data.market_files import open_market_train, read_people
from bct.data.sets import open_images
from bct.errors import BctError
from bct.metrics.relevance import by_query, check, positives
from bct.metrics.retrieval import retrieve
from bct.models.model import open_model
from bct.protocols.image_search import sets_of
from bct.protocols.market import open_market


def written(root, query, test, train=()):
    """A set of empty files."""
    parts = {"query": query, "bounding_box_test": test, "bounding_box_train": train}
    for folder, names in parts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    return root


QUERY = ["0002_c1s1_000451_03.jpg", "0007_c3s1_000001_00.jpg", "0009_c2s1_000001_00.jpg"]
TEST = [
    *("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0000_c2s1_000151_02.jpg"),
    *("0002_c1s1_000551_01.jpg", "0002_c2s1_000776_01.jpg", "0002_c5s1_000776_01.jpg"),
    *("0007_c3s2_000002_00.jpg", "0007_c4s1_000002_00.jpg", "0009_c2s1_000007_00.jpg"),
    "Thumbs.db",
]


def refused(root, words, **options):
    with pytest.raises(BctError) as error:
        open_market(root, **options)
    assert words in error.value.what, error.value.what
    assert "\n" not in error.value.what + error.value.do
    assert error.value.do


def test_camera_rule(tmp_path):
    protocol = open_market(written(tmp_path, QUERY, TEST))
    queries, gallery = sets_of(protocol)
    assert [len(queries), len(gallery)] == [3, 8]
    assert "0000_c1s1" in gallery.describe(0)  # -1 is gone, 0000 is there
    lists = by_query(protocol.search.relevance)(np.arange(3))
    found = {
        side: [rows.of(np.array([k])).rows.tolist() for k in range(3)]
        for side, rows in zip(("positive", "ignored"), lists, strict=True)
    }
    assert found == {"positive": [[3, 4], [6], []], "ignored": [[2], [5], [7]]}
    assert protocol.search.precision == "steps"
    assert protocol.subjects.tolist() == [0, 1, 2, -1, -1, 0, 0, 0, 1, 1, 2]
    assert protocol.images.class_names == ["0002", "0007", "0009"]
    assert protocol.remarks == [
        "1 boxes of the gallery (-1) are left out.",
        "2 of the gallery (0000) are looked for by nobody.",
        "1 of 3 queries have no positive image and count in no mean: 0009_c2s1_000001_00.jpg.",
    ]


def test_real_lists(shared):
    protocol = open_market(shared / "data" / "reid")
    assert [len(images) for images in sets_of(protocol)] == [3368, 15913]
    check(protocol.search.relevance, 3368, 15913)
    assert protocol.remarks == [
        "3,819 boxes of the gallery (-1) are left out.",
        "2,798 of the gallery (0000) are looked for by nobody.",
    ]
    assert len(protocol.images.class_names) == 750
    found = read_people(shared / "data" / "reid", "train")
    assert len(found.names) == 12936
    train = open_market_train(shared / "data" / "reid")
    assert train.num_classes == 751
    assert train.class_names[:3] == ["0002", "0007", "0010"]
    assert train.labels.max() == 750
    # counted by the first characters of the names alone: 0002 and 0002_c1
    query, gallery = (
        [name.decode().split("/")[1] for name in images.names] for images in sets_of(protocol)
    )
    person, camera = (Counter(name[:length] for name in gallery) for length in (4, 7))
    ignored = [camera[name[:7]] for name in query]
    wanted = [person[name[:4]] - same for name, same in zip(query, ignored, strict=True)]
    assert protocol.search.relevance.ignored.counts().tolist() == ignored
    assert positives(protocol.search.relevance).tolist() == wanted
    assert min(wanted) > 0


@pytest.mark.parametrize("rows", [19732, 15913])
def test_stored_descriptors_of_the_real_lists(shared, tmp_path, rows):
    golden = shared / "golden" / "landmarks_reid" / "protocols"
    expected = json.loads((golden / "expected.json").read_text())["real/market1501"]
    stored = np.load(golden / "real_lists_descriptors.npz")
    protocol = open_market(shared / "data" / "reid", stored=True)
    np.save(tmp_path / "q.npy", stored["market_query"].astype(np.float32))
    gallery = stored["market_test"].astype(np.float32)
    np.save(tmp_path / "g.npy", gallery if rows == len(gallery) else gallery[-rows:])
    found = open_model(f"{tmp_path}/q.npy,{tmp_path}/g.npy").rows(protocol.images)
    assert len(found) == 3368 + 15913
    result = retrieve(found[:3368], found[3368:], protocol.search.relevance, ks=(1, 5, 10))
    assert result.mean_ap == pytest.approx(expected["mAP"], abs=1e-6)
    for k in (1, 5, 10):
        assert result.top[k] == pytest.approx(expected["cmc"][str(k)], abs=1e-6)


def test_descriptors_in_another_number(tmp_path):
    protocol = open_market(written(tmp_path, QUERY, TEST), stored=True)
    rng = np.random.default_rng(0)
    for name, n in (("q", 3), ("g", 7)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(n, 4)))
    with pytest.raises(BctError, match="has 7 rows for 8 images, or for the 9 of the list"):
        open_model(f"{tmp_path}/q.npy,{tmp_path}/g.npy").rows(protocol.images)


def test_golden(shared, tmp_path):
    golden = shared / "golden" / "landmarks_reid" / "protocols"
    expected = json.loads((golden / "expected.json").read_text())["market1501"]
    arrays = np.load(golden / "inputs.npz")
    for part, names in (("query", expected["query_names"]), ("test", expected["gallery_names"])):
        lines = [f"{name.rsplit('/', 1)[-1].split('_')[0]},{name}" for name in names]
        (tmp_path / f"golden_{part}.csv").write_text("\n".join(lines) + "\n")
    protocol = open_market(tmp_path)
    gallery = sets_of(protocol)[1]
    assert len(gallery) == expected["gallery_kept"]
    assert gallery.listed[0] == 91
    for case, name in (("self", "mkt_gallery"), ("cross", "mkt_gallery_old")):
        scores = cosines(arrays["mkt_query"], arrays[name][gallery.listed[1]])
        ap = [steps(found) for found in places(scores, protocol.search.relevance)]
        wanted = [np.nan if value is None else value for value in expected[case]["ap"]]
        np.testing.assert_allclose(ap, wanted, atol=1e-6)
        assert np.isfinite(ap).sum() == expected[case]["valid_queries"]


def test_drawn_people(shared):
    root = drawn_people(shared)
    protocol = open_market(root)
    queries = sets_of(protocol)[0]
    assert protocol.images.image(0).shape == (128, 64, 3)
    assert "20 boxes" in protocol.remarks[0]
    assert "40 of the gallery" in protocol.remarks[1]
    assert protocol.subjects[: len(queries)].max() == 29
    train = open_images(root)
    assert train.num_classes == 30
    assert train.class_names == sorted(train.class_names)
    assert not set(train.class_names) & set(protocol.images.class_names)
    for index in (0, 50, len(train) - 1):
        name = train.names[index].decode().split("/")[1]
        assert train.class_names[train.labels[index]] == name[:4]
    assert train.fingerprint == open_images(root / "bounding_box_train").fingerprint
    assert train.image(0).shape == (128, 64, 3)


@pytest.mark.parametrize(
    ("inside", "asked", "do"),
    [
        ("people/query", "", "query/ and bounding_box_test/: {}/people"),
        ("query", "query", "query/ and bounding_box_test/: {}"),
        ("gnd_small.pkl", "", "python eval/landmarks.py {} --data NAME"),
    ],
)
def test_another_folder(tmp_path, inside, asked, do):
    (tmp_path / inside).mkdir(parents=True)
    with pytest.raises(BctError, match="has neither query/") as error:
        open_market(tmp_path / asked)
    assert error.value.do.endswith(do.format(tmp_path))


def test_lists_beside_images(shared, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(drawn_people(shared), root)
    by_folder = open_market(root)
    for part, folder in (("query", "query"), ("test", "bounding_box_test")):
        names = sorted(path.name for path in (root / folder).iterdir())
        (root / f"people_{part}.csv").write_text(
            "".join(f"{name.split('_')[0]},{folder}/{name}\n" for name in names)
        )
    assert open_market(root).fingerprint == by_folder.fingerprint
    gone = sorted((root / "bounding_box_test").glob("0[1-9]*"))[:12]
    for path in gone:
        path.unlink()
    refused(root, "12 of the")
    part = open_market(root, lacking=True)
    assert len(part.search.gallery) == len(by_folder.search.gallery) - 12
    check(part.search.relevance, len(part.search.queries), len(part.search.gallery))
    assert any("12 of the" in remark and gone[0].name in remark for remark in part.remarks)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone.jpg", "1 of 4 names are none of Market-1501, first query/someone.jpg"),
        ("-2_c1s1_000001_00.jpg", "are none of Market-1501"),
        ("0002-c1s1_000001_00.jpg", "are none of Market-1501"),
        ("0002_s1_000001_00.jpg", "do not say the camera, first query/0002_s1"),
        ("0002_c0s1_000001_00.jpg", "do not say the camera"),
        ("0002_cs1_000001_00.jpg", "do not say the camera"),
    ],
)
def test_names_of_other_kinds(tmp_path, name, words):
    refused(written(tmp_path, [*QUERY, name], TEST), words)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["0002,query/0003_c1s1_000451_03.jpg"],
            "0003_c1s1_000451_03.jpg is of 3, its line says 2",
        ),
        (["query/0003_c1s1_000451_03.jpg"], "line 1 is not <person>,<path>"),
        (["0002,query/0002_c1.jpg", "x,query/0002_c2.jpg"], "line 2 is not <person>,<path>"),
        (["0002,query/0002_c1.jpg"] * 2, "has query/0002_c1.jpg twice"),
        (["0002,../0002_c1.jpg"], "is not below the folder"),
        ([""], "has no image"),
    ],
)
def test_bad_lists(tmp_path, lines, words):
    written(tmp_path, QUERY, TEST)
    (tmp_path / "bad_query.csv").write_text("\n".join(lines) + "\n")
    refused(tmp_path, words)


def test_other_faults(tmp_path):
    refused(tmp_path, "neither query/ nor a list *query.csv")
    written(tmp_path, QUERY, [])
    refused(tmp_path, "has no image")
    written(tmp_path, QUERY[2:], TEST)
    (tmp_path / "query" / QUERY[0]).unlink()
    (tmp_path / "query" / QUERY[1]).unlink()
    refused(tmp_path, "none of the 1 queries")
    (tmp_path / "a_query.csv").touch()
    (tmp_path / "b_query.csv").touch()
    refused(tmp_path, "2 lists of its part query: a_query.csv, b_query.csv")
    with pytest.raises(BctError, match="has no image"):
        open_market_train(tmp_path)
    written(tmp_path, [], [], ["-1_c1s1_000001_00.jpg"])
    with pytest.raises(BctError, match="nobody to learn from"):
        open_market_train(tmp_path)
