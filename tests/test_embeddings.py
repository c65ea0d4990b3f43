"""Stored embeddings in the place of a network."""

import json

import numpy as np
import pytest
import torch

from bct.errors import BctError
from bct.stored.artefacts import write_artefact
from bct.stored.vector_files import open_vectors, read_arrays


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_stored_rows(dtype, tmp_path):
    want = np.random.default_rng(0).normal(size=(70_000, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", want)
    np.savez(tmp_path / "one.npz", anything=want)
    np.savez_compressed(tmp_path / "named.npz", names=np.arange(3), embeddings=want)
    for name in ("a.npy", "one.npz", "named.npz"):
        got = open_vectors(tmp_path / name, len(want))[0]
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    mapped = open_vectors(tmp_path / "a.npy", len(want))[0]
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable


def test_stored_rows_that_are_refused(tmp_path):
    good = np.ones((5, 4), np.float32)
    late = np.ones((70_000, 4), np.float32)
    late[69_999, 2] = np.inf
    for array, rows, words in (
        (good, 1237, "has 5 rows for 1237 images"),
        (late, 70_000, "row 69999 is not finite"),
        (np.where(np.eye(5, 4), np.nan, good), 5, "row 0 is not finite"),
        (good[0], 4, "holds float32 (4,), not floats (n, D)"),
        (good[None], 1, "holds float32 (1, 5, 4)"),
        (good[:, :0], 5, "holds float32 (5, 0)"),
        (good.astype(np.int32), 5, "holds int32 (5, 4)"),
        (good.astype(np.complex64), 5, "holds complex64 (5, 4)"),
        (np.array([[None]]), 1, "can't be read as embeddings"),  # it would be unpickled
    ):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        np.savez(tmp_path / "a.npz", array)
        for name in ("a.npy", "a.npz"):
            with pytest.raises(BctError) as info:
                open_vectors(tmp_path / name, rows)
            assert words in str(info.value), str(info.value)


def test_files_that_are_no_stored_rows(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(BctError, match="do not exist"):
        open_vectors(path, 5)
    np.savez(path, new=np.ones((5, 4)), old=np.ones((5, 4)))
    with pytest.raises(BctError, match=r"holds 2 arrays \(new, old\)"):
        open_vectors(path, 5)
    np.savez(path, np.ones((500, 4)))
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(BctError, match="can't be read as embeddings"):
            open_vectors(path, 5)
    torch.save({"a": torch.zeros(2)}, path)  # a zip file, too
    with pytest.raises(BctError, match="arrays"):
        open_vectors(path, 5)


def test_a_number_per_row(tmp_path):
    path, want = tmp_path / "u.npy", np.arange(4, dtype=np.float32)
    for array in (want, want[:, None]):
        np.save(path, array)
        got, manifest = open_vectors(path, 4, column=True)
        np.testing.assert_array_equal(got, want)
        assert manifest == {} and isinstance(got, np.memmap)
    for array, words in (
        (np.ones((4, 2)), r"holds float64 \(4, 2\), not floats \(n,\)"),
        (np.arange(4), "holds int64"),
        (np.array([0, 1, np.nan, 2.0]), "row 2 is not finite"),
        (np.ones(5), "has 5 rows for 4"),
    ):
        np.save(path, array)
        with pytest.raises(BctError, match=words):
            open_vectors(path, 4, column=True)
    np.save(path, np.array([[0.0, np.inf]]))
    assert open_vectors(path, finite=False)[0].shape == (1, 2)


def test_a_manifest_has_to_fit(tmp_path):
    path, array = tmp_path / "a.npy", np.ones((3, 2), np.float32)
    with write_artefact(path, array.shape, "float32", kind="old_embedding", data="d") as out:
        out[:] = array
    assert open_vectors(path)[1]["data"] == "d"
    np.save(path, 2 * array)  # another array of the same shape
    with pytest.raises(BctError, match="not the array its manifest was written for"):
        open_vectors(path, 3)
    for other in ({"class_names": ["a"]}, ["a"]):  # a model.json, or a list of names
        path.with_suffix(".json").write_text(json.dumps(other))
        assert open_vectors(path)[1] == {}
    path.with_suffix(".json").write_text("{")
    with pytest.raises(BctError, match="not valid JSON"):
        open_vectors(path)


def test_all_arrays_of_an_archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=np.ones((2, 3)), said=np.array("text"))
    found = read_arrays(path)
    assert found["w"].shape == (2, 3) and str(found["said"]) == "text"
    np.savez(path, w=np.array([None]))
    with pytest.raises(BctError, match="can't be read as a "):
        read_arrays(path)
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(BctError, match="can't be read as a "):
        read_arrays(tmp_path / "a.npy")
