"""What may import what: no circle, no climb, no script and no test that another one imports."""

import re

import pytest
from support.imports import ALLOWED, REPOSITORY, circle, climbs, graph, imported, modules, room

LONGEST = 400  # lines of a module of the library


# deleted when the parts that they belong to come together
@pytest.fixture(scope="module")
def arrows():
    return graph()


def test_the_graph_is_the_sources(arrows):
    """Ways to import, each known from a place where it stands; if one moves, name another."""
    assert "bct.errors" in arrows["backbones"]
    assert "bct.distributed" in arrows["bct.train"]  # from bct import distributed
    assert "bct" not in arrows["bct.train"]
    assert "backbones.torchvision_nets" in arrows["backbones"]  # within a function
    assert len(arrows) > 100 and all(file.is_file() for file in modules().values())


def test_no_circle(arrows):
    assert not circle(arrows)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})


def test_no_import_climbs(arrows):
    assert not climbs(arrows)


def test_the_table_names_every_room_and_has_no_circle(arrows):
    assert {room(name) for name in arrows} <= ALLOWED.keys()
    above = ("bct", "tools.ijbc", "tools", "eval", "methods", "train_old")
    allowed = {
        name: {room(f"bct.{word}") for word in words.split()} - {name}
        for name, words in ALLOWED.items()
        if name not in above
    }
    assert not circle(allowed)


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("bct.errors", "bct.threads"),
        ("bct.files", "bct.safe.lists"),
        ("backbones.vit", "bct.files"),
        ("bct.metrics.scores", "bct.files"),
        ("bct.metrics.scores", "bct.data.images"),
        ("bct.training.heads", "bct.search.orders"),
        ("bct.train", "bct.protocols.search_tests"),
        ("bct.models.embed", "bct"),
        ("bct.report.page", "tools.ijbc.protocol"),
        ("bct.method", "methods.L2.train"),
        ("methods.L2.train", "methods.BCT.train"),
        ("methods.L2.train", "tools.denoise"),
        ("eval.ijbc", "tools.denoise"),
        ("eval.ijbc", "methods.L2.train"),
        ("tools.ijbc.report", "tools.denoise"),
    ],
)
def test_what_is_not_allowed_is_found(module, other):
    assert climbs({module: {other}}) == {(module, other)}


def test_nothing_imports_a_script(arrows):
    """What scripts share is in a module that is none: bct/command.py, tools/ijbc, tools/demo."""
    scripts = {
        name
        for name, file in modules().items()
        if re.search(r"^if __name__ ==", file.read_text(encoding="utf-8"), re.M)
    }
    assert {"train_old", "eval.ijbc", "methods.L2.train", "tools.denoise"} <= scripts
    assert not {(a, b) for a, others in arrows.items() for b in others & scripts}


def test_no_test_imports_another():
    files = [*(REPOSITORY / "tests").rglob("test_*.py")]
    names = {file.stem for file in files}
    names |= {f"{folder}{name}" for name in names for folder in ("tests.", "faults.")}
    assert len(files) > 40
    assert not {(file.name, name) for file in files for name in imported(file, names)}


def test_modules_of_the_library_are_short():
    library = {n: f for n, f in modules().items() if n.partition(".")[0] in ("bct", "backbones")}
    lengths = {n: len(f.read_text(encoding="utf-8").splitlines()) for n, f in library.items()}
    assert not {name: count for name, count in lengths.items() if count > LONGEST}
