"""The wheel: built here, installed elsewhere, and of use without the clone.

What has to work without a clone belongs into WALK: it runs with the installed package alone.
"""

import email
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from support.demo_folder import demo_folder

import bct
from bct.files import ROOT

EVERY_MODULE = """
import importlib, pkgutil
import backbones, bct

for package in (backbones, bct):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith("bct.configs"):
            importlib.import_module(module.name)
            print(module.name)
"""
WALK = """
import sys
from pathlib import Path

import bct.config

here, installed = Path.cwd(), Path(sys.argv[1])
assert bct.__file__ == str(installed / "bct/__init__.py"), bct.__file__
assert bct.config.base_config()["network"] == "r50"

Path("job.py").write_text("from easydict import EasyDict\\nconfig = EasyDict(rec='data')")
cfg = bct.config.load_config("job")
assert (cfg.rec, cfg.output) == (str(here / "data"), str(here / "work_dirs/job"))
assert cfg.feature_save == str(here / "feature_save")

templates = {file.name for file in (installed / "bct/report").glob("*.j2")}
assert templates == {"report.html.j2", "report.md.j2"}
"""

API = f"""
import sys
sys.path.append({str(ROOT / "tests" / "support")!r})  # after the wheel
import api_walk, bct
from pathlib import Path

assert bct.__file__.startswith(sys.argv[1])
assert not api_walk.failures(Path({str(ROOT / "docs" / "api.md")!r}), without="load_method")
try:
    bct.load_method("MixBCT")
except bct.errors.BctError as error:
    print(error)
"""


def call(*command, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = call("-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def walk(wheel, tmp_path_factory):
    """Runs a piece of Python with the installed wheel, away from the clone; its output's lines."""
    installed, away = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("away")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    done = call(*pip, "--disable-pip-version-check", "--target", installed, wheel)
    assert done.returncode == 0, done.stderr

    def run(code):
        done = call("-c", code, installed, cwd=away, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    run.installed, run.away = installed, away
    return run


def test_it_holds_the_library_and_the_networks_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    here = {
        str(file.relative_to(ROOT))
        for folder in ("bct", "backbones")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.parent.name != "__pycache__"
    }
    assert inside == {*here, "bct/configs/base.py"}
    assert {name.partition("/")[0] for name in names} == {
        "bct",
        "backbones",
        f"bct-{bct.__version__}.dist-info",
    }


def test_it_asks_for_what_requirements_txt_does(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    about = email.message_from_bytes(archive.read(name))
    wanted = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(wanted) == sorted((ROOT / "requirements.txt").read_text().split())
    assert about["Version"] == bct.__version__


def test_every_module_imports_without_the_clone(walk):
    imported = walk(EVERY_MODULE)
    assert {"bct.train", "bct.models.weights", "backbones.vit"} <= set(imported)
    assert len(imported) > 70


def test_it_is_of_use_without_the_clone(walk):
    walk(WALK)
    assert [path.name for path in walk.away.iterdir()] == ["job.py"]


def test_the_walk_of_the_docs_runs_on_it(walk):
    demo_folder(walk.away / "work_dirs" / "demo")
    what, do = walk(API)[-2:]
    assert "can't load the method MixBCT" in what and "clone of the repository" in do
    shutil.rmtree(walk.away / "work_dirs")


def test_two_lines_where_another_package_called_backbones_hides_ours(walk, tmp_path):
    other = tmp_path / "backbones"
    for empty in (True, False):
        other.mkdir(exist_ok=True)
        if not empty:
            (other / "__init__.py").write_text("def get_model(*_, **__): ...\n")
        path = os.pathsep.join([str(tmp_path), str(walk.installed)])
        done = call("-c", "import bct", cwd=walk.away, PYTHONPATH=path)
        if empty:  # Python takes a real package, wherever it stands, for a folder that is none
            assert done.returncode == 0, done.stderr
        else:
            *_, what, do = done.stderr.splitlines()
            assert done.returncode == 1 and str(other) in what and "PYTHONPATH" in do
