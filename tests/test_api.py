"""The public names, and the walk through them in docs/api.md."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from support.api_walk import failures
from support.demo_folder import demo_folder
from support.pictures import write_faces

import bct
import bct.adapters
import bct.metrics
from bct.errors import BctError
from bct.files import ROOT
from bct.protocols.protocol import Pairs

FUNCTIONS = ["compare", "embed", "load", "load_method", "open_images", "open_protocol",
             "write_report"]  # fmt: skip


def test_no_public_function_bears_a_modules_name():
    """All modules first, as somebody's program may do; then every name is still what it was."""
    for package in (bct, bct.metrics, bct.adapters):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    assert sorted(bct.__all__) == sorted([*FUNCTIONS, "adapters", "metrics"])
    for name in FUNCTIONS:
        assert inspect.isfunction(getattr(bct, name)), name
    for name in bct.metrics.__all__:
        assert callable(getattr(bct.metrics, name)), name
        assert not isinstance(getattr(bct.metrics, name), ModuleType), name
    assert inspect.isclass(bct.adapters.Procrustes) and inspect.isclass(bct.adapters.FCT)
    for package in (bct, bct.metrics, bct.adapters):
        with pytest.raises(AttributeError, match="nothing"):
            package.nothing  # noqa: B018


def test_public_functions_say_what_they_take_and_give():
    for name in FUNCTIONS:
        function = getattr(bct, name)
        assert "BctError" in function.__doc__, name
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)


def test_importing_bct_imports_nothing_heavy():
    code = (
        "import sys, bct; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_walk(tmp_path, monkeypatch):
    """Every line of docs/api.md, on untrained models: figures are others, all else is the same."""
    demo_folder(tmp_path / "work_dirs" / "demo")
    monkeypatch.chdir(tmp_path)
    assert not failures(ROOT / "docs" / "api.md")
    assert (tmp_path / "work_dirs/demo/api_report/report.html").is_file()


def test_compare_says_what_it_can_not_do(tmp_path):
    write_faces(tmp_path / "people.rec", [3, 3, 2])
    protocol = bct.open_protocol(tmp_path / "people.rec")
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    with pytest.raises(BctError):
        bct.compare(protocol, old=rows[:7], new=rows)
    with pytest.raises(BctError):
        bct.compare(protocol, old=rows, new=rows[:, :3])
    same = bct.compare(protocol, old=rows, new=rows, alone=rows)
    assert not same.compatible and same.gain is None
    assert tuple(same.interval) == (0.0, 0.0, 0.0) and same.over == "classes"


@pytest.fixture
def pairs(tmp_path):
    demo_folder(tmp_path / "demo")
    return bct.open_protocol(tmp_path / "demo" / "data" / "demo.bin")


def test_half_precision_gives_the_verdict_of_single(pairs):
    """Lengths beyond 255 have squares that float16 does not hold."""
    rng = np.random.default_rng(0)
    old, new = (60 * rng.standard_normal((len(pairs.images), 32)) for _ in range(2))
    half, single = (
        bct.compare(pairs, old=old.astype(kind), new=new.astype(kind), far=0.1, resamples=20)
        for kind in (np.float16, np.float32)
    )
    assert half.own > 0 and half[1:5] == pytest.approx(single[1:5], abs=0.1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"far": float("nan")}, "no rate"),
        ({"far": float("inf")}, "no rate"),
        ({"far": 0.0}, "no rate"),
        ({"far": 1e-3}, "allows no false accept"),
        ({"resamples": 0}, "resamples is 0"),
    ],
)
def test_settings_that_compare_refuses(pairs, change, word):
    rows = np.random.default_rng(0).standard_normal((len(pairs.images), 4))
    with pytest.raises(BctError, match=word):
        bct.compare(pairs, old=rows, new=rows, **{"far": 0.1, **change})


def test_rows_of_other_images_and_protocols_of_nothing_are_refused(pairs):
    rows = np.random.default_rng(0).standard_normal((len(pairs.images), 4))
    for other in (rows[:-1], np.concatenate([rows, rows])):
        with pytest.raises(BctError, match=f"embeddings for {len(rows)} images"):
            bct.compare(pairs, old=other, new=other, far=0.1)
    pairs.pairs = None
    with pytest.raises(BctError, match="neither pairs nor a search"):
        bct.compare(pairs, old=rows, new=rows)
    with pytest.raises(BctError, match="no searches"):
        bct.open_protocol("lfw.bin", gallery="elsewhere")


def test_a_far_of_one_in_n_is_resolved_by_n_impostors(pairs):
    """(1 / 49) * 49 is a little less than 1 in floating point."""
    first, second, _ = pairs.pairs
    many = np.arange(50) % len(first)
    pairs.pairs = Pairs(first[many], second[many], np.arange(50) == 0)
    rows = np.random.default_rng(0).standard_normal((len(pairs.images), 4))
    bct.compare(pairs, old=rows, new=rows, far=1 / 49, resamples=2)


def test_ijb_is_for_its_own_reader(ijb):
    with pytest.raises(BctError, match=r"tools\.ijbc\.protocol"):
        bct.open_protocol(ijb.parent)
    with pytest.raises(BctError, match=r"tools\.ijbc\.protocol"):
        bct.open_protocol(ijb)
