"""tools/make_artefacts.py runs what several methods need, each once, and tools/check_upgrade.py
says which of them map the gallery. That the files are right is shown by the runs that use them."""

import re
from pathlib import Path

import pytest
from support.script import run_script

from bct.config import load_config
from bct.files import ROOT
from bct.method import load_method, method_names, method_of
from tools.make_artefacts import commands

OMNIGLOT = sorted(ROOT.glob("methods/*/configs/omniglot_*.py"))


def test_every_command_once_and_embeddings_first():
    found = commands(OMNIGLOT, ["feature_save=/x"])
    assert len({tuple(words) for words in found}) == len(found)
    tools = [re.search(r"(\w+)\.py", words[1])[1] for words in found]
    assert tools.count("extract_features") == 2 and tools[0] == "extract_features"
    assert set(tools) >= {"average_features", "denoise"}
    kinds = {
        k for f in OMNIGLOT for k in method_of(f).needs(load_config(f, [], method_of(f).defaults))
    }
    assert "new_embedding" in kinds
    extracted = [words[2] for words in found if "extract" in words[1]]
    assert extracted == ["configs/omniglot_old_class50.py", "configs/omniglot_new_class100.py"]


def test_a_method_that_needs_little_gets_little():
    (l2,) = ROOT.glob("methods/L2/configs/bench_L2.py")
    upgrade = ["scenario=EXdata", "old_config=bench_old_data30", "feature_save=/x"]
    (words,) = commands([l2], upgrade)
    assert words[1:] == [
        "tools/extract_features.py", "configs/bench_old_data30.py", "--SD", "bench_old_data100",
        "feature_save=/x",
    ]  # fmt: skip


def test_models_that_are_folders(tmp_path):
    """old_model and new_model need no scenario; the set is `rec`, whatever a config's shard."""
    (fct,) = ROOT.glob("methods/FCT/configs/omniglot_fct.py")
    (mix,) = ROOT.glob("methods/MixBCT/configs/omniglot_mixbct.py")
    given = [f"old_model={tmp_path / 'old'}", f"new_model={tmp_path / 'alone'}", "rec=x/a b.txt"]
    found = [words[1:] for words in commands([fct, mix], given)]
    rec = str(Path.cwd() / "x" / "a b.txt")
    old, alone = (["--model", str(tmp_path / name), "--rec", rec] for name in ("old", "alone"))
    assert found == [
        ["tools/extract_features.py", *old],
        ["tools/extract_features.py", *alone],
        ["tools/denoise.py", "--T", "0.9", *old],
    ]


def test_which_methods_map_the_gallery():
    done = run_script("tools/check_upgrade.py", *OMNIGLOT)
    mapping = [name for name in method_names() if load_method(name).maps_gallery]
    assert mapping == ["FCT"]
    assert done.stdout.split() == [str(f) for f in OMNIGLOT if method_of(f).__name__ in mapping]
    assert run_script("tools/check_upgrade.py", "configs/base.py").returncode == 1


@pytest.mark.parametrize("script", ["benchmark.sh", "images.sh"])
def test_the_runs_name_no_method(script):
    """But for the examples in their heads."""
    lines = (ROOT / "runs" / script).read_text().splitlines()
    code = "\n".join(line for line in lines if not line.startswith("#"))
    assert not re.search(rf"\b({'|'.join(method_names())})\b", code)
