"""Rows of embeddings: of unit length, whatever their type and length; what is none is named."""

import numpy as np
import pytest

from bct.errors import BctError
from bct.rows import check_rows, lengths, refuse_not_finite, unit_blocks, unit_rows, zeros_remark


def rows(n: int = 40, dim: int = 24) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((n, dim))


def exact(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


SCALES = {"f2": (0.01, 1, 64, 1000), "f4": (1e-39, 1e-30, 1e-8, 1, 64, 1e20, 3e37)}
SCALES |= {"f8": (*SCALES["f4"], 1e-300, 1e300)}
SCALES |= {">f4": SCALES["f4"], ">f8": SCALES["f8"], "g": SCALES["f8"]}


@pytest.mark.parametrize(("kind", "length"), [(k, n) for k, of in SCALES.items() for n in of])
def test_rows_have_length_1(kind, length):
    x = (rows() * length).astype(kind)
    with np.errstate(all="raise"):
        got = unit_rows(x)
    assert got.dtype == np.float32
    wide = (x.astype("g") / length).astype("f8")  # what the type has kept of them
    np.testing.assert_allclose(got, exact(wide), atol=2e-7)
    np.testing.assert_allclose(lengths(x) / length, np.linalg.norm(wide, axis=1), 1e-5)


def test_rows_of_one_block_differ_in_length():
    x = rows(5000).astype(np.float32)
    scale = 10.0 ** np.random.default_rng(0).integers(-30, 30, (len(x), 1))
    np.testing.assert_allclose(unit_rows((x * scale).astype("f4")), exact(x), atol=3e-7)
    np.testing.assert_array_equal(unit_rows(np.asfortranarray(x)), unit_rows(x))
    np.testing.assert_array_equal(unit_rows(x[::-2]), unit_rows(x)[::-2])


def test_zeros_stay_and_what_is_not_finite_is_nan():
    x = rows(4)
    x[1], x[2, 3], x[3, 0] = 0, np.nan, -np.inf
    got = unit_rows(x)
    assert not got[1].any() and np.isfinite(got[:2]).all()
    assert np.isnan(got[2:]).any(axis=1).all()
    assert unit_rows(np.zeros((3, 0))).shape == (3, 0) and not len(unit_rows(x[:0]))


def test_blocks_are_unit_rows(tmp_path):
    for x in (rows(), rows().astype("f2"), rows() * 1e300):
        np.save(tmp_path / "a.npy", x)
        for given in (x, np.load(tmp_path / "a.npy", mmap_mode="r")):
            got = [part.numpy() for _, part in unit_blocks(given, block=7)]
            np.testing.assert_array_equal(np.concatenate(got), unit_rows(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(bad):
    x = rows(9000, 4).astype(np.float32)
    x[8500, 1] = bad
    with pytest.raises(BctError, match=r"^a.npy: row 8500 \(8500.jpg\) is not finite"):
        check_rows(x, "a.npy", "{}.jpg".format)
    with pytest.raises(BctError, match=r"^a.npy: row 8500 is not finite"):
        list(unit_blocks(x, "a.npy"))
    with pytest.raises(BctError, match=r"^the embeddings: row 8500 is not finite"):
        refuse_not_finite(x)


def test_rows_of_zeros_are_found():
    x = rows(9000, 4) * 1e-200
    x[[0, 7, 8999]] = 0
    assert check_rows(x).tolist() == [0, 7, 8999]
    assert check_rows(x[1:7]).tolist() == check_rows(x[:0]).tolist() == []
    line = zeros_remark("a.npy", np.arange(1, 8), 9, "{}.jpg".format)
    assert line.startswith("a.npy: 7 of 9 rows are zeros") and "(row 1 (1.jpg), 2" in line
    assert line.endswith("5 (5.jpg), ...)") and "\n" not in line


def test_nothing_but_zeros_or_one_direction_is_refused():
    zeros, one = np.zeros((36, 8), np.float32), np.ones((9000, 8), np.float32)
    with pytest.raises(BctError, match=r"old.npy: all 36 rows are zeros"):
        check_rows(zeros, "old.npy")
    one[:3] = 0
    for alike in (one, one * np.arange(9000)[:, None], one * 1e-30):
        with pytest.raises(BctError, match="all 9000 rows are alike"):
            check_rows(alike)
    assert len(check_rows(one, alike=False)) == 3
    one[8999, 0] = 2  # the last one differs
    assert len(check_rows(one)) == 3
    assert len(check_rows(np.ones((1, 4)))) == 0


@pytest.mark.parametrize(
    "wrong", [np.ones((3, 2), complex), np.ones(3), np.array([["a"]]), np.array([[None]], object)]
)
def test_what_is_no_matrix_of_numbers_is_refused(wrong):
    for call in (unit_rows, check_rows, lengths):
        with pytest.raises(BctError, match="not floats"):
            call(wrong)
