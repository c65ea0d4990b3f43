"""Galleries of several model versions: what they hold, their files, and what is refused."""

import json

import numpy as np
import pytest

from bct.errors import BctError
from bct.search import gallery as module
from bct.search.gallery import Gallery
from bct.stored.fingerprint import Fingerprint

VIEW = {"size": 112, "crop": "none", "mirror": True, "pixels": "face"}
OLD, NEW, NEWER = (
    Fingerprint(digit * 64, view, width)
    for digit, view, width in (("a", VIEW, 4), ("b", VIEW, 6), ("c", None, 6))
)


def rows(seed, n, fingerprint):
    return np.random.default_rng(seed).standard_normal((n, fingerprint.width)).astype(np.float32)


def held(gallery):
    """Each id's (fingerprint, vector), by the plain definition."""
    return {
        name.item(): (gallery.fingerprints[v], gallery.vectors[v][p].tolist())
        for name, v, p in zip(gallery.ids, gallery.version, gallery.place, strict=True)
    }


def mixed():
    """7 items; 1, 3 and 5 were renewed, then 5 and 0 once more, then 6 joins the second version."""
    old, new, newer = rows(1, 7, OLD), rows(2, 3, NEW), rows(3, 2, NEWER)
    late = rows(4, 1, NEW)
    gallery = Gallery.of([f"img/{k}" for k in range(7)], old, OLD)
    gallery = gallery.renewed(np.array([3, 1, 5]), new, NEW)
    gallery = gallery.renewed(np.array([5, 0]), newer, NEWER)
    gallery = gallery.renewed(np.array([6]), late, NEW)
    said = {"img/0": (NEWER, newer[1]), "img/1": (NEW, new[1]), "img/2": (OLD, old[2]),
            "img/3": (NEW, new[0]), "img/4": (OLD, old[4]), "img/5": (NEWER, newer[0]),
            "img/6": (NEW, late[0])}  # fmt: skip
    return gallery, {name: (f, vector.tolist()) for name, (f, vector) in said.items()}


def test_rows_hold_the_version_they_were_given():
    first = Gallery.of(np.arange(3), rows(0, 3, OLD), OLD)
    before = held(first)
    second = first.renewed(np.array([2]), rows(5, 1, NEW), NEW)
    assert held(first) == before and second.version.tolist() == [0, 0, 1]
    gallery, expected = mixed()
    assert held(gallery) == expected
    assert len(gallery.fingerprints) == 3  # item 6 joined a version that was there
    assert gallery.rows_of(1).tolist() == [1, 3, 6]
    np.testing.assert_array_equal(gallery.vectors_of(1)[2], rows(4, 1, NEW)[0])


def test_files(tmp_path):
    gallery, expected = mixed()
    gallery.save(tmp_path / "g")
    again = Gallery.load(tmp_path / "g")
    assert held(again) == expected and again.ids.tolist() == gallery.ids.tolist()
    assert all(isinstance(vectors, np.memmap) for vectors in again.vectors)
    assert [v.shape for v in again.vectors] == [(2, 4), (3, 6), (2, 6)]
    assert again.vectors_of(1) is again.vectors[1]
    # in place of itself: what is mapped stays, the files before are gone
    done = again.renewed(again.rows_of(0), rows(6, 2, NEWER), NEWER)
    done.save(tmp_path / "g")
    last = Gallery.load(tmp_path / "g")
    assert held(last) == held(done) and last.fingerprints == (NEW, NEWER)
    assert len(list((tmp_path / "g").glob("*.npy"))) == 4
    assert held(again) == expected


def test_a_kill_leaves_the_gallery_from_before(tmp_path, monkeypatch):
    gallery, expected = mixed()
    gallery.save(tmp_path)

    calls, write_json = [], module.write_json

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # all arrays are written, the record that names them is not
            raise KeyboardInterrupt
        write_json(*arguments)

    monkeypatch.setattr(module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        gallery.renewed(np.array([0]), rows(7, 1, OLD), OLD).save(tmp_path)
    monkeypatch.undo()
    assert held(Gallery.load(tmp_path)) == expected
    gallery.save(tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 5  # what the kill had left is gone, too


def test_only_what_its_record_names_is_removed(tmp_path):
    """Files of others may be called as ours are."""
    gallery, _ = mixed()
    other = tmp_path / "vectors-0123abcd-0.npy"
    other.write_bytes(b"somebody's")
    for _ in range(2):
        gallery.save(tmp_path)
        assert other.read_bytes() == b"somebody's" and len(list(tmp_path.glob("*.npy"))) == 6
    record = tmp_path / "gallery.json"
    record.write_text('{"paintings": 3}')
    with pytest.raises(BctError, match="is no bct-gallery file"):
        gallery.save(tmp_path)
    assert record.read_text() == '{"paintings": 3}'


def test_integers_as_ids(tmp_path):
    Gallery.of(np.array([7, -1, 1 << 40]), rows(0, 3, OLD), OLD).save(tmp_path)
    assert Gallery.load(tmp_path).ids.tolist() == [7, -1, 1 << 40]


def test_what_is_refused():
    good, broken, ids = rows(0, 3, OLD), rows(0, 3, OLD), ["a", "b", "c"]
    broken[1, 2] = np.inf
    renewed = Gallery.of(ids, good, OLD).renewed
    for words, call in {
        "id 'a' occurs 2 times": lambda: Gallery.of(["a", "b", "a"], good, OLD),
        "the ids are float64": lambda: Gallery.of([0.5, 1, 2], good, OLD),
        r"\(3, 4\) for 2 items": lambda: Gallery.of(["a", "b"], good, OLD),
        "of 6 dimensions": lambda: Gallery.of(ids, good, NEW),
        "int64": lambda: Gallery.of(ids, np.ones((3, 4), int), OLD),
        "row 1 of the vectors, id 'b', is not finite": lambda: Gallery.of(
            ["a", "b", "c"], broken, OLD
        ),
        "row 1 of the vectors, id 'c'": lambda: renewed(np.array([0, 2, 1]), broken, OLD),
        "no different rows of a gallery of 3": lambda: renewed(np.array([3]), good[:1], OLD),
        "no different": lambda: renewed(np.array([0, 0]), good[:2], OLD),
        "no different rows": lambda: renewed(np.array([-1]), good[:1], OLD),
        "for 1 items of 6": lambda: renewed(np.array([1]), good[:1], NEW),
    }.items():
        with pytest.raises(BctError, match=words) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 2


def test_files_that_are_refused(tmp_path):
    gallery, _ = mixed()
    gallery.save(tmp_path)
    path = tmp_path / "gallery.json"
    good = json.loads(path.read_text())

    def said(words, **changes):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(BctError, match=words):
            Gallery.load(tmp_path)

    said("version 2 of bct-gallery, we read 1", version=2)
    said("is no bct-gallery file", format="bct-fingerprint")
    said("is no bct-gallery file", version="1")
    said("no whole gallery", files={})
    said("no whole gallery", versions=[])
    said("do not fit each other", versions=good["versions"][:2])
    said("no whole gallery", files={**good["files"], "version": "/etc/passwd"})
    first, second, third = good["versions"]
    said("rows for", versions=[second, first, third])
    said("do not fit each other", versions=[{**first, "width": 5}, second, third])
    said("version 9 of bct-fingerprint", versions=[{**good["versions"][0], "version": 9}])
    with pytest.raises(BctError, match="does not exist"):
        Gallery.load(tmp_path / "none")


def test_fingerprints(tmp_path):
    OLD.require_same(Fingerprint("a" * 64, dict(VIEW), 4))
    for other in (NEW, OLD._replace(width=5), OLD._replace(view=None),
                  OLD._replace(view={**VIEW, "size": 224})):  # fmt: skip
        with pytest.raises(BctError, match="the queries are of another space") as caught:
            OLD.require_same(other, "the queries")
        assert str(other) in caught.value.what and str(OLD) in caught.value.what
    path = tmp_path / "f.json"
    for fingerprint in (OLD, NEWER):
        fingerprint.save(path)
        assert Fingerprint.load(path) == fingerprint
    good = json.loads(path.read_text())
    for words, changes in (
        ("version 2 of bct-fingerprint, we read 1", {"version": 2}),
        ("is no bct-fingerprint file", {"format": "x"}),
        ("holds no fingerprint", {"weights": "abc"}),
        ("holds no fingerprint", {"width": 0}),
        ("holds no fingerprint", {"width": True}),
        ("holds no fingerprint", {"view": "face"}),
    ):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(BctError, match=words):
            Fingerprint.load(path)


def test_damaged_files_and_ids_that_occur_twice_are_refused(tmp_path):
    made = Fingerprint("0" * 64, None, 2)
    Gallery.of(["a", "b"], np.eye(2, dtype=np.float32), made).save(tmp_path)
    (ids,) = tmp_path.glob("ids-*.npy")
    whole = ids.read_bytes()
    for change in (
        lambda: np.save(ids, np.array(["a"])),
        lambda: np.save(ids, np.array(["a", "a"])),
        lambda: np.save(ids, np.array([0.5, 1.5])),
        lambda: ids.write_bytes(whole.replace(b"(2,)", b"(9" + b"9" * 9 + b",)")[: len(whole)]),
        lambda: ids.write_bytes(whole[:-3]),
        lambda: ids.unlink(),
    ):
        ids.write_bytes(whole)
        Gallery.load(tmp_path)
        change()
        with pytest.raises(BctError):
            Gallery.load(tmp_path)
