"""Configs: merging, overriding, resolving, refusing."""

from pathlib import Path

import pytest
from support.script import run_script

from bct.config import load_config, save_config
from bct.errors import BctError
from bct.files import ROOT
from bct.scenarios import artefact_name, new_shard, scenario_of, shard_file

INSIGHTFACE = """
from easydict import EasyDict as edict

# make training faster
config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.verbose = 2000
config.dali = False

config.rec = "/train_tmp/ms1m-retinaface-t1"
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.warmup_epoch = 0
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
"""


@pytest.fixture
def config(tmp_path):
    def write(text, name="job.py"):
        path = tmp_path / name
        path.write_text("from easydict import EasyDict as edict\nconfig = edict()\n" + text)
        return path

    return write


def refused(word, *args, **kwargs):
    with pytest.raises(BctError) as info:
        load_config(*args, **kwargs)
    assert word in str(info.value), str(info.value)
    assert len(str(info.value).splitlines()) == 2


def test_an_insightface_config_loads_unchanged(tmp_path, capsys):
    path = tmp_path / "ms1mv3_r50.py"
    path.write_text(INSIGHTFACE)
    cfg = load_config(path)
    assert cfg.rec == "/train_tmp/ms1m-retinaface-t1" and cfg.rec_val is None
    assert cfg.val_targets == ["lfw", "cfp_fp", "agedb_30"] and cfg.fp16 is True
    assert cfg.output == str(ROOT / "work_dirs" / "ms1mv3_r50") and cfg.name == "ms1mv3_r50"
    assert cfg.seed == 2048 and cfg.lr_power == 1.0  # from its own base
    assert "dali" in capsys.readouterr().out


def test_overrides_win_and_are_literals(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = config('config.lr = 0.2\nconfig.rec = "dataset/x"\n')
    cfg = load_config(
        path, ["lr=0.05", "batch_size=64", "resume=true", "val_targets=['a']", "rec=y"]
    )
    assert (cfg.lr, cfg.batch_size, cfg.resume, cfg.val_targets) == (0.05, 64, True, ["a"])
    assert cfg.rec == str(tmp_path / "y")  # the command line starts here ...
    assert load_config(path).rec == str(ROOT / "dataset/x")  # ... a config at the repository
    assert load_config(path, ["lr=1"]).lr == 1  # an int serves for a float


def test_unknown_keys_name_the_nearest(config):
    refused("batch_size", config("config.bacth_size = 3\n"))
    refused("warmup_epoch", config(""), ["warmup_epochs=3"])
    refused("mix_ratio", config("config.mix_ratio = 0.3\n"))  # plain training does not know it
    assert load_config(config("config.mix_ratio = 0.4\n"), (), {"mix_ratio": 0.3}).mix_ratio == 0.4
    refused("mix_ratio", config(""), ["mix_rato=0.4"], {"mix_ratio": 0.3})


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("lr=fast", "a number above 0"),
        ("batch_size=1.5", "a whole number from 1 to 1048576"),
        ("batch_size=True", "can't be True"),
        ("num_epoch=many", "a whole number from 1 on"),
        ("resume=1", "True or False"),
        ("head=arcface", "'margin', 'softmax'"),
        ("scenario=opclass", "'OPclass'"),
        ("batch_size=0", "a whole number from 1"),
        ("val_targets=lfw", "a list"),
        ("--lr", "not key=value"),
    ],
)
def test_values_of_the_wrong_kind(config, override, word):
    refused(word, config(""), [override])


def test_files_that_are_no_config(config, tmp_path):
    refused("no config file", tmp_path / "none.py")
    refused("ZeroDivisionError", config("1 / 0\n"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    refused("no `config`", tmp_path / "empty.py")


def test_a_saved_config_loads_to_the_same(config, tmp_path):
    cfg = load_config(
        config('config.rec = "x"\nconfig.shard = "class30"\nconfig.margin_list = (1.0, 0.0, 0.4)\n')
    )
    save_config(cfg, tmp_path / "job_saved.py")
    again = load_config(tmp_path / "job_saved.py")
    assert again.pop("convention_why") == "the file says so" and cfg.pop("convention_why")
    assert again == cfg | {"name": "job_saved"}


def test_the_scenario_decides_the_shard(config):
    body = 'config.rec = "/data/ms1m/train"\nconfig.old_config = "f128_r18_softmax_{}"\n'
    for scenario, old, want in (
        ("OPclass", "class30", "/data/ms1m/train_part_70_class.rec"),
        ("OPdata", "data30", "/data/ms1m/train_part_70_data.rec"),
        ("EXclass", "class30", "/data/ms1m/train"),
        ("EXdata", "data40", "/data/ms1m/train"),
    ):
        cfg = load_config(config(body.format(old)), [f"scenario={scenario}"])
        assert cfg.rec == want
    refused("does not fit", config(body.format("class30")), ["scenario=OPdata"])
    refused("does not end in a shard", config('config.old_config = "x"\n'), ["scenario=OPdata"])


def test_names():
    assert new_shard("OPclass", "f512_r18_arc_class30") == "class70"
    assert artefact_name("f512_r18_arc_class30", "class100") == "f512_r18_arc_class100"
    assert [scenario_of(f"a_{s}") for s in ("class70", "data70", "class100", "data100")] == [
        "OPclass", "OPdata", "EXclass", "EXdata",
    ]  # fmt: skip
    shard = Path("/d/train_part_30_data.rec")
    assert shard_file("/d/train.rec", "data30") == shard_file(shard, "data30") == shard


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["configs/nothing.py"], "no config file"),
        (["configs/lfw_w16_softmax_class30.py", "rec=nowhere"], "no data set at"),
        (["configs/lfw_w16_softmax_class30.py", "learning_rate=1"], "unknown config key"),
        ([], "no config given"),
    ],
)
def test_the_command_line_fails_in_two_lines(arguments, word):
    done = run_script("train_old.py", *arguments)
    assert done.returncode == (1 if arguments else 2)
    assert word in done.stderr and len(done.stderr.strip().splitlines()) == 2, done.stderr
