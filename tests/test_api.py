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


def test_ijb_is_for_its_own_reader(ijb):
    with pytest.raises(BctError, match=r"tools\.ijbc\.protocol"):
        bct.open_protocol(ijb.parent)
    with pytest.raises(BctError, match=r"tools\.ijbc\.protocol"):
        bct.open_protocol(ijb)
