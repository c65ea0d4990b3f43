"""runs/benchmark.sh: from records to the table, and again without doing anything twice."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from support.pictures import jpeg
from support.script import run_script

from bct.files import ROOT


def benchmark(*arguments):
    return subprocess.run(
        ["bash", "runs/benchmark.sh", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


def test_arguments_are_checked():
    done = benchmark("--seeds", "3")
    assert done.returncode == 2 and "--seeds is not NAME=value" in done.stderr
    done = benchmark("SEEDS=1")
    assert done.returncode == 1 and "set DATA to" in done.stderr


@pytest.fixture
def runs(tmp_path):
    """One seed of a scenario whose run.json files say that all is finished."""
    for folder in ("data/seed0/old", "EXdata/seed0/alone", "EXdata/seed0/BCT"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        (tmp_path / "runs" / folder / "run.json").write_text('{"finished": true}')
    return tmp_path / "runs"


@pytest.mark.parametrize("said", ["null", "[]", "{}", '"x"', '{"finished": "no"}', "3"])
def test_a_foreign_run_json_is_no_finished_run(runs, ijb, said):
    (runs / "EXdata/seed0/BCT/run.json").write_text(said)
    done = run_script("eval/benchmark.py", runs, "-d", ijb.parent, "--far", "0.1")
    assert done.returncode == 1 and "holds no scenario with a finished" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2


def test_what_can_not_be_judged_is_refused_before_the_work(runs, ijb, tmp_path):
    one_kind = tmp_path / "same.bin"
    one_kind.write_bytes(pickle.dumps(([jpeg(k, 0) for k in range(4)], [True, True])))
    for line, word in (
        (["--far", "1e-3"], "allows no false accept among 60 impostor pairs"),
        (["--far", "0.1", "--bin", one_kind], "all pairs of same are of one kind"),
        (["--far", "0.1"], "does not say by which method"),
    ):
        done = run_script("eval/benchmark.py", runs, "-d", ijb.parent, *line)
        assert done.returncode == 1 and word in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 2


@pytest.mark.parametrize(
    "damage", ["null", "[]", "roles", "files", "test", "quality", "part", "number"]
)
def test_damaged_results_of_searches_are_named(tmp_path, damage):
    """eval/retrieval_table.py reads what eval/retrieval.py has written, or somebody else."""
    folder = tmp_path / "seed0/retrieval"
    folder.mkdir(parents=True)
    tests = ("old / old", "new / old", "new / new", "alone / alone", "alone / old")
    figures = {"all queries": {"map": 0.5, "top1": 0.25}}
    roles = {"new": ["new"], "old": "old", "alone": "alone"}
    said = {"tests": {name: dict(figures) for name in tests}, "roles": roles}
    (folder / "a.json").write_text(json.dumps(said))
    (folder / "array.json").write_text('{"rows": 3}')
    table = ("eval/retrieval_table.py", tmp_path)
    done = run_script(*table)
    assert done.returncode == 0 and "| new | all | 0.500 |" in done.stdout, done.stderr
    said["files"] = {"new": "out/seed0/l2/model.pt"}  # a single one is called new, whatever it is
    (folder / "a.json").write_text(json.dumps(said))
    done = run_script(*table)
    assert done.returncode == 0 and "| l2 | all | 0.500 |" in done.stdout, done.stderr
    if damage in ("null", "[]"):
        (folder / "b.json").write_text(damage)
        assert run_script(*table).returncode == 0
        return
    match damage:
        case "roles":
            said["roles"] = ["new"]
        case "files":
            said["files"] = ["model.pt"]
        case "test":
            del said["tests"]["new / old"]
        case "quality":
            said["tests"]["new / old"] = {"all queries": {"map": 0.5}}
        case "part":
            said["tests"]["new / old"] = {}
        case "number":
            said["tests"]["new / old"] = {"all queries": {"map": "high", "top1": None}}
    (folder / "a.json").write_text(json.dumps(said))
    done = run_script(*table)
    assert done.returncode == 1 and str(folder.parent) in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 2


@pytest.mark.slow
def test_the_table_and_a_second_run(tmp_path):
    faces = tmp_path / "faces"
    drawn = ("--identities", "20", "--images", "8", "--eval-identities", "12")
    subprocess.run(
        [sys.executable, "tools/make_demo_data.py", "--out", str(faces), *drawn],
        cwd=ROOT, check=True,
    )  # fmt: skip
    small = "network=demo_w16 embedding_size=40 batch_size=8 num_workers=0 num_epoch="
    arguments = (
        f"DATA={faces}", f"IJBC={faces}", f"BIN={faces}/demo.bin", f"OUT={tmp_path / 'out'}",
        "SCENARIOS=OPclass EXdata", "METHODS=BCT weakenedL2 BT2 FCT", "SEEDS=0 1",
        "FAR=1e-1", "JOBS=2", f"OLD={small}1", f"NEW={small}2",
        "MAP=num_epoch=2 batch_size=32 num_workers=0 warmup_epoch=0",
    )  # fmt: skip
    first = benchmark(*arguments)
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in first.stdout
    for line in ("**OPclass**, 2 seed(s)", "**EXdata**, 2 seed(s)", "| BCT |", "| weakenedL2 |",
                 "| alone |", "| BT2 |", "| FCT |", "95 % interval over templates"):  # fmt: skip
        assert line in table
    row = json.loads((tmp_path / "out" / "table.json").read_text())["scenarios"]["OPclass"]["BCT"]
    assert row["seeds"] == ["seed0", "seed1"] and len(row["cross_tar"]) == 2
    mean = [sum(row[f"{test}_tar"]) / 2 for test in ("cross", "old")]
    assert row["difference"]["estimate"] == pytest.approx(mean[0] - mean[1])
    assert row["compatible"] == (mean[0] > mean[1])

    assert row["over"] == "templates"
    scenarios = json.loads((tmp_path / "out" / "table.json").read_text())["scenarios"]
    for methods in scenarios.values():
        assert methods["FCT"]["self_tar"] == methods["FCT"]["alone_tar"] == row_of_alone(methods)
        assert methods["FCT"]["cross_tar"] != methods["FCT"]["alone_cross_tar"]  # it is mapped
        assert methods["FCT"]["cross_set"] and methods["BT2"]["cross_tar"]

    models = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("model.pt")}
    assert len(models) == 4 + 2 * 2 * 5  # old models; the new one alone and four methods
    (tmp_path / "out" / "OPclass" / "seed1" / "BCT" / "model.pt").unlink()
    (tmp_path / "out" / "OPclass" / "seed1" / "BCT" / "run.json").unlink()
    second = benchmark(*arguments)
    assert second.returncode == 0, second.stderr
    again = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("model.pt")}
    assert {p for p in models if again[p] != models[p]} == {
        tmp_path / "out" / "OPclass" / "seed1" / "BCT" / "model.pt"
    }
    assert (tmp_path / "out" / "table.md").read_text() == table


def row_of_alone(methods):
    """The same for every method of a scenario."""
    (values,) = {tuple(figures["alone_tar"]) for figures in methods.values()}
    return list(values)
