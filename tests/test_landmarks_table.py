"""AdvBCT's table over data sets: its published rows, and what can't be read."""

import json

import pytest
from support.script import run_script

# AdvBCT's main table, extended-class, per cent: RParis6k, ROxford5k, GLDv2
OLD, ALONE = (74.29, 54.34, 11.43), (81.15, 63.85, 16.48)
ROWS = {  # self, cross, (P_up, P_comp, P_1) as printed
    "BCT": ((79.45, 58.94, 14.79), (76.13, 53.43, 12.26), (48.33, 52.79, 50.41)),
    "AdvBCT": ((82.05, 64.51, 16.44), (77.16, 54.82, 12.05), (50.16, 54.87, 52.35)),
}
SETS = ("rparis6k", "roxford5k", "gldv2")


def write(folder, name, at, models=tuple(ROWS)):
    tests = {"old / old": OLD[at], "alone / alone": ALONE[at]}
    for model in models:
        tests |= {f"{model} / {model}": ROWS[model][0][at], f"{model} / old": ROWS[model][1][at]}
    roles = {"new": list(models), "old": "old", "mapped": None, "alone": "alone", "chain": False}
    said = {name: {"all queries": {"map": value / 100}} for name, value in tests.items()}
    (folder / f"{name}.json").write_text(json.dumps({"tests": said, "roles": roles}))


def table(folder):
    return run_script("eval/landmarks_table.py", folder, "-o", folder / "out" / "table")


@pytest.fixture
def results(tmp_path):
    for at, name in enumerate(SETS):
        write(tmp_path, name, at)
    (tmp_path / "array.json").write_text('{"kind": "embeddings"}')  # the manifest of an array
    return tmp_path


def test_the_published_rows(results):
    done = table(results)
    assert done.returncode == 0, done.stderr
    said = json.loads((results / "out/table.json").read_text())
    assert sorted(said["sets"]) == sorted(SETS)
    for model, (_, _, printed) in ROWS.items():
        found = [100 * said["models"][model][key] for key in ("p_up", "p_comp", "p_1")]
        assert found == pytest.approx(printed, abs=0.015)
    page = (results / "out/table.md").read_text()
    assert "| AdvBCT |" in page and "50.16" in page and "74.29" in page


def test_what_an_old_model_as_good_as_the_new_one_leaves_open(results):
    said = json.loads((results / "gldv2.json").read_text())
    said["tests"]["alone / alone"]["all queries"]["map"] = 0.05
    (results / "gldv2.json").write_text(json.dumps(said))
    assert table(results).returncode == 0
    assert json.loads((results / "out/table.json").read_text())["models"]["BCT"]["p_1"] is None
    line = next(x for x in (results / "out/table.md").read_text().splitlines() if "| BCT |" in x)
    assert line.replace(" ", "").endswith("|-|-|") and "nan" not in line


def test_models_of_one_name_that_are_not_the_same_are_told_apart(results):
    """A single new model is always called "new": its name does not say which one it is."""
    for name, digest in zip(SETS, "aab", strict=True):
        said = json.loads((results / f"{name}.json").read_text())
        said["models"] = {
            "old": {"sha256": "o", "view": {"size": 112}},
            "BCT": {"sha256": digest, "view": {"size": 112}},
            "AdvBCT": {"sha256": name, "view": None},  # stored embeddings, of each set their own
        }
        (results / f"{name}.json").write_text(json.dumps(said))
    done = table(results)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(lines) == 2 and "BCT is one network in" in lines[0]
    assert not (results / "out/table.json").exists()
    said["models"]["BCT"]["sha256"] = "a"
    (results / f"{name}.json").write_text(json.dumps(said))
    assert table(results).returncode == 0


@pytest.mark.parametrize("wrong", ["empty", "other", "alone"])
def test_what_can_not_be_read_is_said_in_two_lines(results, wrong):
    if wrong == "empty":
        for file in results.glob("*.json"):
            file.unlink()
    elif wrong == "other":
        write(results, "gldv2", 2, models=("BCT",))
    else:
        said = json.loads((results / "gldv2.json").read_text())
        said["roles"]["alone"] = None
        (results / "gldv2.json").write_text(json.dumps(said))
    done = table(results)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not (results / "out").exists()
