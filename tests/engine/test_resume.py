"""A checkpoint's content is held against the run before any of it is used."""

import copy

import pytest
import torch
from commands import error_of, run
from torch import nn

from engine.run import checkpoint, resume
from networks.memory_bank import MemoryBank
from util import InputError

RUN = "--model resnet8 --batch_size 256 --exp_name a --num_workers 0"
FOLDER = "save/SupCon/digits_models/a"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.bank = nn.Linear(3, 2), MemoryBank(4, 2)


def made():
    """A model, its optimiser after a step, and what a run of two processes would save of them."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model.layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    own = {"random": checkpoint.random_state(), "means": [[torch.zeros((), dtype=torch.float64), 2]], "skipped": [3]}
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1, "step": 2}
    state |= {"processes": [own, own], "best": {}, "latest": {"top-1": 3.0}, "scaler": {}}
    return model, optimizer, copy.deepcopy(state)


def put(state, path, value):
    *way, last = path
    for key in way:
        state = state[key]
    state[last] = value


def test_what_a_run_saves_is_taken():
    model, optimizer, state = made()
    resume.check(state, model, optimizer, (5, 4), "--resume x")
    resume.take_momenta(state["optimizer"], optimizer)
    assert torch.equal(
        optimizer.state[model.layer.weight]["momentum_buffer"], state["optimizer"]["state"][0]["momentum_buffer"]
    )


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["epoch"], -1, "its epoch is -1"),
        (["step"], 0.5, "its step is 0.5"),
        (["step"], True, "its step is True"),
        (["step"], 5, "its step is 5 of 4"),
        (["best"], [3], "its entry best"),
        (["latest", "top-1"], "three", "its entry latest"),
        (["scaler"], {"scale": None}, "its entry scaler"),
        (["optimizer"], [], "its optimiser has not the form"),
        (["optimizer", "state"], [1], "its optimiser has not the form"),
        (["optimizer", "state", 0], torch.ones(2), "its optimiser has not the form"),
        (["optimizer", "param_groups"], [{"params": ["a", "b"]}], "its optimiser has not the form"),
        (["optimizer", "param_groups"], [{"params": [0, 1], "lr": "big"}], "its optimiser has not the form"),
        (
            ["optimizer", "param_groups"],
            [{"params": [0], "lr": 1}],
            "is of 1 parameters, the model has 2",
        ),
        (["optimizer", "param_groups"], [{"params": [0, 0], "lr": 1}], "its optimiser is of 2 parameters"),
        (
            ["optimizer", "state", 0, "momentum_buffer"],
            torch.ones(200, 300),
            "momentum 0 has shape (200, 300) instead",
        ),
        (
            ["optimizer", "state", 1, "momentum_buffer"],
            torch.ones(2, dtype=torch.long),
            "momentum 1 is no tensor",
        ),
        (["optimizer", "state", 1, "momentum_buffer"], "no", "momentum 1 is no tensor"),
        (["processes"], {"a": 1}, "its entry processes"),
        (["processes", 0, "skipped"], [1.5], "its list of skipped images"),
        (["processes", 1, "means"], [[torch.zeros(()), 2]], "its running means"),
        (["processes", 1, "means"], [[1, 2, 3]], "its running means"),
        (["processes", 1, "random"], None, "its random numbers"),
        (["processes", 1, "random", "torch"], torch.zeros(3, dtype=torch.uint8), "its random numbers"),
        (["processes", 1, "random", "numpy"], ["MT19937", [1, 2], 0, 0, 0.0], "its random numbers"),
        (["processes", 1, "random", "python"], (3, (1, 2), None), "its random numbers"),
        (["processes", 1, "random", "cuda"], torch.zeros(3), "its random numbers"),
        (["model", "bank.labels"], torch.tensor([0, 1, 2, 5]), "its bank has labels from 0 to 5, of 5 classes"),
        (["model", "bank.labels"], torch.tensor([0, 1, 2, -2]), "its bank has labels from -2 to 2"),
        (["model", "bank.pointer"], torch.tensor(4), "its bank's pointer is 4"),
    ],
)
def test_content_that_no_run_saves_is_refused_in_one_line_before_anything_changes(path, value, fault):
    model, optimizer, state = made()
    put(state, path, value)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(InputError) as refused:
        resume.check(state, model, optimizer, (5, 4), "--resume x")
    assert str(refused.value).startswith("--resume x: its ")
    assert fault in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert str(before) == str((model.state_dict(), optimizer.state_dict()))


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


def test_momenta_of_other_shapes_are_one_line(monkeypatch, capsys, begun):
    state = checkpoint.load(begun / FOLDER)
    momenta = state["optimizer"]["state"]
    momenta[0]["momentum_buffer"], momenta[1]["momentum_buffer"] = torch.ones(5), torch.ones(5)
    checkpoint.save(begun / "foreign.pth", state)
    line = error_of(monkeypatch, capsys, begun, f"{RUN} --epochs 2 --exp_name b --resume foreign.pth")
    assert "--resume foreign.pth: its optimiser's momentum 0 has shape (5,) instead of (16, 3, 3, 3)" in line
    assert not (begun / FOLDER).with_name("b").exists()


def test_options_of_the_optimiser_are_the_runs_and_not_the_files(monkeypatch, begun):
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


def test_a_run_is_not_resumed_with_another_optimiser(monkeypatch, capsys, by_adamw, begun):
    folder, runs = by_adamw
    line = error_of(monkeypatch, capsys, folder, f"{RUN} --epochs 3 --exp_name b --resume {runs}")
    assert "was trained with --optimizer adamw, not sgd" in line
    state = checkpoint.load(begun / FOLDER)
    del state["options"]["optimizer"]  # an older run, which had no choice
    checkpoint.save(begun / "older.pth", state)
    line = error_of(monkeypatch, capsys, begun, f"{ADAMW} --epochs 3 --resume older.pth")
    assert "was trained with --optimizer sgd, not adamw" in line


def test_a_state_of_adamw_that_is_not_whole_is_one_line(monkeypatch, capsys, by_adamw):
    folder, runs = by_adamw
    state = checkpoint.load(runs)
    del state["optimizer"]["state"][0]["step"]
    checkpoint.save(folder / "part.pth", state)
    line = error_of(
        monkeypatch, capsys, folder, f"{ADAMW.replace('name adamw', 'name c')} --epochs 3 --resume part.pth"
    )
    assert "its optimiser's state 0 has exp_avg, exp_avg_sq alone" in line
