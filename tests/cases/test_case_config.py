"""Values that no run can use are refused before the output is touched: ../shared/cases/7, r_02."""

import pytest
from support.script import run_script

from bct.config import load_config


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("margin_list=(1.0,0.5)", "give a list of 3, each value a number"),
        ('margin_list=["1","2","3"]', "give a list of 3, each value a number"),
        ('decay_epoch=["a"]', "give a list, each value a whole number from 0 on"),
        ("num_workers=-1", "give a whole number from 0 to 1024"),
        ("num_epoch=0", "give a whole number from 1 on"),
        ("num_epoch=-1", "give a whole number from 1 on"),
        ("output=", "give a path"),
    ],
)
def test_case_7(shared, tmp_path, override, advice):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    rec, output = shared / "cases/5/train.rec", tmp_path / "out"
    given = [f"rec={rec}", f"output={output}", "overwrite=True", override]
    done = run_script("train_old.py", shared / "cases/7/conf.py", *given)
    key = override.partition("=")[0]
    first, second = done.stderr.splitlines()
    assert done.returncode == 1 and first.startswith(f"error: the command line: {key} can't be ")
    assert second == f"  -> {advice}"
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_text_stays_text(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(shared / "cases/7/conf.py", ["output=20240101", "rec=123"])
    assert (cfg.output, cfg.rec) == (f"{tmp_path}/20240101", f"{tmp_path}/123")
