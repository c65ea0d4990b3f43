"""Google Landmarks v2: its csv files, AdvBCT's lists, what is in neither."""

import json
import os
import shutil

import numpy as np
import pytest
from support.landmark_sets import drawn_landmarks
from support.plain_precision import cosines, first100, places

from bct.errors import BctError
from bct.metrics.relevance import check, positives
from bct.models.model import open_model
from bct.protocols.gldv2 import open_gldv2
from bct.protocols.image_search import sets_of

INDEX = ["aa00", "ab01", "ba02", "bb03", "cc04"]
SOLUTION = [
    "id,images,Usage",
    "q001,aa00 ba02,Private",
    "q002,bb03,Public",
    "q003,None,Ignored",
    "q004,cc04 aa00 ab01,Private",
]


def written(folder, index=INDEX, solution=SOLUTION, name="retrieval_solution_v2.1.csv"):
    (folder / "index.csv").write_text("\n".join(["id", *index]) + "\n")
    (folder / name).write_text("\n".join(solution) + "\n")
    return folder


def as_lists(folder, split="private"):
    """The same as AdvBCT writes it."""
    path = [f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg" for name in INDEX]
    (folder / "gldv2_gallery_list.txt").write_text(
        "".join(f"index/{name} {row}\n" for row, name in enumerate(path))
    )
    lines = ["test/q/0/0/q001.jpg 0", "test/q/0/0/q004.jpg 1"]
    (folder / f"gldv2_{split}_query_list.txt").write_text("\n".join(lines) + "\n")
    truth = [f"{lines[0]} 0,2", f"{lines[1]} 4,0,1"]
    (folder / f"gldv2_{split}_query_gt.txt").write_text("\n".join(truth) + "\n")
    return folder


def refused(folder, words, split="private", **options):
    with pytest.raises(BctError) as error:
        open_gldv2(folder, split, **options)
    assert words in error.value.what, error.value.what
    assert "\n" not in error.value.what + error.value.do
    assert error.value.do


def names_of(images):
    return [images.describe(row) for row in range(len(images))]


def test_csv_files(tmp_path):
    protocol = open_gldv2(written(tmp_path))
    queries, gallery = sets_of(protocol)
    assert names_of(queries) == ["test/q/0/0/q001.jpg", "test/q/0/0/q004.jpg"]
    assert names_of(gallery)[1] == "index/a/b/0/ab01.jpg"
    relevance = protocol.search.relevance
    assert relevance.positive.offsets.tolist() == [0, 2, 5]
    assert relevance.positive.rows.tolist() == [0, 2, 4, 0, 1]
    assert not len(relevance.ignored.rows)
    assert protocol.search.precision == "first100"
    assert not protocol.search.readings
    assert protocol.name == "gldv2_private"
    assert protocol.remarks == ["1 ignored queries are left out."]
    public = open_gldv2(tmp_path, "public")
    assert public.search.relevance.positive.rows.tolist() == [3]
    assert public.name == "gldv2_public"
    with pytest.raises(BctError, match="no folder of its images"):
        protocol.images.image(0)


def test_lists_say_the_same(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "lists").mkdir()
    one = open_gldv2(written(tmp_path / "csv"))
    other = open_gldv2(as_lists(tmp_path / "lists"))
    assert one.fingerprint == other.fingerprint
    for a, b in zip(one.search.relevance, other.search.relevance, strict=True):
        assert a.offsets.tolist() == b.offsets.tolist()
        assert a.rows.tolist() == b.rows.tolist()
    refused(tmp_path / "lists", "gldv2_public_query_gt.txt does not exist", "public")


def test_golden(shared, tmp_path):
    golden = shared / "golden" / "landmarks_reid" / "protocols"
    expected = json.loads((golden / "expected.json").read_text())["gldv2"]
    arrays = np.load(golden / "inputs.npz")
    ids = (golden / "gldv2_index_ids.txt").read_text().split()
    (tmp_path / "index.csv").write_text("id\n" + "\n".join(ids) + "\n")
    shutil.copy(golden / "retrieval_solution_synthetic.csv", tmp_path / "retrieval_solution.csv")
    for split in ("private", "public"):
        protocol = open_gldv2(tmp_path, split)
        wanted = expected["expected"][split.capitalize()]
        names = [name[-20:-4] for name in names_of(sets_of(protocol)[0])]
        assert names == list(wanted["ap"])
        assert f"{len(expected['ignored'])} ignored" in protocol.remarks[0]
        rows = [expected["query_ids"].index(name) for name in names]
        scores = cosines(arrays["gld_query"][rows], arrays["gld_index"])
        ap = [first100(found) for found in places(scores, protocol.search.relevance)]
        np.testing.assert_allclose(ap, list(wanted["ap"].values()), atol=1e-12)
        assert np.mean(ap) == pytest.approx(wanted["mAP_at_100"], abs=1e-9)
        wanted = [expected["positives"][row] for row in rows]
        assert positives(protocol.search.relevance).tolist() == wanted


def test_drawn_views(shared):
    root = drawn_landmarks(shared) / "gldv2"
    private, public = (open_gldv2(root, split) for split in ("private", "public"))
    assert [len(p.search.queries) for p in (private, public)] == [27, 13]
    assert len(private.search.gallery) == 204
    assert private.images.image(27).shape == (112, 112, 3)
    assert (positives(private.search.relevance) >= 4).all()
    # query and gallery of a landmark have one subject
    relevance = private.search.relevance
    of_query, of_item = np.split(private.subjects, [27])
    owner = relevance.positive.owners()
    assert (of_item[relevance.positive.rows] == of_query[owner]).all()
    check(relevance, 27, 204)


def test_missing_images(shared, tmp_path):
    shutil.copytree(drawn_landmarks(shared) / "gldv2", tmp_path / "set")
    whole = open_gldv2(tmp_path / "set")
    gallery = names_of(sets_of(whole)[1])
    for name in gallery[10:25]:
        os.remove(name)
    refused(tmp_path / "set", "15 of the 204 images")
    with pytest.raises(BctError) as error:
        open_gldv2(tmp_path / "set")
    shown = [os.path.basename(name) in error.value.what for name in gallery[10:25]]
    assert shown == [True] * 10 + [False] * 5
    part = open_gldv2(tmp_path / "set", lacking=True)
    assert len(part.search.gallery) == 189
    assert any("15 of the 204" in remark for remark in part.remarks)
    check(part.search.relevance, 27, 189)
    kept = sets_of(part)[1].listed[1]
    for query in range(27):
        mine, of_all = (
            p.search.relevance.positive.of(np.array([query])).rows for p in (part, whole)
        )
        assert set(kept[mine]) == set(of_all) & set(kept)
    shutil.rmtree(tmp_path / "set" / "index")
    refused(tmp_path / "set", "204 of the 204 images", lacking=True)
    assert len(open_gldv2(tmp_path / "set", stored=True).search.gallery) == 204


def test_a_query_without_images_counts_in_no_mean(tmp_path):
    solution = [*SOLUTION, "q005,,Private", "q006,None,Private"]
    protocol = open_gldv2(written(tmp_path, solution=solution))
    assert positives(protocol.search.relevance).tolist() == [2, 3, 0, 0]
    assert "2 of 4 queries have no positive image" in protocol.remarks[1]
    assert "q005.jpg, q006.jpg" in protocol.remarks[1]
    refused(
        written(tmp_path, solution=[SOLUTION[0], "q001,None,Private"]),
        "none of the 1 queries",
    )


@pytest.mark.parametrize(
    ("index", "solution", "words"),
    [
        (INDEX, [*SOLUTION, "q009,aa00 ffff eeee,Private"], "2 of its images are not in the index"),
        (INDEX, [*SOLUTION, "q001,aa00,Private"], "has 1 images twice, first q001"),
        (INDEX, [*SOLUTION, "q001,aa00,Ignored"], "has 1 images twice, first q001"),
        (INDEX, [*SOLUTION, "q009,aa00 bb03 aa00,Private"], "query q009 names an image twice"),
        (INDEX, [*SOLUTION, "q009,aa00,Hidden"], "line 6 is not"),
        (INDEX, [*SOLUTION, "q009,aa00"], "line 6 is not"),
        (INDEX, [*SOLUTION, "q9,aa00,Private"], "is no id of an image"),
        (INDEX, [*SOLUTION, "../../x,aa00,Private"], "is no id of an image"),
        (INDEX, ["id,Usage", "q001,Private"], "line 1 is not its header, id,images,usage"),
        (INDEX, SOLUTION[:1], "names no image"),
        (INDEX, [SOLUTION[0], SOLUTION[2]], "has no private query"),
        ([*INDEX, "aa00"], SOLUTION, "has 1 images twice, first aa00"),
        ([*INDEX, "a/b"], SOLUTION, "'a/b' is no id"),
        (INDEX[1:], SOLUTION, "2 of its images are not in the index, first aa00 of query q001"),
        ([], SOLUTION, "names no image"),
    ],
)
def test_bad_csv_files(tmp_path, index, solution, words):
    refused(written(tmp_path, index, solution), words)


def test_other_faults(tmp_path):
    refused(tmp_path, "neither index.csv nor gldv2_gallery_list.txt")
    (tmp_path / "index.csv").write_text("name\naa00\n")
    refused(tmp_path, "no retrieval_solution_v2.1.csv (found: none)")
    written(tmp_path, name="retrieval_solution_v1.csv")
    assert len(open_gldv2(tmp_path).search.queries) == 2
    written(tmp_path, name="retrieval_solution_v3.csv")
    refused(tmp_path, "found: retrieval_solution_v1.csv, retrieval_solution_v3.csv")
    written(tmp_path)
    assert len(open_gldv2(tmp_path).search.queries) == 2
    refused(tmp_path, "no split 'test'", "test")
    (tmp_path / "index.csv").write_bytes("id\naa00\n".encode("utf-16"))
    refused(tmp_path, "UTF-16")


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("gallery_list", "ab01.jpg 1", "ab01.jpg 2", "line 2 is not <path> 1, its row"),
        ("gallery_list", "ab01.jpg 1", "ab01.jpg", "line 2 is not 2 words"),
        ("gallery_list", "index/a/b/0/ab01", "index/../b/0/ab01", "not below the folder"),
        ("gallery_list", "index/a/b/0/ab01", "index/a/a/0/aa00", "twice"),
        ("private_query_gt", "0,2", "0,5", "line 1 is not"),
        ("private_query_gt", "0,2", "0,-2", "line 1 is not"),
        ("private_query_gt", "0,2", "0,0", "q001.jpg names an image twice"),
        ("private_query_gt", "0,2", "", "line 1 is not 3 words"),
        ("private_query_gt", "q004.jpg 1", "q005.jpg 1", "name other queries"),
        ("private_query_list", "q004.jpg 1", "q004.jpg 2", "name other queries"),
    ],
)
def test_bad_lists(tmp_path, file, old, new, words):
    path = as_lists(tmp_path) / f"gldv2_{file}.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refused(tmp_path, words)


def test_stored_descriptors(tmp_path):
    protocol = open_gldv2(written(tmp_path), stored=True)
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(n, 4)).astype(np.float32) for n in (2, 5)]
    for name, rows in zip("qg", sides, strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    rows = open_model(f"{tmp_path}/q.npy,{tmp_path}/g.npy").rows(protocol.images)
    np.testing.assert_array_equal(rows, np.concatenate(sides))
    np.save(tmp_path / "g.npy", sides[1][:4])
    with pytest.raises(BctError, match=r"g.npy has 4 rows for 5 images"):
        open_model(f"{tmp_path}/q.npy,{tmp_path}/g.npy").rows(protocol.images)
