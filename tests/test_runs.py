"""Every script of runs/: each override that its head documents, all of a script's in one run on
tiny data; each method alone; and what can't work, refused before any training.

The full product is `make faults`.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from support import tiny_sets
from support.script import run_script
from support.warm_python import warm_python

from bct.files import ROOT, read_json

SHORT = "num_epoch=1 batch_size=8 num_workers=0 warmup_epoch=0 amp=off"
SMALL = f"{SHORT} network=conv4_w32 image_size=32"
PEOPLE = f"{SMALL} images_per_class=2"
MAP = "num_epoch=1 batch_size=8 num_workers=0 warmup_epoch=0 hidden_size=32"
FACE = f"{SHORT} network=demo_w16 num_classes=None num_image=None val_targets=[]"
SIZES = "network=demo_w16 embedding_size=16 batch_size=8 num_workers=0 num_epoch=1"
IMAGES = {"OUT": "{out}", "SEEDS": "0", "RUN": "{python}", "JOBS": "2"}
EXTRAS = {"OLD_EXTRA": SMALL, "NEW_EXTRA": SMALL, "MAP_EXTRA": MAP}
OMNIGLOT = "methods/OpenBCT/configs/omniglot_l2.py methods/FCT/configs/omniglot_fct.py"
TINY_IMAGENET = "methods/BT2/configs/tiny_imagenet_bt2.py"
OPENBCT = "methods/OpenBCT/configs/imagenet_r18_to_r50_"

# script -> every name it takes, and a file that it ends with; {x} is a set of support/tiny_sets.py
ALL = {
    "omniglot.sh": (
        {**IMAGES, **EXTRAS, "SOURCE": "{omniglot_zip}", "METHODS": OMNIGLOT}, "retrieval.md"
    ),
    "tiny_imagenet.sh": (
        {**IMAGES, **EXTRAS, "SOURCE": "{tiny_imagenet_zip}", "METHODS": TINY_IMAGENET},
        "retrieval.md",
    ),
    "cifar100_bt2.sh": ({**IMAGES, **EXTRAS, "DATA": "{cifar}", "FCT": "1"}, "fct/retrieval.md"),
    "imagenet_bt2.sh": (
        {**IMAGES, **EXTRAS, "DATA": "{image_folders}", "FCT": "1",
         "RUN": "torchrun --nproc_per_node=1"},
        "fct/retrieval.md",
    ),
    "imagenet_openbct.sh": (
        {**IMAGES, **EXTRAS, "DATA": "{image_folders}", "METHODS": f"{OPENBCT}l2.py",
         "RUN": "torchrun --nproc_per_node=1"},
        "retrieval.md",
    ),
    "imagenet_chain.sh": (
        {"DATA": "{image_folders}", "OUT": "{out}", "EXTRA": SMALL,
         "LAUNCH": "torchrun --nproc_per_node=1"},
        "v4_class100/model.pt",
    ),
    "benchmark.sh": (
        {"DATA": "{faces}", "IJBC": "{ijb}", "BIN": "{bin_set}", "OUT": "{out}", "FAR": "1e-1",
         "RUN": "{python}", "JOBS": "2", "SCENARIOS": "OPclass", "METHODS": "FCT", "SEEDS": "0",
         "OLD": SIZES, "NEW": SIZES, "MAP": MAP},
        "table.md",
    ),
    "lfw_opclass.sh": (
        {"LFW": "{faces}", "IJBC": "{ijb}", "OUT": "{out}", "FAR": "1e-1", "OLD_EXTRA": FACE,
         "NEW_EXTRA": FACE},
        "lfw/report/report.html",
    ),
    "lfw_init_from.sh": (
        {"LFW": "{faces}", "IJBC": "{ijb}", "OUT": "{out}", "SEEDS": "0", "METHODS": "L2",
         "FAR": "1e-1", "MODEL": "network=demo_w16 embedding_size=16", "OLD": SHORT, "NEW": SHORT},
        "table.md",
    ),
    "lfw_elsewhere.sh": (
        {"LFW": "{faces}", "IJBC": "{ijb}", "OUT": "{out}", "FAR": "1e-1", "EPOCHS": "1",
         "NEW": SIZES, "MAP": MAP},
        "features/table.md",
    ),
    "ms1mv3_opclass.sh": (
        {"DATA": "{faces}", "IJB": "{ijb}", "OUT": "{out}", "FAR": "1e-1", "GPUS": "1",
         "OLD_EXTRA": FACE, "NEW_EXTRA": FACE},
        "OPclass_ms1mv3_r18_to_r50_MixBCT_softmax_to_arc_f128/model.pt",
    ),
    "landmark_views.sh": (
        {**IMAGES, **EXTRAS, "METHODS": "methods/HotRefresh/configs/landmark_views_hotrefresh.py "
         "methods/FCT/configs/landmark_views_fct.py"},
        "retrieval.md",
    ),
    "people_views.sh": (
        {**IMAGES, **EXTRAS, "METHODS": "methods/LCE/configs/people_views_lce.py "
         "methods/FCT/configs/people_views_fct.py"},
        "retrieval.md",
    ),
    "gldv2_advbct.sh": (
        {"GLDV2": "{gldv2}", "RETRIEVAL": "{retrieval}", "OUT": "{out}", "ALLOCATION": "EXdata",
         "NEW": "r50", "INIT_OLD": "", "INIT": "", "SETS": "roxford5k gldv2", "RUN": "{python}",
         "METHODS": "methods/AdvBCT/configs/EXdata_gldv2_r18_to_r50_AdvBCT.py",
         "OLD_EXTRA": SMALL, "NEW_EXTRA": SMALL},
        "table.md",
    ),
    "market1501.sh": (
        {**IMAGES, "OLD_EXTRA": PEOPLE, "NEW_EXTRA": PEOPLE, "DATA": "{market1501}",
         "METHODS": "methods/HotRefresh/configs/market1501_hotrefresh.py", "INIT": "",
         "INIT_OLD": ""},
        "retrieval.md",
    ),
    "demo.sh": ({"SHORT": "1", "DEMO_DIR": "{out}"}, "report/report.html"),
}  # fmt: skip
UPGRADE = {  # runs/images.sh's own, for one method after the other
    "OLD": "configs/omniglot_old_class50.py",
    "NEW": "configs/omniglot_new_class100.py",
    "TRAIN": "{out}/train.txt",
    "TEST": "{image_folders}/val",
    "METRIC": "l2",
    "PROTOCOL": "classes",
    **IMAGES,
    **EXTRAS,
}
ALONE = sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("methods/*/configs/omniglot_*.py"))
SCRIPTS = sorted(file.name for file in ROOT.glob("runs/*.sh"))


def documented(script):
    """The names that a script's head shows as NAME=..., as runs/lib/start.sh reads them."""
    head = re.match(r"(#.*\n)+", (ROOT / "runs" / script).read_text())[0]
    return set(re.findall(r"\b[A-Z][A-Z0-9_]*(?==)", head))


def test_every_script_and_override_is_exercised():
    exercised = {script: set(names) for script, (names, _) in ALL.items()}
    exercised["images.sh"] = {*UPGRADE, "METHODS"}
    assert {script: documented(script) for script in SCRIPTS} == exercised


@pytest.fixture(scope="module")
def python():
    with warm_python() as path:
        yield path


class Place:
    """Where a script runs: its interpreter, its sets, made when a value names them, its output."""

    def __init__(self, folder, python, ijb):
        self.folder, self.known = folder, {"out": folder / "out", "python": python}
        self.known["ijb"] = ijb.parent

    def filled(self, text):
        for name in re.findall(r"\{(\w+)\}", text):
            if name not in self.known:
                self.known[name] = getattr(tiny_sets, name)(self.folder / name)
        return text.format(**self.known)

    def run(self, script, names, **more):
        words = [f"{name}={self.filled(value)}" for name, value in {**names, **more}.items()]
        env = {**os.environ, "PYTHON": self.known["python"], "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            ["bash", ROOT / "runs" / script, *words],
            cwd=self.folder, capture_output=True, text=True, env=env,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path, python, ijb):
    return Place(tmp_path, python, ijb)


@pytest.mark.slow
@pytest.mark.parametrize("script", ALL)
def test_all_overrides_at_once(place, script):
    names, result = ALL[script]
    done = place.run(script, names)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (place.folder / "out" / result).is_file()
    if script == "demo.sh":
        for method in ("BT2", "FCT"):
            trains_after_the_demo(place, method)


def trains_after_the_demo(place, method):
    """`cd methods/<method> && python train.py`, with the places of this demo."""
    out = place.folder / "out"
    done = subprocess.run(
        [place.known["python"], "train.py", f"feature_save={out}/feature_save", f"rec={out}/data",
         f"output={out}/{method}", "num_epoch=1", "batch_size=16"],
        cwd=ROOT / "methods" / method, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / method / "model.pt").is_file()


def upgrade(place, config):
    done = place.run("images.sh", UPGRADE, METHODS=config)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    name = config.split("omniglot_")[1].removesuffix(".py")
    table = read_json(place.folder / "out/retrieval_table.json")
    assert {name, "alone"} <= set(table["map"]), "a single method has its own name in the table"
    return name


def split(place):
    images = place.filled("{image_folders}/train")
    cut = ("--by", "class", "--ratio", "50", "--out", place.known["out"])
    done = run_script("tools/split_dataset.py", images, *cut)
    assert done.returncode == 0, done.stderr


KINDS = ("FCT", "BT2", "MixBCT")  # maps the gallery; needs two models; needs one


@pytest.mark.parametrize(
    "configs",
    [
        pytest.param(
            [c for k in KINDS for c in ALONE if k in c], marks=pytest.mark.slow, id="kinds"
        ),
        pytest.param(ALONE, marks=pytest.mark.faults, id="all"),
    ],
)
def test_each_method_alone_continues_one_folder(place, configs):
    split(place)
    names = [upgrade(place, config) for config in configs]
    models = {p: p.stat().st_mtime_ns for p in (place.folder / "out").rglob("model.pt")}
    assert len(models) == 2 + len(names)
    said = json.loads((place.folder / "out/seed0/old/model.json").read_text())
    assert said["view"]["size"] == 32  # and what was extracted was seen so, or it would be refused
    upgrade(place, configs[0])
    assert {p: p.stat().st_mtime_ns for p in models} == models


@pytest.mark.faults
@pytest.mark.parametrize("script", ["tiny_imagenet", "imagenet_r18_to_r50"])
def test_each_method_alone_in_the_others(place, script):
    name = {"tiny_imagenet": "tiny_imagenet.sh"}.get(script, "imagenet_openbct.sh")
    for config in sorted(ROOT.glob(f"methods/*/configs/{script}_*.py")):
        done = place.run(name, ALL[name][0], METHODS=str(config.relative_to(ROOT)))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.faults
@pytest.mark.parametrize("scenario", ["OPclass", "OPdata", "EXclass", "EXdata"])
def test_each_method_alone_in_the_benchmark(place, scenario):
    for config in sorted(ROOT.glob("methods/*/configs/bench_*.py")):
        method = config.stem.removeprefix("bench_")
        small = SIZES + " refresh_epochs=[0]" * (method == "UniBCT")
        done = place.run(
            "benchmark.sh", ALL["benchmark.sh"][0], METHODS=method, SCENARIOS=scenario,
            NEW=small + " queue_size=20" * (method == "NCCL"), OUT="{out}/" + method,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.faults
@pytest.mark.parametrize("launcher", [sys.executable, "torchrun --standalone --nproc_per_node=2"])
def test_a_real_interpreter_and_torchrun(place, launcher):
    place.known["python"] = sys.executable
    split(place)
    done = place.run("images.sh", UPGRADE, RUN=launcher, METHODS=ALONE[0])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


WRONG = [  # script, changed names, what is said
    ("images.sh", {"SEED": "1"}, "runs/images.sh has no SEED"),
    ("images.sh", {"seeds": "1"}, "seeds=1 is not NAME=value"),
    ("images.sh", {"SEEDS": "0 one"}, "SEEDS=0 one is not whole numbers"),
    ("images.sh", {"METRIC": "cos"}, "METRIC=cos is no metric"),
    ("images.sh", {"TRAIN": "{out}/none.txt"}, "there is no training set"),
    ("images.sh", {"TEST": "{out}/none"}, "{out}/none"),
    ("images.sh", {"NEW_EXTRA": "lrr=1"}, "unknown config key 'lrr'"),
    ("images.sh", {"MAP_EXTRA": "hidden_size=0"}, "hidden_size can't be 0"),
    ("images.sh", {"OLD_EXTRA": "embedding_size=300"}, "old ones 300"),
    ("images.sh", {"OLD": "configs/tiny_imagenet_old_class50.py"}, "is not for these models"),
    ("images.sh", {"METHODS": f"{ALONE[0]} {ALONE[0]}"}, "more than one"),
    ("cifar100_bt2.sh", {"FCT": "yes"}, "FCT=yes is neither 0 nor 1"),
    ("cifar100_bt2.sh", {"MAP_EXTRA": "hidden_size=0"}, "hidden_size can't be 0"),
    ("imagenet_chain.sh", {"EXTRA": "lrr=1"}, "unknown config key 'lrr'"),
    ("benchmark.sh", {"SCENARIOS": "OPclass all"}, "there is no scenario all"),
    ("benchmark.sh", {"FAR": "1e-9"}, "allows no false accept"),
    ("benchmark.sh", {"BIN": "{faces}/train.rec"}, "train.rec"),
    ("benchmark.sh", {"MAP": "hidden_size=0"}, "hidden_size can't be 0"),
    ("lfw_opclass.sh", {"IJBC": "{out}/none"}, "{out}/none"),
    ("images.sh", {"PROTOCOL": "people"}, "{image_folders}/val"),
    ("images.sh", {"PROTOCOL": "rparis6k"}, "gnd_rparis6k.pkl"),
    ("market1501.sh", {"DATA": "{out}/none"}, "{out}/none"),
    ("gldv2_advbct.sh", {"ALLOCATION": "EX"}, "there is no ALLOCATION EX"),
    ("gldv2_advbct.sh", {"NEW": "r101"}, "NEW=r101"),
    ("gldv2_advbct.sh", {"SETS": "rparis6k"}, "gnd_rparis6k.pkl"),
    ("gldv2_advbct.sh", {"NEW_EXTRA": "lrr=1"}, "unknown config key 'lrr'"),
    ("gldv2_advbct.sh", {"NEW_EXTRA": "embedding_size=16"}, "old ones 256"),
    ("gldv2_advbct.sh", {"INIT": "{out}/none.pth"}, "there are no weights {out}/none.pth"),
    ("market1501.sh", {"INIT_OLD": "{out}/none.pth"}, "there are no weights {out}/none.pth"),
    ("ms1mv3_opclass.sh", {"IJB": "{out}/none"}, "{out}/none"),
    ("ms1mv3_opclass.sh", {"NEW_EXTRA": "lrr=1"}, "unknown config key 'lrr'"),
]


@pytest.mark.parametrize(("script", "changed", "said"), WRONG)
def test_what_can_not_work_is_refused_before_the_training(place, script, changed, said):
    names = ALL[script][0] if script in ALL else {**UPGRADE, "METHODS": " ".join(ALONE)}
    names = names | {"TRAIN": "{image_folders}/train"} if script == "images.sh" else names
    done = place.run(script, {**names, **changed})
    assert done.returncode in (1, 2) and place.filled(said) in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert not list(place.folder.glob("out/**/run.json"))


def test_the_environment_of_the_clone_is_taken(tmp_path):
    """Where `python` has not got what is needed; its torchrun comes with it."""
    (tmp_path / "runs/lib").mkdir(parents=True)
    shutil.copy(ROOT / "runs/lib/start.sh", tmp_path / "runs/lib")
    script = tmp_path / "runs/x.sh"
    script.write_text(
        '#!/bin/bash\n# NAME=...\nset -euo pipefail\nsource "$(dirname "$0")/lib/start.sh"\n'
        'echo "$PYTHON" "$(command -v torchrun)" "$NAME"\n'
    )
    (tmp_path / "bare").mkdir()
    for folder in ("bare", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        python = tmp_path / folder / "python"
        options = "-S -E" if folder == "bare" else ""
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n')
        python.chmod(0o755)
    torchrun = tmp_path / ".venv/bin/torchrun"
    shutil.copy(tmp_path / "bare/python", torchrun)
    env = {**os.environ, "PATH": f"{tmp_path}/bare:{os.environ['PATH']}"}
    env.pop("PYTHON", None)
    call = {"capture_output": True, "text": True, "cwd": tmp_path / "bare", "env": env}
    done = subprocess.run(["bash", script, "NAME=a b"], **call)
    assert done.stdout.split() == [f"{tmp_path}/.venv/bin/python", str(torchrun), "a", "b"]
    call["env"] = {**env, "PYTHON": "./python"}
    done = subprocess.run(["bash", script, "NAME=a"], **call)
    assert done.returncode == 2 and "./python has not got bct" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_an_environment_two_lines_say_so(tmp_path, script):
    bare = tmp_path / "python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "runs" / script], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHON": str(bare)},
    )  # fmt: skip
    assert done.returncode == 2 and "make install" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
