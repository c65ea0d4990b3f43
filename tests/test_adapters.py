"""Adapters: Procrustes against known rotations and an independent solver, files, FCT's, kinds."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.base import clone
from support.networks import randomly
from support.old_models import tool

import bct.adapters
from backbones.fct import Transformation
from bct.adapters.base import load_adapter
from bct.adapters.fct import FCT
from bct.adapters.procrustes import Procrustes
from bct.errors import BctError
from bct.stored.artefacts import open_artefact


def rotation(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def test_a_rotation_is_found_again():
    rng = np.random.default_rng(0)
    a, q = rng.standard_normal((300, 8)), rotation(rng, 8)
    for unit in (True, False):
        adapter = Procrustes(unit).fit(a, a @ q)
        np.testing.assert_allclose(adapter.matrix, q, atol=1e-6)
        mapped = adapter.transform(a)
        assert mapped.dtype == np.float32
        np.testing.assert_allclose(mapped, a @ q, atol=1e-5)
        assert (adapter.source_width, adapter.target_width) == (8, 8)
        assert adapter.made_from == {"rows": 300, "rows_of_zeros": 0}


def test_against_scipy_on_rows_that_fit_badly():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((50, 6)) * rng.uniform(0.1, 9, (50, 1)) for _ in range(2))
    np.testing.assert_allclose(
        Procrustes(unit=False).fit(a, b).matrix, orthogonal_procrustes(a, b)[0], atol=1e-5
    )
    n, m = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    expected = orthogonal_procrustes(n, m)[0]
    np.testing.assert_allclose(Procrustes().fit(a, b).matrix, expected, atol=1e-5)
    assert np.abs(orthogonal_procrustes(a, b)[0] - expected).max() > 0.01


@pytest.mark.parametrize("widths", [(5, 9), (9, 5)])
def test_widths_that_differ(widths):
    """No other matrix with orthonormal rows or columns does better."""
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal((80, width)) for width in widths)
    w = Procrustes(unit=False).fit(a, b).matrix.astype(np.float64)
    small = w.T @ w if widths[0] > widths[1] else w @ w.T
    np.testing.assert_allclose(small, np.eye(5), atol=1e-6)
    for _ in range(200):
        other = rotation(rng, widths[0])[:, : min(widths)] @ np.eye(min(widths), widths[1])
        if widths[0] < widths[1]:
            other = np.eye(*widths) @ rotation(rng, widths[1])
            assert np.square(a @ w - b).sum() < np.square(a @ other - b).sum()
        assert np.sum((a @ w) * b) > np.sum((a @ other) * b)


def test_a_row_of_zeros_counts_for_nothing():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 30, 4))
    with_zeros = np.concatenate([a, np.zeros((3, 4))]), np.concatenate([b, np.ones((3, 4))])
    np.testing.assert_allclose(Procrustes().fit(*with_zeros).matrix, Procrustes().fit(a, b).matrix)


def test_scikit_learns_conventions():
    adapter = Procrustes(unit=False)
    again = clone(adapter)
    assert again is not adapter and again.get_params() == {"unit": False}
    assert adapter.set_params(unit=True) is adapter and adapter.unit is True
    with pytest.raises(BctError, match="no setting 'size'"):
        adapter.set_params(size=3)


def test_files(tmp_path):
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((20, 4)), rng.standard_normal((20, 6))
    adapter = Procrustes(unit=False).fit(a, b)
    adapter.made_from["source"] = {"weights": "abc", "width": 4}
    for name in ("p.npz", "p"):
        adapter.save(tmp_path / name)
        for again in (Procrustes.load(tmp_path / name), load_adapter(tmp_path / name)):
            assert again.get_params() == {"unit": False} and again.made_from == adapter.made_from
            np.testing.assert_array_equal(again.transform(a), adapter.transform(a))
    with np.load(tmp_path / "p.npz", allow_pickle=False) as plain:  # without our code
        np.testing.assert_allclose(a @ plain["matrix"], adapter.transform(a), atol=1e-5)
        assert json.loads(str(plain["adapter"]))["kind"] == "Procrustes"


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    about = {"format": "bct-adapter", "version": 1, "kind": "Procrustes", "params": {},
             "made_from": {}}  # fmt: skip

    def said(words, what=Procrustes.load, size=(2, 2), **changes):
        matrix = np.ones(size)
        np.savez(path, adapter=np.array(json.dumps({**about, **changes})), matrix=matrix)
        with pytest.raises(BctError, match=words) as caught:
            what(path)
        assert len(str(caught.value).splitlines()) == 2

    said("version 2 of bct-adapter, we read 1", version=2)
    said("is no bct-adapter file", format="other")
    said("is no adapter", params=[])
    said("is an adapter Ridge, not Procrustes", kind="Ridge")
    said("holds no Procrustes", params={"size": 1})
    said("holds no Procrustes", size=3)
    for kind in ("Ridge", "Base", "os", "Procrustes.load", "__getattr__", ""):
        said("which we do not have", load_adapter, kind=kind)
    np.savez(path, matrix=np.eye(2))
    with pytest.raises(BctError, match="is no bct-adapter file"):
        load_adapter(path)
    torch.save({"adapter": "Nothing", "w": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(BctError, match="'Nothing', which we do not have"):
        load_adapter(tmp_path / "a.pt")
    with pytest.raises(BctError, match="does not exist"):
        load_adapter(tmp_path / "none.pt")


def test_rows_that_are_refused():
    good, adapter = np.ones((4, 3)), Procrustes()
    broken = good.copy()
    broken[2, 1] = np.nan
    for words, rows in (
        (r"\(4, 3\) and \(3, 3\)", (good, good[1:])),
        (r"\(0, 3\)", (good[:0], good[:0])),
        (r"\(4,\)", (good, good[:, 0])),
        ("the source: row 2 is not finite", (broken, good)),
        ("the target: row 2 is not finite", (good, broken)),
    ):
        with pytest.raises(BctError, match=words):
            adapter.fit(*rows)
    with pytest.raises(BctError, match=r"\(4, 2\), the adapter takes \(n, 3\)"):
        adapter.fit(good, good).transform(good[:, :2])


def test_fct_is_an_adapter(tmp_path):
    model = randomly(Transformation(6, 5, 4, 7, uncertainty=True))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    rows = np.random.default_rng(5).standard_normal((9000, 10)).astype(np.float32)
    adapter = load_adapter(tmp_path / "model.pt")
    assert isinstance(adapter, FCT) and adapter.predicts_variance
    assert (adapter.source_width, adapter.side_width, adapter.target_width) == (6, 4, 5)
    with torch.no_grad():
        expected = [part.numpy() for part in model.eval()(torch.from_numpy(rows))]
    adapter.save(tmp_path / "again.pt")
    for either in (adapter, load_adapter(tmp_path / "again.pt")):
        mapped, variance = either.transform_with_variance(rows)
        np.testing.assert_allclose(mapped, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance, expected[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(either.transform(rows), mapped)
    with pytest.raises(BctError, match="it is trained") as caught:
        adapter.fit(rows, rows)
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(BctError, match=r"takes \(n, 10\)"):
        adapter.transform(rows[:, :6])


def test_a_kind_is_one_file(tmp_path, monkeypatch):
    """A file in the folder, and nothing else, makes a kind that is found, saved and loaded."""
    (tmp_path / "scale.py").write_text(
        "import numpy as np\n"
        "from bct.adapters.base import Adapter\n"
        "class Scale(Adapter):\n"
        "    def fit(self, source, target):\n"
        "        self.restore({'by': np.linalg.norm(target) / np.linalg.norm(source)})\n"
        "        self.made_from = {}\n"
        "        return self\n"
        "    def transform(self, source):\n"
        "        return np.float32(self.by * source)\n"
        "    def arrays(self):\n"
        "        return {'by': self.by}\n"
        "    def restore(self, arrays):\n"
        "        self.by = arrays['by']\n"
    )
    monkeypatch.setattr(bct.adapters, "__path__", [*bct.adapters.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bct.adapters.scale", raising=False)
    x = np.ones((3, 2), np.float32)
    bct.adapters.Scale().fit(x, 3 * x).save(tmp_path / "s.npz")
    np.testing.assert_allclose(load_adapter(tmp_path / "s.npz").transform(x), 3 * x)
    assert bct.adapters.Procrustes is Procrustes
    for name in ("Nothing", "scale", "_x", "Base"):
        assert not isinstance(getattr(bct.adapters, name, None), type)


def test_a_gallery_mapped_by_any_adapter(tmp_path, capsys):
    rng = np.random.default_rng(6)
    old, new = rng.standard_normal((50, 6)), rng.standard_normal((50, 8))
    adapter = Procrustes().fit(old, new)
    adapter.save(tmp_path / "p.npz")
    np.save(tmp_path / "old.npy", old)
    line = ("transform_gallery", tmp_path / "old.npy", tmp_path / "out.npy", "-m",
            tmp_path / "p.npz", "--batch-size", 7)  # fmt: skip
    tool(*line)
    mapped, about = open_artefact(tmp_path / "out.npy")
    np.testing.assert_allclose(mapped, adapter.transform(old), atol=1e-6)
    assert about["kind"] == "mapped_embedding"
    with pytest.raises(SystemExit):
        tool(*line, "--uncertainty", tmp_path / "u.npy")
    assert "predicts no uncertainty" in capsys.readouterr().err
