"""What would change what a run means is refused or named before a checkpoint is taken up."""

import pytest
import torch
from commands import error_of, run
from torch import nn

from engine.run import checkpoint, resume

RUN = "--model resnet8 --batch_size 256 --exp_name a --num_workers 0"
FOLDER = "save/SupCon/digits_models/a"


def test_a_momentum_takes_the_layout_in_memory_of_its_parameter():
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], 0.1, 0.9)
    momentum = torch.randn(8, 4, 3, 3)
    saved = {"state": {0: {"momentum_buffer": momentum}}, "param_groups": [{"params": [0], "lr": 0.3}]}
    resume.take_momenta(saved, optimizer)
    taken = optimizer.state[weight]["momentum_buffer"]
    assert taken.stride() == weight.stride() != momentum.stride()
    assert torch.equal(taken, momentum)
    assert optimizer.param_groups[0]["lr"] == 0.3  # a run that was stopped after an epoch's last step logs it


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a run of one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, folder, f"{RUN} --epochs 1")
    return folder


def test_a_run_resumed_with_the_other_layout_equals_one_that_was_not(monkeypatch, begun):
    source = begun / FOLDER / "last.pth"
    states = []
    for name, flag in (("same", "True"), ("other", "False")):
        words = RUN.replace("name a", f"name {name}")
        run(monkeypatch, begun, f"{words} --epochs 2 --resume {source} --channels_last {flag}")
        states.append(checkpoint.load(begun / FOLDER.replace("/a", f"/{name}"))["model"])
    for name, same in states[0].items():
        assert torch.allclose(same.float(), states[1][name].float(), atol=1e-5), name


def of_another_model(state):
    momenta = state["optimizer"]["state"]
    momenta[0]["momentum_buffer"] = momenta[1]["momentum_buffer"] = torch.ones(5)


def of_fewer_parameters(state):
    state["optimizer"]["param_groups"][0]["params"].pop()


def of_another_label(state):
    state["model"]["bank.labels"][0] = 10


def of_a_label_below_all(state):
    state["model"]["bank.labels"][0] = -2


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (of_another_model, "its optimizer's momentum_buffer 0 has shape (5,) instead of (16, 3, 3, 3)"),
        (of_fewer_parameters, "its optimizer is of 30 parameters, the model has 31"),
        (of_another_label, "its bank has labels from 0 to 10, of 10 classes"),
        (of_a_label_below_all, "its bank has labels from -2 to 9, of 10 classes"),
    ],
)
def test_what_loading_would_not_notice_is_one_line_and_leaves_no_folder(monkeypatch, capsys, begun, change, fault):
    state = checkpoint.load(begun / FOLDER)
    change(state)
    checkpoint.save(begun / "foreign.pth", state)
    line = error_of(monkeypatch, capsys, begun, f"{RUN} --epochs 2 --exp_name b --resume foreign.pth")
    assert f"--resume foreign.pth: {fault}" in line
    assert not (begun / FOLDER).with_name("b").exists()


def test_options_of_the_optimizer_are_the_runs_and_not_the_files(monkeypatch, begun):
    words = RUN.replace("name a", "name c")
    run(monkeypatch, begun, f"{words} --epochs 2 --resume {FOLDER} --momentum 0.5 --weight_decay 0.25")
    (group,) = checkpoint.load(begun / FOLDER.replace("/a", "/c"))["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)


def test_a_checkpoint_of_a_version_to_come_is_refused_and_none_before_it_taken(monkeypatch, capsys, begun):
    folder = begun / "newer"
    folder.mkdir()
    state = checkpoint.load(begun / FOLDER)
    checkpoint.save(folder / "previous.pth", state)
    checkpoint.write_whole(folder / "last.pth", {**state, "format": checkpoint.FORMAT + 1})
    line = error_of(monkeypatch, capsys, begun, f"{RUN} --epochs 2 --exp_name d --resume newer")
    assert "newer/last.pth: has format 2, this version reads 1; update this code" in line
    line = error_of(monkeypatch, capsys, begun, "--ckpt newer", "retrieval")
    assert "--ckpt newer/last.pth: has format 2" in line


ADAMW = f"{RUN.replace('name a', 'name adamw')} --optimizer adamw --save_freq 1"


@pytest.fixture(scope="module")
def by_adamw(tmp_path_factory):
    """A folder with a run of two epochs by AdamW, and its checkpoint after each."""
    folder = tmp_path_factory.mktemp("adamw")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, folder, f"{ADAMW} --epochs 2")
    return folder, (folder / FOLDER).with_name("adamw")


def test_a_resumed_run_by_adamw_ends_with_the_bits_of_one_left_alone(monkeypatch, by_adamw):
    folder, runs = by_adamw
    words = ADAMW.replace("name adamw", "name again")
    run(monkeypatch, folder, f"{words} --epochs 2 --resume {runs / 'ckpt_epoch_1.pth'}")
    one, other = (checkpoint.load(place) for place in (runs, runs.with_name("again")))
    assert all(torch.equal(x, other["model"][name]) for name, x in one["model"].items())
    for i, state in one["optimizer"]["state"].items():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(x, other["optimizer"]["state"][i][name]) for name, x in state.items())


def test_a_run_is_not_resumed_with_another_optimizer(monkeypatch, capsys, by_adamw, begun):
    folder, runs = by_adamw
    line = error_of(monkeypatch, capsys, folder, f"{RUN} --epochs 3 --exp_name b --resume {runs}")
    assert "was trained with --optimizer adamw, not sgd" in line
    state = checkpoint.load(begun / FOLDER)
    del state["options"]["optimizer"]  # an older run, which had no choice
    checkpoint.save(begun / "older.pth", state)
    line = error_of(monkeypatch, capsys, begun, f"{ADAMW} --epochs 3 --resume older.pth")
    assert "was trained with --optimizer sgd, not adamw" in line
