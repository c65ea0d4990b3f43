"""A training from given weights: what is taken of each kind of file, of the head, and refusals."""

import json

import pytest
import torch
import torchvision
from support.networks import randomly
from support.ranks import run_on_ranks
from support.script import run_script
from support.tiny import TINY, Job, stopping_at

from backbones import fct, get_model
from backbones.basis import BasisNetwork
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.method import Method
from bct.old_model import OldModel
from bct.train import build, train
from bct.training.checkpoint import checkpoints
from bct.training.heads import PartialFC, SoftmaxHead
from bct.training.initial import start_from

CPU = torch.device("cpu")


def named_set(*names):
    dataset = ImageSet()
    dataset.class_names = list(names) or None
    return dataset


def started(job, path, network, head=None, dataset=None, *overrides):
    cfg = job(f"init_from={path}", *overrides)
    head = torch.nn.Module() if head is None else head
    return start_from(cfg, dataset or named_set(), network, head)


def has(network, state):
    own = network.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


# ---- the network


def test_a_run_starts_from_a_run(job):
    train(job("num_epoch=1"), Method, CPU)
    source = job.output
    again = job(f"output={source}2", f"init_from={source}", "seed=7", "lr=1e-30", "num_epoch=1")
    dataset = Method.data(again)
    again.num_classes = dataset.num_classes
    built = build(again, Method, dataset, OldModel(again, dataset), CPU)
    assert has(built.backbone, torch.load(source / "model.pt", weights_only=True))

    again.num_classes = None
    train(again, Method, CPU)
    log = (source.with_name("run2") / "training.log").read_text()
    count = len(built.backbone.state_dict())
    assert f"tensors {count} taken" in log and "0 left" in log and "head: drawn" in log
    assert all(name in log for name in built.backbone.state_dict())
    identity = json.loads((source.with_name("run2") / "run.json").read_text())["identity"]
    assert identity["init_from"] == sha256_file(source / "model.pt")


FORMS = {
    "insightface": lambda state: state,
    "with its head": lambda state: state | {"cls_fc.weight": torch.ones(5, 16)},
    "MixBCT": lambda state: {"state_dict_backbone": {f"module.{k}": v for k, v in state.items()}},
    "BT-2": lambda state: {"epoch": 1, "model_state_dict": state, "loss": 0.5},
    "BT² of ours": lambda state: {
        **{f"body.{k}": v for k, v in state.items()}, "C": torch.tensor(2.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_faces(job, tmp_path, form):
    state = randomly(get_model("demo_w32", 16), 1).state_dict()
    torch.save(FORMS[form](state), tmp_path / "given.pth")
    network = get_model("demo_w32", 16)
    start = started(job, tmp_path / "given.pth", network)
    assert has(network, state) and start.fit.taken == list(state)
    assert not start.fit.missing and not start.fit.reshaped


@pytest.mark.parametrize("prefix", ["", "module.", "resnet."])
def test_torchvision_and_openbct(job, tmp_path, prefix):
    theirs = randomly(torchvision.models.resnet18(num_classes=5), 2).state_dict()
    saved = {"arch": "resnet18", "state_dict": {prefix + k: v for k, v in theirs.items()}}
    torch.save(saved, tmp_path / "x.pth.tar")
    network = get_model("resnet18", 512)
    started(job, tmp_path / "x.pth.tar", network, None, None, "network=resnet18")
    assert has(network, {f"body.{k}": v for k, v in theirs.items() if not k.startswith("fc.")})


def test_the_body_of_bt2(job, tmp_path):
    state = randomly(get_model("demo_w32", 16), 1).state_dict()
    torch.save(state, tmp_path / "model.pt")
    network = BasisNetwork(get_model("demo_w32", 16 + 8), 16, 8, 4)
    start = started(job, tmp_path / "model.pt", network)
    assert torch.equal(network.body.conv1.weight, state["conv1.weight"])
    assert "body.fc.weight" in start.fit.reshaped and "body.fc.weight" not in start.fit.taken
    assert "old_branch.weight" in start.fit.missing


def test_the_map_of_fct(job, tmp_path):
    source = randomly(fct.Transformation(8, 16, hidden=32), 1)
    published = {
        key.replace("old.", "p1.").replace(".0.weight", ".conv.weight"): value
        for key, value in source.state_dict().items()
    }
    torch.save(published, tmp_path / "map.pt")
    network = fct.Transformation(8, 16, hidden=32)
    cfg = job(f"init_from={tmp_path / 'map.pt'}")
    cfg.network = "fct"
    start_from(cfg, named_set(), network, torch.nn.Module())
    assert has(network, source.state_dict())


def test_another_width_takes_the_rest(job, tmp_path):
    state = randomly(get_model("demo_w32", 32), 1).state_dict()
    torch.save(state, tmp_path / "model.pt")
    network = get_model("demo_w32", 16)
    drawn = network.fc.weight.clone()
    start = started(job, tmp_path / "model.pt", network)
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
    assert torch.equal(network.fc.weight, drawn) and "fc.weight" in start.fit.reshaped


def test_a_network_that_is_mostly_drawn_is_asked_about(job, tmp_path, caplog):
    state = randomly(get_model("demo_w32", 16), 1).state_dict()
    for part, asked in (("conv1", True), ("", False)):
        torch.save({k: v for k, v in state.items() if k.startswith(part)}, tmp_path / "model.pt")
        caplog.clear()
        started(job, tmp_path / "model.pt", get_model("demo_w32", 16)).log()
        assert ("most tensors are drawn" in caplog.text) == asked


@pytest.mark.parametrize(
    "kind", ["another", "nothing", "odd", "onnx", "script", "gone", "features"]
)
def test_refused(job, tmp_path, kind):
    path = tmp_path / "given.pt"
    if kind == "another":
        torch.save(get_model("demo_w24", 16).state_dict(), path)
        said = "weights of network demo_w32 0 are in"
    elif kind == "nothing":
        torch.save({"bn1.weight": torch.ones(32)}, path)  # a vector fits by chance
        said = "weights of network demo_w32 0 are in"
    elif kind == "odd":
        torch.save({"x.running_mean": torch.tensor(1.0)}, path)
        said = "weights of network demo_w32 0 are in"
    elif kind == "onnx":
        path, said = tmp_path / "x.onnx", "ONNX"
        path.write_bytes(b"graph")
    elif kind == "script":
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
        said = "TorchScript"
    elif kind == "gone":
        said = "does not exist"
    else:
        torch.save(torch.zeros(3, 4), path)
        said = "no state_dict"
    with pytest.raises(BctError, match=said):
        train(job(f"init_from={path}"), Method, CPU)
    assert not job.output.exists()


def test_its_command_line(job):
    train(job("num_epoch=1"), Method, CPU)
    given = [job.path, *TINY, f"init_from={job.output}", f"output={job.output}2"]
    done = run_script("train_old.py", *given, "num_epoch=1", "freeze=['conv1']")
    assert done.returncode == 0 and "started from" in done.stdout
    assert done.stdout.count("layer1.0.bn1.weight") == 0  # all names are in the log file alone
    refused = run_script("train_old.py", *given, "network=demo_w24")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 2


# ---- the head

OURS, THEIRS = ("a", "b", "c", "d"), ("d", "x", "b")


def head_file(folder, theirs=THEIRS, bias=True, **said):
    """A softmax model of three classes with our model.json; its classifier."""
    weight, offset = torch.arange(48.0).reshape(3, 16) + 1, torch.tensor([1.0, 2.0, 3.0])
    classifier = {"cls_fc.weight": weight} | ({"cls_fc.bias": offset} if bias else {})
    torch.save(get_model("demo_w32", 16).state_dict() | classifier, folder / "model.pt")
    names = {"class_names": list(theirs)} if theirs else {}
    write_json(folder / "model.json", {"network": "demo_w32", **names, **said})
    return weight, offset


def test_classes_by_name(job, tmp_path):
    weight, _ = head_file(tmp_path)
    head = SoftmaxHead(16, 4)
    before = head.weight.detach().clone()
    network = get_model("demo_w32", 16)
    start = started(job, tmp_path, network, head, named_set(*OURS))
    assert start.head == "2 of 4 classes taken by name"
    assert torch.equal(head.weight[[3, 1]], weight[[0, 2]])
    assert head.bias[[3, 1]].tolist() == [1.0, 3.0]
    assert torch.equal(head.weight[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize(
    ("theirs", "ours", "head", "said"),
    [
        (THEIRS, (), SoftmaxHead(16, 4), "training set has no names"),
        ((), OURS, SoftmaxHead(16, 4), "file's classes have no names"),
        (("x", "y", "z"), OURS, SoftmaxHead(16, 4), "no class has the name"),
        (THEIRS, OURS, SoftmaxHead(16, 4, unit=True), "embeddings of any length"),
        (THEIRS, OURS, PartialFC(16, 4), "embeddings of any length"),
        (("a", "a", "b"), OURS, SoftmaxHead(16, 4), "two classes have one name"),
        (("a", "b"), OURS, SoftmaxHead(16, 4), "3 classes and 2 names"),
        (THEIRS, OURS, torch.nn.Module(), "there is none"),
    ],
)
def test_a_head_that_is_not_taken(job, tmp_path, theirs, ours, head, said):
    head_file(tmp_path, theirs)
    before = [p.detach().clone() for p in head.parameters()]
    start = started(job, tmp_path, get_model("demo_w32", 16), head, named_set(*ours))
    assert said in start.head
    assert all(torch.equal(p, q) for p, q in zip(head.parameters(), before, strict=True))


def centres_on_a_rank(folder):
    from bct.config import load_config

    cfg = load_config(folder / "job.py", ["network=demo_w32", "embedding_size=16",
                                          f"init_from={folder}"])  # fmt: skip
    head = PartialFC(16, len(OURS))
    start_from(cfg, named_set(*OURS), get_model("demo_w32", 16), head)
    return head.weight.detach()


@pytest.mark.parametrize("ranks", [1, 2])
def test_class_centres_over_ranks(tmp_path, ranks):
    Job(tmp_path)
    weight, _ = head_file(tmp_path, bias=False, head_unit=True)
    got = torch.cat(run_on_ranks(ranks, centres_on_a_rank, tmp_path))
    drawn = PartialFC(16, len(OURS)).weight
    assert torch.equal(got[[0, 2]], drawn[[0, 2]])
    want = weight[[2, 0]] / weight[[2, 0]].norm(dim=1, keepdim=True)
    torch.testing.assert_close(got[[1, 3]], want * drawn[[1, 3]].norm(dim=1, keepdim=True))


def test_centres_of_our_checkpoint(job, tmp_path):
    train(job("num_epoch=1"), Method, CPU)
    path = next((job.output / "checkpoints").glob("*.pt"))
    saved = torch.load(path, weights_only=True)
    about = json.loads((job.output / "model.json").read_text())
    write_json(job.output / "model.json", {**about, "class_names": ["p", "q", "r", "s", "t"]})
    head = PartialFC(16, 2)
    length = head.weight.detach().norm(dim=1)
    network = get_model("demo_w32", 16)
    start = started(job, path, network, head, named_set("t", "q"))
    assert start.head == "2 of 2 classes taken by name" and has(network, saved["backbone"])
    cosine = torch.cosine_similarity(head.weight, saved["head"]["weight"][[4, 1]])
    torch.testing.assert_close(cosine, torch.ones(2))
    torch.testing.assert_close(head.weight.norm(dim=1), length)


# ---- whose run it is


@pytest.mark.parametrize("record", ["there", "gone", "damaged"])
def test_its_file_and_the_record_are_gone(job, tmp_path, record):
    """The run's checkpoints know both."""
    folder = tmp_path / "prod"
    folder.mkdir()
    torch.save(get_model("demo_w32", 16).state_dict(), folder / "model.pt")
    train(job(f"init_from={folder}"), stopping_at(Method, 2), CPU)
    (folder / "model.pt").unlink()
    if record == "gone":
        (job.output / "run.json").unlink()
    elif record == "damaged":
        (job.output / "run.json").write_text("{")
    assert train(job(f"init_from={folder}", "resume=True"), Method, CPU) == 0


def test_a_finished_run_without_checkpoints_does_not_need_it(job, tmp_path):
    torch.save(get_model("demo_w32", 16).state_dict(), tmp_path / "one.pt")
    again = [f"init_from={tmp_path / 'one.pt'}", "num_epoch=1", "resume=True"]
    train(job(*again), Method, CPU)
    (tmp_path / "one.pt").unlink()
    for path in checkpoints(job.output):
        path.unlink()
    assert train(job(*again), Method, CPU) == 0


@pytest.mark.parametrize("given", ["", "best.pt", "checkpoints/step_00000002.pt"])
def test_a_run_does_not_replace_what_it_starts_from(job, given):
    train(job("num_epoch=1"), Method, CPU)
    (job.output / "best.pt").write_bytes((job.output / "model.pt").read_bytes())
    with pytest.raises(BctError, match="this run's own output"):
        train(job(f"init_from={job.output / given}", "overwrite=True"), Method, CPU)
    assert (job.output / "model.pt").is_file() and checkpoints(job.output)


def test_a_damaged_classifier_beside_it_is_not_none(job, tmp_path):
    torch.save(get_model("demo_w32", 16).state_dict(), tmp_path / "model.pt")
    (tmp_path / "classifier.pt").write_bytes(b"PK")
    head = PartialFC(16, 5)
    with pytest.raises(BctError, match=r"classifier\.pt"):
        started(job, tmp_path / "model.pt", get_model("demo_w32", 16), head)


def test_its_content_counts_and_is_read_once(job, tmp_path):
    state = get_model("demo_w32", 16).state_dict()
    one, moved, other = (tmp_path / f"{name}.pt" for name in ("one", "moved", "other"))
    torch.save(state, one)
    torch.save({k: v + 1 for k, v in state.items()}, other)
    train(job(f"init_from={one}", "num_epoch=1"), Method, CPU)
    one.rename(moved)
    assert train(job(f"init_from={moved}", "num_epoch=1", "resume=True"), Method, CPU) == 0
    with pytest.raises(BctError, match=r"other settings or inputs \(init_from"):
        train(job(f"init_from={other}", "num_epoch=1", "resume=True"), Method, CPU)
    with pytest.raises(BctError, match=r"other settings or inputs \(init_from"):
        train(job("num_epoch=1", "resume=True"), Method, CPU)
    moved.unlink()  # a run that goes on does not need it
    assert train(job(f"init_from={one}", "num_epoch=2", "resume=True"), Method, CPU) == 0
    with pytest.raises(BctError, match="does not exist"):
        train(job(f"init_from={one}", "num_epoch=2", "overwrite=True"), Method, CPU)
