"""main_supcon.py as users run it: seeds, processes, batches, bad input."""

import re

import processes
import pytest
import torch
from commands import error_of, run

from engine import factory
from engine.batches import loading
from engine.processes import distributed, launch
from engine.run import checkpoint

DIGITS = "--epochs 1 --model resnet8 --batch_size 256 --mixed_out_in"


def weights(folder, name):
    return torch.load(folder / "save/SupCon/digits_models" / name / "last.pth", weights_only=True)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(monkeypatch, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(monkeypatch, tmp_path, f"{DIGITS} --exp_name {name} --seed {seed}")
    a, b, c = (weights(tmp_path, n)["model"]["bank.keys"] for n in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_shuffling_over_one_process_is_the_identity(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name plain")
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name shuffled --shuffle_bn")
    plain, shuffled = (weights(tmp_path, name)["model"] for name in ("plain", "shuffled"))
    assert all(torch.equal(plain[key], shuffled[key]) for key in plain)


def test_bad_input_under_torchrun_is_said_once_and_no_process_adds_a_traceback_of_ours(tmp_path):
    """Two processes with the environment that torchrun gives its own."""
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch._free_port()), "WORLD_SIZE": "2"}
    ranks = [env | {"RANK": r, "LOCAL_RANK": r, "LOCAL_WORLD_SIZE": "2"} for r in ("0", "1")]
    words = ["--dataset", "path", "--data_folder", "nowhere"]
    started = [processes.start(tmp_path / rank["RANK"], words, env=rank) for rank in ranks]
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [2, 2]
    first, second = ((tmp_path / r / "output.txt").read_text() for r in ("0", "1"))
    assert first.count("main_supcon.py: error: --data_folder nowhere: no such folder") == 1
    assert second == ""
    assert "Traceback" not in first


def test_bad_input_met_by_a_worker_is_one_line_from_the_command(tmp_path):
    code, printed = processes.call(tmp_path, ["--dataset", "path", "--data_folder", "nowhere", "--nproc_per_node", "2"])
    errors = [line for line in printed.splitlines() if ": error: " in line]
    assert (code, errors) == (2, ["main_supcon.py: error: --data_folder nowhere: no such folder"])
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--dataset digitz", "argument --dataset: invalid choice"),
        ("--dataset path --data_folder nowhere --ranking identity", "--data_folder nowhere: no such folder"),
        ("--dataset cifar100 --data_folder nowhere", "--data_folder nowhere: holds no cifar-100-python"),
        ("--memorybank_size 63", "--memorybank_size 63 is smaller than --batch_size 64"),
        ("--batch_size 5000 --memorybank_size 9000", "--batch_size 5000 is more than the 1442 training images"),
        ("--model resnet19", "--model resnet19 is unknown"),
        ("--ranking roberta_threshold", "lacks the class 0"),
        ("--ranking none.csv", "--ranking none.csv: no such file"),
        ("--min_tau 0.5 --max_tau 0.1", "0 < min_tau <= max_tau"),
        ("--min_tau 0", "argument --min_tau"),
        ("--resume none.pth", "--resume none.pth: no such file"),
        ("--mixed_out_in maybe", "'maybe' is neither True nor False"),
        ("--mean (0.5,0.5,0.5)", "--mean and --std go together"),
        ("--hold_out ten", "--exclude_classes ten"),
        ("--sampler balanced --batch_per_class 3", "do not divide --batch_size 64"),
        ("--sampler balanced --batch_per_class 4", "need 16 classes; the data have 10"),
        ("--sampler balanced --batch_per_class 8 --images_per_class 7 --batch_size 32", "0 has 7"),
        ("--batch_per_class 4", "has no use without --sampler balanced"),
        ("--crop_scale 0.5", "must be two shares of the area"),
        ("--crop_scale 0.5,0.2", "must be two shares of the area"),
        ("--colour 3", "3.0 is not in [0, 2.5]"),
        ("--blur 2", "2.0 is not in [0, 1]"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(monkeypatch, capsys, tmp_path, words, reason):
    assert reason in error_of(monkeypatch, capsys, tmp_path, words)
    assert not (tmp_path / "save").exists()


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a")
    path = tmp_path / "save/SupCon/digits_models/a/last.pth"
    before = path.read_bytes()
    assert "--exp_name a" in error_of(monkeypatch, capsys, tmp_path, f"{DIGITS} --exp_name a")
    again = f"--epochs 2 --batch_size 256 --exp_name a --resume {path}"
    for words, reason in (
        ("--model resnet14", "was trained with --model resnet8, not resnet14"),
        ("--hold_out 4 --model resnet8", "was trained on other classes"),
        ("--model resnet8 --epochs 1", "has all of its 1 epochs"),
        (
            "--model resnet8 --epochs 3 --learning_rate 1e30",
            r"NaN or infinite in epoch 2, step \d, at learning rate \S+; last good checkpoint: \S+last.pth",
        ),
    ):
        assert re.search(reason, error_of(monkeypatch, capsys, tmp_path, f"{again} {words}"))
        assert path.read_bytes() == before
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a --seed 9 --overwrite")
    assert path.read_bytes() != before


def batches_of(epoch, done=0, seed=0, world=1, rank=0, monkeypatch=None):
    if monkeypatch:
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
    sampler = loading.EpochBatches(50, 12, seed)
    sampler.set_epoch(epoch, done)
    assert len(sampler) == 4
    return list(sampler)


def test_an_epochs_order_depends_on_seed_and_epoch_alone_and_goes_on_at_any_step():
    first = batches_of(1)
    assert first == batches_of(1) and first[1:] == batches_of(1, done=1) and batches_of(1, done=4) == []
    assert first not in (batches_of(2), batches_of(1, seed=1))
    indices = [i for batch in first for epoch, i in batch]
    assert len(set(indices)) == 48
    assert {epoch for batch in first for epoch, i in batch} == {1}


def balanced(epoch=1, done=0, seed=0, sizes=(9, 40, 4, 17, 30), batch_size=12, per_class=4):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    sampler = loading.BalancedBatches(labels, batch_size, seed, per_class)
    sampler.set_epoch(epoch, done)
    assert len(sampler) == len(labels) // batch_size
    return list(sampler), labels


def test_balanced_batches_have_equally_many_images_of_some_classes_none_twice_and_go_on_at_any_step():
    batches, labels = balanced()
    seen = torch.zeros(5)
    for batch in batches:
        images = [i for _, i in batch]
        counts = torch.bincount(labels[images], minlength=5)
        assert len(set(images)) == 12 and sorted(counts.tolist()) == [0, 0, 4, 4, 4]
        seen += counts > 0
    assert seen.sum() == 3 * len(batches)
    assert balanced()[0] == batches and balanced(done=3)[0] == batches[3:]
    assert batches not in (balanced(3)[0], balanced(seed=1)[0])


def test_balanced_classes_come_equally_often_and_so_do_the_images_of_a_class():
    many = [balanced(epoch, sizes=(9, 9, 20), batch_size=6, per_class=3) for epoch in range(1, 41)]
    images = torch.tensor([i for batches, _ in many for batch in batches for _, i in batch])
    of_class = torch.bincount(many[0][1][images])
    assert (of_class - of_class.float().mean()).abs().max() < 0.1 * of_class.float().mean()
    times = torch.bincount(images, minlength=38)
    assert times[:9].min() > 0.7 * times[:9].float().mean()
    assert times[18:].min() > 0.5 * times[18:].float().mean()


def test_a_run_has_the_augmentation_and_batches_that_it_is_given(monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(factory, "build_views", lambda *a, real=loading.build_views: made.setdefault("views", real(*a)))
    words = "--epochs 2 --model resnet8 --sampler balanced --batch_per_class 8 --batch_size 64 --exp_name a"
    run(monkeypatch, tmp_path, f"{words} --crop_scale none --colour 0.5 --blur 0.2 --flip")
    recipe = made["views"].augmentation
    assert (recipe.crop_scale, recipe.flip, recipe.colour, recipe.blur) == (None, True, 0.5, 0.2)
    state = checkpoint.load(tmp_path / "save/SupCon/digits_models/a")
    assert state["order"] == [1442, 64, 0, 8]
    assert state["options"]["blur"] == 0.2


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_same_batches_in_rank_order(monkeypatch, world):
    whole = batches_of(1)
    parts = [batches_of(1, world=world, rank=r, monkeypatch=monkeypatch) for r in range(world)]
    for step, batch in enumerate(whole):
        assert [item for part in parts for item in part[step]] == batch


@pytest.mark.parametrize(("bank", "warned"), [(2884, False), (2885, True)])
def test_a_bank_of_more_than_two_epochs_is_warned_of(monkeypatch, capsys, tmp_path, bank, warned):
    command = f"--epochs 1 --model resnet8 --batch_size 721 --memorybank_size {bank}"  # of 1442 images
    run(monkeypatch, tmp_path, command)
    line = f"warning: --memorybank_size {bank} holds the keys of 2 epochs"
    assert (line in capsys.readouterr().out) == warned
