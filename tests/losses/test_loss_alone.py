"""The folder losses to take along, the examples of docs/loss.md, and torch.hub."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from commands import ROOT, run
from made_data import original_checkpoint

from engine.checkpoint import load_encoder
from engine.run import checkpoint
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss
from networks import resnet

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/loss.md").read_text(), flags=re.DOTALL)


def test_the_losses_are_one_folder_that_imports_torch_alone(tmp_path):
    nodes = [node for file in (ROOT / "losses").glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    imported = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    shutil.copytree(ROOT / "losses", tmp_path / "losses")
    code = "import losses, torch; print(losses.RINCELoss(torch.eye(3)).taus)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(0.1,)\n"


@pytest.mark.parametrize("number", [0, 1], ids=["with a bank", "without one"])
def test_the_first_examples_train(capsys, number):
    lines = EXAMPLES[number].splitlines()
    assert len(lines) <= 25
    torch.manual_seed(0)
    names = {}
    exec("\n".join(EXAMPLES[: number + 1]), names)
    printed = [float(x) for x in re.findall(r"loss (\S+)", capsys.readouterr().out)][-3:]
    assert printed[-1] < 0.5 * printed[0]
    z = torch.nn.functional.normalize(names["encoder"](names["centers"]), dim=1)
    cosine = z @ z.T
    assert cosine[0, 1] > cosine[0, 2] + 0.2  # cat and dog lie closer than cat and car
    assert cosine[0, 1] > cosine[1, 2] + 0.2


def hub(name, *args, **kwargs):
    return torch.hub.load(str(ROOT), name, *args, source="local", **kwargs)


def test_hub_gives_the_losses_with_and_without_a_bank():
    table = torch.tensor([[1, 0.75], [0.75, 1]])
    loss = hub("rince_loss", table, min_tau=0.2, variant="in")
    assert isinstance(loss, RINCELoss)
    assert loss.taus == pytest.approx((0.2, 0.3))
    assert isinstance(hub("supcon_loss", 5), SupConLoss)
    assert isinstance(hub("rince_loss", table, bank=False), InBatchLoss)


def test_hub_gives_an_encoder_of_a_run_with_its_weights(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, "--epochs 1 --model resnet8 --batch_size 256 --exp_name a")
    folder = tmp_path / "save/SupCon/digits_models/a"
    net = hub("encoder", str(folder))
    assert not net.training
    images = torch.rand(2, 3, 8, 8)
    same = resnet.encoder("resnet8").eval()
    load_encoder(folder / "last.pth", same)
    assert net(images).shape == (2, 64)
    assert torch.equal(net(images), same(images))


@pytest.mark.parametrize(("form", "small"), [("imagenet", False), ("cifar", True)])
def test_hub_gives_an_encoder_of_a_published_checkpoint_with_its_stem(tmp_path, form, small):
    encoder = resnet.encoder("resnet18", small_images=small)
    original_checkpoint(tmp_path / "last.pth", encoder, form, "resnet18", "imagenet")
    net = hub("encoder", str(tmp_path / "last.pth"))
    assert net.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert torch.equal(net.conv1.weight, encoder.conv1.weight)


def test_hub_names_what_is_wrong_with_a_checkpoint(tmp_path):
    encoder = resnet.encoder("resnet18")
    original_checkpoint(tmp_path / "last.pth", encoder, "imagenet", "resnet18", "imagenet")
    checkpoint.save(tmp_path / "nameless.pth", {"model": encoder.state_dict()})
    for file, how, words in (
        ("last.pth", {"encoder_name": "resnet34"}, "holds a resnet18; give encoder_name resnet18"),
        ("none.pth", {}, "no such file"),
        ("nameless.pth", {}, "does not say which encoder"),
    ):
        with pytest.raises(ValueError, match=words):
            hub("encoder", str(tmp_path / file), **how)


# ---- what it is given ------------------------------------------------------------------------------------------------

TABLE = torch.tensor([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]])
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
CRITERIA = {
    "table": RINCELoss(TABLE),
    "low temperature": RINCELoss(TABLE, min_tau=0.01),
    "nested": NestedRINCELoss(torch.tensor([[0, 0], [1, 0], [2, 1]])),
    "one rank": SupConLoss(3),
}


def given():
    """Arguments of a loss over a bank: eight anchors of three classes, 32 keys."""
    torch.manual_seed(0)
    query, key, bank = (F.normalize(torch.randn(n, 16), dim=1) for n in (8, 8, 32))
    labels, bank_labels = torch.arange(8) % 3, torch.arange(32) % 3
    return {"query": query, "key": key, "labels": labels, "bank": bank, "bank_labels": bank_labels}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_labels_may_be_of_any_integer_type(criterion):
    x, in_batch = given(), InBatchLoss(criterion)
    want, alone = criterion(**x), in_batch(x["query"], x["key"], x["labels"])
    for dtype in INTEGERS:
        other = {"labels": x["labels"].to(dtype), "bank_labels": x["bank_labels"].to(dtype)}
        assert torch.equal(criterion(**{**x, **other}), want)
        assert torch.equal(in_batch(x["query"], x["key"], other["labels"]), alone)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("labels", torch.tensor([0, -1] * 4), "labels hold -1; they must lie from 0 to 2"),
        ("labels", torch.tensor([0, 3] * 4), "labels hold 3; they must lie from 0 to 2"),
        ("labels", torch.zeros(8), "labels are of type torch.float32; integers are needed"),
        ("labels", torch.zeros(8, dtype=torch.bool), "labels are of type torch.bool; integers"),
        ("bank_labels", torch.full((32,), -2), "bank_labels hold -2; they must lie from -1 to 2"),
        ("bank_labels", torch.zeros(32), "bank_labels are of type torch.float32"),
        ("query", torch.randn(8, 16), r"query holds a vector of length \S+; normalize: F.normalize\(query, dim=1\)"),
        ("key", 0.9 * given()["key"], r"key holds a vector of length 0.9; normalize"),
        ("bank", 1.1 * given()["bank"], r"bank holds a vector of length 1.1; normalize"),
    ],
)
def test_what_is_no_label_and_no_unit_vector_is_named(name, value, reason):
    x = given() | {name: value}
    for criterion in CRITERIA.values():
        for _ in range(2):  # on a CPU at each call
            with pytest.raises(ValueError, match=reason):
                criterion(**x)
        if not name.startswith("bank"):
            with pytest.raises(ValueError, match=reason):
                InBatchLoss(criterion)(x["query"], x["key"], x["labels"])


def test_an_empty_entry_half_precision_zeros_and_nan_pass():
    x = given()
    x["bank_labels"][3] = -1
    x["query"][0], x["query"][1] = 0, torch.nan
    for dtype in (torch.bfloat16, torch.float16):
        halves = {n: v.to(dtype) if v.is_floating_point() else v for n, v in x.items()}
        assert CRITERIA["table"](**halves).isnan()
    x["query"][1] = 0
    assert CRITERIA["table"](**x).isfinite()


def test_away_from_the_cpu_values_are_looked_at_once():
    criterion, without_values = RINCELoss(TABLE), {"query": torch.empty(8, 16, device="meta")}
    with pytest.raises(RuntimeError):  # there is nothing to look at
        criterion.check({}, without_values)
    criterion(**given())
    criterion.check({}, without_values)
