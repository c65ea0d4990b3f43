"""Where results go is asked before the work: names, folders, permissions."""

import os
from pathlib import Path

import pytest

from bct.errors import BctError
from bct.files import write_text
from bct.outputs import check_outputs, results_files, short_name


@pytest.mark.parametrize("name", ["a" * 1000, "é" * 300, "日" * 200, "a" * 201, "x\udcff" * 150])
def test_long_names_are_cut_and_stay_apart(name, tmp_path):
    short = short_name(name)
    assert len(os.fsencode(short)) <= 200 and short.startswith(name[:40])
    assert short_name(name + "b") != short == short_name(name)
    write_text(tmp_path / f"{short}.json", "x")  # with atomic's own marks it fits
    assert (tmp_path / f"{short}.json").is_file()


def test_short_names_stay():
    assert (
        short_name("new_vs_old_IJBC_11") == "new_vs_old_IJBC_11"
        and short_name("a" * 200)[-1] == "a"
    )


def test_what_can_not_be_written_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "there/r.json").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for target, word in (
        (tmp_path / "file/r", "file is no folder"),
        (tmp_path / "file/deeper/r", "file is no folder"),
        (tmp_path / "there/r", "r.json is a folder"),
        (tmp_path / ("n" * 250), "is too long a name"),
        (tmp_path / "not/yet" / ("n" * 250), "is too long a name"),
        (tmp_path / ("d" * 300) / "r", "is too long a name"),
    ):
        with pytest.raises(BctError, match=word):
            check_outputs(*results_files(target))
    check_outputs(*results_files(tmp_path / "not/yet/r"), tmp_path / "there/s.npz")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_takes_nothing(tmp_path):
    folder = Path("/proc/self")  # root may write everywhere else
    if os.geteuid():
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
    with pytest.raises(BctError, match="nothing can be written to"):
        check_outputs(*results_files(folder / "r"))
