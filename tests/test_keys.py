"""What config keys take: each kind of Key, base's and the methods' own, and the command line."""

import math

import pytest

from bct.config import base_config, load_config, save_config
from bct.errors import BctError
from bct.files import ROOT
from bct.keys import (
    choice,
    flag,
    image_size,
    key_of,
    known_keys,
    number,
    path,
    plain,
    several,
    text,
    weights,
    whole,
)
from bct.method import load_method, method_names

BASE = ROOT / "configs" / "base.py"
ABSURD = [None, True, 0, -1, 2**70, 10**5000, 1.5, math.nan, math.inf, -math.inf, "", " ", "a\0b",
          "x", "\ud800", b"x", object(), [], (), [1], [None], [math.nan], ["a"], ["a", "a"], [""],
          [[1]], {}, {"a": 1}, {1: 2}, {"cls": math.nan}, {"cls": "1"}]  # fmt: skip


def refused(*overrides, method=None):
    """The two lines with which load_config refuses overrides."""
    with pytest.raises(BctError) as info:
        load_config(BASE, list(overrides), load_method(method).defaults if method else None)
    lines = str(info.value).splitlines()
    assert len(lines) == 2 and all(line.isprintable() and len(line) < 400 for line in lines)
    return str(info.value)


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        (text("a"), ["x", "a\nb"]),
        (path(None), [None, "x"]),
        (choice("a", "x"), ["x"]),
        (choice(None, "x"), [None, "x"]),
        (flag(False), [True]),
        (whole(3), [0, 7]),
        (whole(3, least=-1, most=5), [-1, 0, 5]),
        (image_size(112), [1, 224, (256, 128)]),
        (number(1.0), [0, -1, 1.5]),
        (number(1.0, above=0, most=1), [0.5, 1]),
        (number(None, 0, 1), [None, 0, 1]),
        (several(number(None), (1.0, 2.0), length=2), [(1, 2), [0.5, 1.5]]),
        (several(text(None), []), [[], ["a"], ["a", "b"]]),
        (several(whole(None), None), [None, [], [1]]),
        (weights({"cls": 1.0}, "cls", "l2"), [{"cls": 2}, {"l2": 0.1, "cls": 1.0}]),
    ],
)
def test_each_kind_takes_what_it_says_and_nothing_else(key, taken):
    for value in taken:
        assert key.taken(value) == (tuple(value) if key.default == (1.0, 2.0) else value)
    for value in ABSURD:
        fits = any(type(value) is type(good) and value == good for good in taken)
        try:
            key.taken(value)
        except ValueError:
            assert not fits, value
        else:  # what else it takes is of the kind it has by default
            assert fits or isinstance(value, (type(taken[-1]), int, list, tuple)), value


def test_two_equal_sides_are_one():
    assert image_size(1).taken([224, 224]) == 224 and image_size(1).taken([256, 128]) == (256, 128)
    assert load_config(BASE, ["image_size=256,128"]).image_size == (256, 128)


def test_values_have_the_type_of_the_default():
    assert type(number(1.0).taken(1)) is float
    assert several(number(None), (1.0,)).taken([2]) == (2.0,)
    assert several(whole(None), None).taken((2, 3)) == [2, 3]


def test_plain_defaults_are_keys_of_their_type():
    for good, bad in ((True, 1), (3, 3.5), (0.5, "x"), ("a", 3), ([1], 1), ({"a": 1}, [])):
        assert key_of(good).taken(good) == good
        with pytest.raises(ValueError):
            key_of(good).taken(bad)
    assert key_of(None).taken("anything") == "anything" and key_of(None).taken(None) is None


def test_a_method_changes_a_default_and_not_what_the_key_takes():
    keys = known_keys({"lr": number(0.1, above=0)}, {"lr": 5e-4, "T": 0.9})
    assert plain(keys) == {"lr": 5e-4, "T": 0.9}
    with pytest.raises(ValueError):
        keys["lr"].taken(0.0)


def test_every_default_is_what_its_key_takes():
    for added in ({}, *(load_method(name).defaults for name in method_names())):
        keys = known_keys(base_config(), added)
        for name, key in keys.items():
            assert key.taken(key.default) == key.default, name


@pytest.mark.parametrize("override", ["output=20240101", "rec=123", "network=1e5", "output=0",
                                      "shard=class100", "rec_val=[1]", "network=()"])  # fmt: skip
def test_text_stays_the_text_of_the_command_line(override):
    key, _, value = override.partition("=")
    assert load_config(BASE, [override])[key].rpartition("/")[2] == value


def test_what_is_quoted_is_what_the_quotes_hold():
    assert load_config(BASE, ["network='r18'"]).network == "r18"
    assert load_config(BASE, ["output=none"]).output.endswith("work_dirs/base")
    assert load_config(BASE, ["head=none"]).head == "none"
    assert load_config(BASE, ["amp=none"]).amp is None


LINES = r"""
margin_list=(1.0,0.5) margin_list=['1','2','3'] margin_list=1 margin_list=(1,2,1e999) decay_epoch=20
decay_epoch=['a'] decay_epoch=[1.5] decay_epoch=[-1] decay_epoch=[None] num_workers=-1
num_workers=100000 seed=-1 seed=1180591620717411303424 seed=2**70 seed=none num_epoch=0 num_epoch=-1
num_epoch=1e3 batch_size=0 batch_size=none lr=nan lr=inf lr=1e999 lr=-1 lr=0 lr=1e300 momentum=1
momentum=-0.1 output= rec= feature_save= network= shard= val_targets=lfw val_targets=[1]
val_targets=[''] val_targets=['a','a'] sample_rate=-0.1 sample_rate=1.1 max_bad_rate=-1 image_size=0
images_per_class=1 images_per_class=2.5 triplet_weight=-1 triplet_hard_margin=-0.1
centre_weight=inf centre_rate=0 head_init=0 head_init=-1 bias_lr_factor=0 bias_weight_decay=-1
warmup_from=-0.1 warmup_from=2 lr_floor=nan lr_floor=1.5 lr_steps=step lr_policy=timm augment=people
image_size=(256,) image_size=(256,0) image_size=(1,2,3) image_size=[1.5,2] image_size=('a',2)
label_smoothing=2 image_size=-1 image_size=1000000000 embedding_size=0 timeout=0
timeout=1e300 freeze_statistics_at=2 warmup_epoch=1.5 amp=fp8 save_every=0 keep_checkpoints=0
frequent=0 verbose=0 resume=1 fp16=no lr={[]:1} lr=1is scale=\d a.b=1 =1 lr __class__=1
name=x get=1
"""
NONSENSE = [word for line in LINES.splitlines() for word in line.split()]
NONSENSE += [
    "seed=0x" + "f" * 5000,
    "seed=" + "9" * 5000,
    "lr=" + "(" * 500,
    "output= ",
    "lr=\udcff",
]
NONSENSE += ["lr=" + "-" * 5000 + "1", "head=none ", "lr\n=1", "\x1b[31m=1", "\udcff=1"]


@pytest.mark.parametrize("override", NONSENSE)
def test_what_no_run_can_do_is_refused(override, recwarn):
    refused(override)
    assert not recwarn.list


OF_METHODS = {
    "AdvBCT": "threshold=nan adv_weight=-1 hidden=0 class_statistics= reading=lce boundary=soft "
    "adversarial=1 temperature=0 topk=-2 unseen=skip",
    "BCT": "influence=classifier unseen=skip influence_margin=(1,0)",
    "BT2": "teacher=both extra_dim=-1 C=0 lambda_1=inf head=x",
    "FCT": "target=cos hidden_size=0 uncertainty=1 num_epoch=0",
    "L2": "loss_weight=[1] loss_weight=['a','b'] threshold=-1",
    "LCE": "reading=mixbct align_weight=-1 boundary_weight=nan unseen=all class_statistics=",
    "MixBCT": "mix_ratio=1.5 mix_ratio=nan T=0 T=2",
    "NCCL": "temperature=0 queue_size=0 credible=yes alpha=-1",
    "OpenBCT": "terms={} terms={'l2':0} terms={'l2':True} terms={1:2} terms={'l2':'1'} terms=[] "
    "terms={'regression':1.0} terms={'keys':1.0} terms={'l2':1e999} fill=some logits=cos "
    "teacher=new positives=all triplet_margin=0 contrastive_temperature=0",
    "UniBCT": "propagation=1.0 temperature=0 refresh_epochs=['a'] influence_scale=0 "
    "reading=lce influence_angle=nan unseen=1",
}


@pytest.mark.parametrize("method", OF_METHODS)
def test_the_methods_keys_are_checked_alike(method):
    for override in OF_METHODS[method].split():
        key = override.partition("=")[0]
        assert f"{key} can't be" in refused(override, method=method), override


def test_a_path_that_is_no_utf_8_comes_through(tmp_path):
    cfg = load_config(BASE, [f"output={tmp_path}/\udcff\n\x1b[31m"])
    save_config(cfg, tmp_path / "saved.py")
    assert load_config(tmp_path / "saved.py").output == f"{tmp_path}/\udcff\n\x1b[31m"


@pytest.mark.parametrize(
    "body",
    [
        "config = {1: 2}", "config = {(1, 2): 2}", "raise SystemExit(0)", "exit()", "config = []",
        "config.seed = 10 ** 5000", "config.lr = float('nan')", "config.network = '\\ud800'",
        "config.output = '\\ud800'", "config.keys = 1", "config.margin_list = (1, 2)",
        "config.rec = 20240101", "def f(): f()\nf()", "x = '\\0", "config.lr = config",
    ],
)  # fmt: skip
def test_a_config_file_of_nonsense_is_refused(tmp_path, body):
    file = tmp_path / "job.py"
    file.write_text(f"from easydict import EasyDict\nconfig = EasyDict()\n{body}\n")
    with pytest.raises(BctError) as info:
        load_config(file)
    assert len(str(info.value).splitlines()) == 2 and len(str(info.value)) < 700


def test_a_config_with_an_odd_name_is_saved_and_read(tmp_path):
    file = tmp_path / 'it"""s\\ a\n.py'
    file.write_text("config = {'seed': 5}\n")
    save_config(load_config(file), tmp_path / "saved.py")
    assert load_config(tmp_path / "saved.py").seed == 5
