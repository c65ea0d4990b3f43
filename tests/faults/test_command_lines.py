"""No command line ends in a traceback: each flag and key of every script with absurd values.

A call begins as one that works, on tiny models and sets, and gets one or two changes. It has to end
with a documented exit code, and with at most two lines of error.
"""

import pickle
import re
import shutil
from functools import cache

import numpy as np
import pytest
from support.old_models import build
from support.pictures import jpeg, write_faces
from support.script import run_script

from bct.config import base_config
from bct.files import ROOT
from bct.method import load_method, method_names

CALLS = 50  # of one test
ABSURD = [
    *("", " ", "0", "-1", "-3", "1", "2", "1.5", "9999999999", "nan", "inf", "-inf"),
    *(str(2**70), "9" * 40, "0x" + "f" * 5000, "None", "True", "x", "[]", "('a',)", "{1:2}"),
    *("a\n\x1b[31m|b", "\udcff", "\u202e", "\xe9" * 200, "a" * 5000, "..", ".", "%s%n", "'", '"a'),
    *("no/such/file", "empty", "junk.bin", "folder", "loop", "text.txt", "vectors.npy"),
    *("model.pt", "train.rec", "cosine", "leading", "class70", "IJBC", "a=b", "=", "(" * 300),
    *("1e999", "1e-300", "[1,2]", "README.md", "['x','x']", "1,2", "\t", "~", "$HOME", "*"),
    *("null", "r2060", "resnet18"),
]  # fmt: skip
EVERY = ("-m", "new.pt", "-net", "demo_w16", "-m_old", "old.pt", "-old_net", "demo_w16", "-j", "0")
EVERY += ("--cache", "cache", "-o", "out", "--overwrite")
TRAINING = ("amp=off", "batch_size=8", "num_epoch=1", "num_workers=0", "overwrite=True")
UPGRADE = ("{house}/new.py", "scenario=OPclass", "old_config=old_class30", "output=run", *TRAINING)
SD = ("--SD", "old_class70", "--feature-save", "{house}/features")
SETTINGS = {"UniBCT": ("refresh_epochs=[0]",), "NCCL": ("queue_size=20",)}
DEMO = str(ROOT / "methods" / "L2" / "configs" / "demo.py")
COMMANDS = {
    "eval/ijbc.py": (*EVERY, "-d", "data"),
    "eval/verification.py": (*EVERY, "--set", "set.bin", "--far", "0.1"),
    "eval/retrieval.py": (*EVERY, "--data", "images", "--leave-one-out", "--resamples", "9"),
    "eval/report.py": (*EVERY, "--set", "set.bin", "--far", "0.1", "--resamples", "9"),
    "eval/benchmark.py": ("runs", "-d", "data"),
    "eval/retrieval_table.py": ("runs",),
    "eval/landmarks.py": (*EVERY, "marks", "--data", "small", "--resamples", "9"),
    "eval/reid.py": (*EVERY, "people", "--resamples", "9"),
    "eval/landmarks_table.py": ("runs", "-o", "table"),
    "tools/average_features.py": SD,
    "tools/class_statistics.py": SD,
    "tools/denoise.py": SD,
    "tools/check_rec.py": ("train.rec", "-j", "1"),
    "tools/check_upgrade.py": (DEMO, "--images", "images", "--ijbc", "data", "--far", "0.1"),
    "tools/convert.py": ("shuffle", "train.rec", "shuffled", "--seed", "1"),
    "tools/embed.py": ("images", "-m", "new.pt", "-net", "demo_w16", "-o", "out.npy", "-j", "0"),
    "tools/export_onnx.py": ("new.pt", "-net", "demo_w16", "-o", "new.onnx", "--overwrite"),
    "tools/extract_features.py": ("{house}/old_class30.py", "--SD", "old_class70", "num_workers=0"),
    "tools/folder_to_rec.py": ("images", "packed"),
    "tools/import_features.py": (
        *("feats.npy", "classes.npy", "--rec", "train.rec", "-o", "brought"),
    ),
    "tools/import_model.py": ("new.pt", "-net", "demo_w16", "-o", "bought", "--overwrite"),
    "tools/make_artefacts.py": (DEMO, "--set", "feature_save=made"),
    "tools/make_demo_data.py": (
        "--out",
        "demo",
        "--identities",
        "2",
        "--images",
        "2",
        "--eval-identities",
        "4",
    ),
    "tools/make_landmark_views.py": ("views", "--seed", "1"),
    "tools/make_people.py": ("people", "--seed", "1"),
    "tools/scaling.py": ("--classes", "100", "--ranks", "8", "--network", "demo_w16"),
    "tools/split_dataset.py": ("train.rec", "--out", "parts"),
    "tools/train_chain.py": ("configs/omniglot_chain.py", "--dry", "--output", "chain"),
    "tools/transform_gallery.py": ("vectors.npy", "mapped.npy", "-m", "model.pt"),
    "tools/unpack.py": ("images.zip", "--out", "unpacked"),
    "train_old.py": ("job.py", *TRAINING),
    **{f"methods/{n}/train.py": (*UPGRADE, *SETTINGS.get(n, ())) for n in method_names()},
}
QUIET = {"tools/check_rec.py"}  # 1 means that there are problems, which it prints


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


@pytest.fixture
def place(tmp_path, ijb, weights):
    """A folder with everything that the commands name, and what the absurd values do."""
    for path, name in zip(weights, ("old.pt", "new.pt"), strict=True):
        shutil.copy(path, tmp_path / name)
    write_faces(tmp_path / "train.rec", [4, 4, 4, 4])
    same = [k % 2 == 0 for k in range(24)]
    images = [jpeg(k if s else k + 50 * i, i) for k, s in enumerate(same) for i in (0, 1)]
    (tmp_path / "set.bin").write_bytes(pickle.dumps((images, same)))
    for k in range(3):
        (tmp_path / "images" / str(k)).mkdir(parents=True)
        for j in range(3):
            (tmp_path / "images" / str(k) / f"{j}.jpg").write_bytes(jpeg(k, j))
    write_landmarks(tmp_path / "marks")
    write_people(tmp_path / "people")
    (tmp_path / "job.py").write_text(
        "config = dict(network='demo_w16', embedding_size=8, rec='train.rec', output='run')\n"
        f"config['rec'] = {str(tmp_path / 'train.rec')!r}\n"
        f"config['output'] = {str(tmp_path / 'run')!r}\n"
        f"config['feature_save'] = {str(tmp_path / 'features')!r}\n"
    )
    np.save(tmp_path / "vectors.npy", np.eye(6, dtype=np.float32))
    np.save(tmp_path / "feats.npy", np.eye(16, dtype=np.float32))
    np.save(tmp_path / "classes.npy", np.repeat(np.arange(4), 4))
    for name, content in (
        ("empty", b""),
        ("junk.bin", bytes(range(256)) * 9),
        ("text.txt", b"a b\n"),
    ):
        (tmp_path / name).write_bytes(content)
    shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "images")
    (tmp_path / "README.md").write_text("# mine\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def write_landmarks(folder):
    """gnd_small.pkl and its images: three queries of two landmarks."""
    (folder / "jpg").mkdir(parents=True)
    shown = {"easy": [0], "hard": [1], "junk": [4]}, {"easy": [2], "hard": [3], "junk": []}
    gnd = [{"bbx": [0, 0, 99, 99], **shown[k % 2]} for k in range(3)]
    lists = {"imlist": [f"g{k}" for k in range(6)], "qimlist": [f"q{k}" for k in range(3)]}
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps({**lists, "gnd": gnd}, protocol=2))
    for k, name in enumerate([*lists["imlist"], *lists["qimlist"]]):
        (folder / "jpg" / f"{name}.jpg").write_bytes(jpeg(k, 0))


def write_people(folder):
    """Two people by three cameras, as Market-1501 has them."""
    for part, cameras in (("query", (1, 2)), ("bounding_box_test", (1, 3))):
        (folder / part).mkdir(parents=True)
        for person in (1, 2):
            for camera in cameras:
                name = f"{person:04d}_c{camera}s1_000001_00.jpg"
                (folder / part / name).write_bytes(jpeg(person, camera + 3 * len(part)))


@cache
def options(script):
    """Its flags, or key= for each of its keys."""
    if "train" in script and "chain" not in script:
        name = script.split("/")[1] if "/" in script else None
        return sorted({*base_config(), *(load_method(name).defaults if name else ())})
    return sorted(set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", run_script(script, "-h").stdout)))


def changed(rng, script, command):
    """The command with one or two changes."""
    command = list(command)
    for _ in range(rng.integers(1, 3)):
        value, option = rng.choice(ABSURD), str(rng.choice(options(script)))
        what = rng.integers(10)
        if what == 0:
            command.pop(rng.integers(len(command)))
        elif what == 1:
            command[rng.integers(len(command))] = value
        elif option.startswith("-"):
            command += [option, value][: 1 + (what > 2)]
        else:
            command.append(f"{option}={value}")
        if not command:
            break
    return [str(word) for word in command]


@pytest.mark.parametrize(
    "seed",
    [
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6)),
        *(pytest.param(seed, marks=pytest.mark.faults) for seed in range(6, 100)),
    ],
)
def test_absurd_values_end_in_two_lines(seed, house, place):
    rng, found = np.random.default_rng([15, seed]), []
    for _ in range(CALLS):
        script = str(rng.choice(list(COMMANDS)))
        words = changed(rng, script, [word.format(house=house) for word in COMMANDS[script]])
        done = run_script(script, *words, cwd=place, seconds=120, memory=12 << 30)
        wrong = fault(script, done)
        if wrong:
            found.append(f"{script} {[w[:80] for w in words]}: {wrong}\n{done.stderr[-900:]}")
    assert not found, f"{len(found)} of {CALLS}\n\n" + "\n\n".join(found)


def fault(script, done):
    """What is wrong with how a command has ended, or nothing."""
    if done.returncode not in (0, 1, 2):
        return f"exit code {done.returncode}"
    if "Traceback" in done.stderr:
        return "a traceback"
    lines = [line.rpartition("\r")[2] for line in done.stderr.splitlines()]
    first = [k for k, line in enumerate(lines) if line.startswith("error: ")]
    if done.returncode == 0 or script in QUIET:
        return "an error and exit code 0" if first and done.returncode == 0 else None
    if len(first) != 1:
        return f"{len(first)} errors"
    errors = lines[first[0] :]
    if len(errors) != 2 or not errors[1].startswith("  -> ") or not "".join(errors).isprintable():
        return f"{len(errors)} lines of error"
    return None


def test_every_script_is_called():
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("eval/*.py"), *ROOT.glob("tools/*.py")]
    scripts += ROOT.glob("methods/*/train.py")
    assert {str(f.relative_to(ROOT)) for f in scripts if "run_cli" in f.read_text()
            or "main(" in f.read_text()} == set(COMMANDS)  # fmt: skip
