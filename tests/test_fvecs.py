"""Vectors in .fvecs files, and rows of two files as one array."""

import numpy as np
import pytest

from bct.data.image_set import ImageSet, Joined
from bct.errors import BctError
from bct.models import model as models
from bct.models.embed import embed_models
from bct.models.model import open_model
from bct.rows import unit_rows
from bct.stored.fvecs import open_fvecs
from bct.stored.stacked import Stacked
from bct.stored.vector_files import is_stored, open_vectors


class Named(ImageSet):
    """A set of which only the number counts."""

    def __init__(self, n, name="set"):
        self.path, self.labels = f"/{name}", np.zeros(n, np.int64)
        self.fingerprint = f"{name}{n}"

    def __len__(self):
        return len(self.labels)

    def describe(self, index):
        return f"{self.path}/{index}"


def write(path, rows):
    head = np.full((len(rows), 1), rows.shape[1], "<i4").view("<f4")
    np.hstack([head, rows.astype("<f4")]).tofile(path)
    return path


@pytest.mark.parametrize("shape", [(7, 5), (1, 4), (3, 1), (5000, 3)])
def test_rows(tmp_path, shape):
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = write(tmp_path / "a.fvecs", rows)
    found = open_fvecs(path)
    np.testing.assert_array_equal(found, rows)
    assert found.dtype == np.float32
    assert not found.flags.writeable
    assert is_stored(path)
    opened, manifest = open_vectors(path, len(rows))
    assert manifest == {}
    np.testing.assert_array_equal(unit_rows(opened), unit_rows(rows))
    with pytest.raises(BctError, match=f"has {len(rows)} rows for 9 images"):
        open_vectors(path, 9)


def test_oxford(shared):
    path = shared / "data" / "landmarks" / "oxford_features" / "oxford_features.fvecs"
    found = open_fvecs(path)
    assert found.shape == (5063, 128)
    raw = np.fromfile(path, "<f4").reshape(5063, 129)[:, 1:]
    np.testing.assert_array_equal(found, raw)


def test_other_files(tmp_path):
    path = write(tmp_path / "a.fvecs", np.ones((4, 5)))
    good = path.read_bytes()
    second = bytearray(good)
    second[24:28] = np.int32(4).tobytes()
    for data, words in (
        (b"", "it has 0 bytes"),
        (good[:-1], "it has 95 bytes"),
        (good[:-4], "its first row says 5 dimensions, which does not fit"),
        (np.int32(0).tobytes() + good[4:], "says 0 dimensions"),
        (np.int32(-5).tobytes() + good[4:], "says -5 dimensions"),
        (bytes(second), "row 1 says 4 dimensions, the first one 5"),
    ):
        path.write_bytes(data)
        with pytest.raises(BctError, match=words) as error:
            open_vectors(path)
        assert "\n" not in str(error.value.what) + error.value.do
    path.write_bytes(write(path, np.zeros((4, 5))).read_bytes())
    with pytest.raises(BctError, match="all 4 rows are zeros"):
        open_vectors(path)
    bad = np.ones((4, 5))
    bad[2, 3] = np.nan
    with pytest.raises(BctError, match="row 2 is not finite"):
        open_vectors(write(path, bad))


@pytest.fixture
def parts():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 6, 1)]


def test_stacked_is_like_the_whole(parts):
    stacked, whole = Stacked(parts), np.concatenate(parts)
    assert (len(stacked), stacked.shape, stacked.ndim) == (11, (11, 3), 2)
    assert stacked.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(stacked), whole)
    for rows in (
        *(slice(a, b, c) for a in range(12) for b in range(13) for c in (1, 2)),
        slice(None), slice(-3, None), np.array([10, 0, 5, 5, -1]), whole[:, 0] > 0, 4, -1,
    ):  # fmt: skip
        np.testing.assert_array_equal(stacked[rows], whole[rows])
    assert stacked[4:10] is parts[1]
    assert np.shares_memory(stacked[5:7], parts[1])


def test_large_files_are_not_copied(tmp_path, monkeypatch, parts):
    images = Joined([Named(4, "queries"), Named(6, "gallery")])
    np.save(tmp_path / "q.npy", parts[0])
    write(tmp_path / "g.fvecs", parts[1])
    model = open_model(f"{tmp_path}/q.npy,{tmp_path}/g.fvecs")
    plain = embed_models({"m": model}, images)["m"]
    monkeypatch.setattr(models, "_COPIED", 0)
    found = embed_models({"m": model}, images)["m"]
    assert isinstance(found, Stacked)
    np.testing.assert_array_equal(np.asarray(found), plain)
    parts[1][2] = 0
    write(tmp_path / "g.fvecs", parts[1])
    remarks = []
    embed_models({"m": model}, images, remarks=remarks)
    assert "1 of 10 rows are zeros" in remarks[0]
    assert "row 6 (/gallery/2)" in remarks[0]


def test_a_third_file_for_distractors(tmp_path, parts):
    images = Joined([Named(4), Joined([Named(6), Named(1)])])
    for name, rows in zip("abc", parts, strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    np.save(tmp_path / "bc.npy", np.concatenate(parts[1:]))
    for files in ("a b c", "a bc"):
        model = open_model(",".join(f"{tmp_path}/{name}.npy" for name in files.split()))
        np.testing.assert_array_equal(model.rows(images), np.concatenate(parts))
    model = open_model(f"{tmp_path}/a.npy")
    with pytest.raises(BctError, match=r"is 1 file\(s\) of embeddings for 2 set\(s\)"):
        model.rows(images)


def test_two_widths(tmp_path, parts):
    np.save(tmp_path / "a.npy", parts[0])
    np.save(tmp_path / "b.npy", parts[1][:, :2])
    model = open_model(f"{tmp_path}/a.npy,{tmp_path}/b.npy")
    with pytest.raises(BctError, match="have 3 and 2 dimensions"):
        model.rows(Joined([Named(4), Named(6)]))
