"""main_supcon.py as users run it: the documented commands, resume, processes, bad input."""

import json
import re
import subprocess
import sys

import processes
import pytest
import torch
from commands import ROOT, error_of, run
from made_data import make_cifar100, make_image_folders

from engine.batches import loading
from engine.processes import distributed, launch
from engine.run import checkpoint

WNIDS = (ROOT / "datasets" / "ImageNet-100.txt").read_text().split()
IMAGENET = {
    "rince_imagenet100": "python main_supcon.py --roberta_float_threshold=0.4 --mixed_out_in=True --do_sum_in_log=True "
    "--dataset=imagenet --similarity_ranking_imagenet=roberta_threshold --save_freq=100 --epochs=500 --min_tau=0.1 "
    "--max_tau=0.6 --use_dynamic_tau=True --memorybank_size=8192 --learning_rate=0.3 --batch_size=768 --cosine "
    "--size=224 --data_folder=./data/imagenet100/train --model=resnet18 --exp_name=rince_imagenet100 "
    "--dist-backend=NCCL --num_workers=16 --loss_type=rince",
    "imagenet100_SCL_out": "python main_supcon.py --data_folder=./data/imagenet100/train --dataset=imagenet "
    "--save_freq=100 --cosine --batch_size=768 --size=224 --learning_rate=0.325 --min_tau=0.1 --max_tau=0.1 "
    "--memorybank_size=8192 --similarity_threshold=0.5 --do_sum_in_log=False --exp_name=imagenet100_SCL_out "
    "--model=resnet18 --num_workers=16 --dist-backend=NCCL --epochs=500 "
    "--similarity_ranking_imagenet=roberta_threshold --loss_type=supcon",
}
CIFAR = (
    "python main_supcon.py --batch_size 512 --num_workers 8 --print_freq 100 --data_folder ./data --dataset cifar100 "
)
RINCE = "--cosine --learning_rate 0.5 --min_tau 0.1 --max_tau 0.6 --similarity_threshold 0.5 --n_sim_classes 5 "
RINCE += "--use_supercategories True --use_same_and_similar_class True "
SCL = "--cosine --learning_rate 0.5 --min_tau 0.1 --max_tau 0.1 --similarity_threshold 0.0 --one_loss_per_rank False "
SCL += "--n_sim_classes 1 "
CIFAR100 = {
    "test_RINCE_out_in": CIFAR + RINCE + "--mixed_out_in_log True --exp_name test_RINCE_out_in",
    "test_RINCE_in": CIFAR + RINCE + "--exp_name test_RINCE_in",
    "test_RINCE_out": CIFAR + RINCE + "--do_sum_in_log False --exp_name test_RINCE_out",
    "test_SCL_in": CIFAR + SCL + "--do_sum_in_log True --exp_name test_SCL_in",
    "test_SCL_out": CIFAR + SCL + "--do_sum_in_log False --exp_name test_SCL_out",
}
# what each trains on, as the run prints it
RANKED = "rank 1: similarity 0.75, from 0.402 to 0.7401, tau 0.225; positives of a class 0/2/10 classes, 0/4/20 images"
OBJECTIVE = {
    "rince_imagenet100": ["RINCE out_in: 200 images, 100 classes", RANKED, "25 classes without a similar class: "],
    "imagenet100_SCL_out": [
        "SCL out: 200 images, 100 classes",
        "positives of a class 1 classes, 2 images\nwarning: --memorybank_size",
    ],
    "test_RINCE_out_in": [
        "RINCE out_in: 100 images",
        "similarity 0.75, tau 0.225; positives of a class 4 classes, 4 im",
    ],
    "test_RINCE_in": ["RINCE in: 100 images", "tau 0.225"],
    "test_RINCE_out": ["RINCE out: 100 images", "tau 0.225"],
    "test_SCL_in": [
        "SCL in: 100 images, 100 classes\nrank 0: similarity 1, tau 0.1; positives of a class 1 classes, 1 "
    ],
    "test_SCL_out": ["SCL out: 100 images, 100 classes\nrank 0: similarity 1, tau 0.1"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with ImageNet-100-shaped and CIFAR-100-format data where the commands expect them."""
    root = tmp_path_factory.mktemp("world")
    make_image_folders(root / "data" / "imagenet100" / "train", WNIDS, each=2)
    make_image_folders(root / "data" / "imagenet100" / "val", WNIDS, each=1)
    make_cifar100(root / "data", train=100, test=100)
    return root


@pytest.mark.parametrize("name", [*IMAGENET, *CIFAR100])
def test_documented_command_trains_and_writes_what_it_should(monkeypatch, capsys, world, name):
    dataset = "imagenet" if name in IMAGENET else "cifar100"
    short = "--size 32 --batch_size 100" if dataset == "imagenet" else "--size 8 --batch_size 100"
    if dataset == "cifar100" and name != "test_RINCE_out_in":  # the default encoder once: it takes seconds
        short += " --model resnet18"
    run(monkeypatch, world, f"{(IMAGENET | CIFAR100)[name]} --epochs 1 --num_workers 0 {short}")
    printed = capsys.readouterr()
    for part in OBJECTIVE[name]:
        assert part in printed.out
    assert printed.err.count("no CUDA device") == 1
    folder = world / "save" / "SupCon" / f"{dataset}_models" / name
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["epoch"] == 1
    assert all(x.isfinite().all() for x in state["model"].values() if x.is_floating_point())
    assert list((world / "save" / "SupCon" / f"{dataset}_tensorboard" / name).glob("events.*"))
    record = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    wanted = {"loss", "loss_rank_0", "positives_rank_0", "learning_rate", "images_per_second"}
    assert wanted <= set(record)


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


def test_resume_goes_on_after_the_saved_epoch_with_its_bank_and_optimiser(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a --save_freq 1")
    folder = "save/SupCon/digits_models/a"
    before = weights(tmp_path, "a")
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a --epochs 2 --resume {folder}")
    after = weights(tmp_path, "a")
    assert after["epoch"] == 2
    pushed = 1442 // 256 * 256
    assert int(after["model"]["bank.pointer"]) == 2 * pushed % 512
    assert f"resumed {folder}/last.pth after epoch 1" in capsys.readouterr().out
    assert before["optimizer"]["state"].keys() == after["optimizer"]["state"].keys()
    assert (tmp_path / folder / "ckpt_epoch_1.pth").exists()


def test_two_gloo_processes_start_from_a_plain_command(tmp_path):
    code, printed = processes.call(tmp_path, [*DIGITS.split(), "--nproc_per_node", "2", "--exp_name", "two"])
    assert code == 0, printed
    assert printed.count("epoch 1/1  loss") == 1
    assert int(weights(tmp_path, "two")["model"]["bank.pointer"]) == 1442 // 256 * 256 % 512


@pytest.mark.slow  # what is stopped in tests/engine/test_survival.py was started so too
def test_torchrun_starts_two_processes_of_the_same_script(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(ROOT / "main_supcon.py"), *DIGITS.split(), "--exp_name", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1  loss") == 1
    assert weights(tmp_path, "run")["epoch"] == 1


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
    assert code == 2
    errors = [line for line in printed.splitlines() if ": error: " in line]
    assert errors == ["main_supcon.py: error: --data_folder nowhere: no such folder"]
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("--dataset digitz", "argument --dataset: invalid choice"),
        ("--dataset path --data_folder nowhere --ranking identity", "--data_folder nowhere: no such folder"),
        (
            "--dataset cifar100 --data_folder nowhere --num_workers 0",
            "--data_folder nowhere: holds no cifar-100-python",
        ),
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
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(monkeypatch, capsys, tmp_path, command, reason):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, command)
    assert stop.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(error) == 1
    assert reason in error[0]
    assert not (tmp_path / "save").exists()


def test_roberta_without_its_threshold_is_named(monkeypatch, capsys, world):
    with pytest.raises(SystemExit):
        run(monkeypatch, world, "--dataset imagenet --data_folder data/imagenet100 --ranking roberta_threshold")
    assert "give --thresholds (--roberta_float_threshold), published: 0.4" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a")
    path = tmp_path / "save/SupCon/digits_models/a/last.pth"
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a")
    assert "--exp_name a" in capsys.readouterr().err
    assert path.read_bytes() == before
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a --seed 9 --overwrite")
    assert path.read_bytes() != before


def test_resume_refuses_another_architecture_other_classes_and_damage(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a")
    path = tmp_path / "save/SupCon/digits_models/a/last.pth"
    whole = path.read_bytes()
    cases = [
        ("--model resnet14", "was trained with --model resnet8, not resnet14"),
        ("--hold_out 4 --model resnet8", "was trained on other classes"),
        ("--model resnet8 --epochs 1", "has all of its 1 epochs"),
    ]
    for options, reason in cases:
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, tmp_path, f"--epochs 2 --batch_size 256 --exp_name a --resume {path} {options}")
        assert stop.value.code == 2
        assert reason in capsys.readouterr().err
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(whole[:1000])
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, f"--exp_name b --resume {damaged}")
    assert "not a readable checkpoint" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_a_loss_that_turns_nan_stops_the_run_and_names_the_last_good_checkpoint(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a")
    path = tmp_path / "save/SupCon/digits_models/a/last.pth"
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, f"{DIGITS} --exp_name a --epochs 3 --resume {path} --learning_rate 1e30")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(
        r"NaN or infinite in epoch 2, step \d, at learning rate \S+; last good checkpoint: \S+last.pth", error
    )
    assert path.read_bytes() == before


def test_an_own_folder_trains_with_own_superclasses(monkeypatch, capsys, tmp_path):
    make_image_folders(tmp_path / "mine" / "train", ["cat", "dog", "car"], each=8)
    (tmp_path / "groups.yaml").write_text("animals: [cat, dog]\nthings: [car]\n")
    own = "--dataset path --data_folder mine --size 32 --batch_size 8 --num_workers 0"
    run(monkeypatch, tmp_path, f"{own} --ranking groups.yaml --model resnet8 --epochs 1 --exp_name own")
    printed = capsys.readouterr().out
    assert "rank 1: similarity 0.75, tau 0.225; positives of a class 0/1/1 classes, 0/8/8 images" in printed
    assert "1 classes without a similar class: car\ne.g. cat: dog 0.75" in printed


def batches_of(epoch, done=0, seed=0, world=1, rank=0, monkeypatch=None):
    if monkeypatch:
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
    sampler = loading.EpochBatches(50, 12, seed)
    sampler.set_epoch(epoch, done)
    assert len(sampler) == 4
    return list(sampler)


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    first = batches_of(1)
    assert first == batches_of(1)
    assert first not in (batches_of(2), batches_of(1, seed=1))
    indices = [i for batch in first for epoch, i in batch]
    assert len(set(indices)) == 48
    assert {epoch for batch in first for epoch, i in batch} == {1}


def test_an_epoch_goes_on_at_any_step():
    assert batches_of(3, done=1) == batches_of(3)[1:]
    assert batches_of(3, done=4) == []


def balanced(epoch=1, done=0, seed=0, sizes=(9, 40, 4, 17, 30), batch_size=12, per_class=4):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    sampler = loading.BalancedBatches(labels, batch_size, seed, per_class)
    sampler.set_epoch(epoch, done)
    assert len(sampler) == len(labels) // batch_size
    return list(sampler), labels


def test_balanced_batches_have_equally_many_images_of_some_classes_and_none_twice():
    batches, labels = balanced()
    seen = torch.zeros(5)
    for batch in batches:
        images = [i for _, i in batch]
        assert len(set(images)) == 12
        counts = torch.bincount(labels[images], minlength=5)
        assert sorted(counts.tolist()) == [0, 0, 4, 4, 4]
        seen += counts > 0
    assert seen.sum() == 3 * len(batches)


def test_balanced_classes_come_equally_often_and_so_do_the_images_of_a_class():
    many = [balanced(epoch, sizes=(9, 9, 20), batch_size=6, per_class=3) for epoch in range(1, 41)]
    images = torch.tensor([i for batches, _ in many for batch in batches for _, i in batch])
    of_class = torch.bincount(many[0][1][images])
    assert (of_class - of_class.float().mean()).abs().max() < 0.1 * of_class.float().mean()
    times = torch.bincount(images, minlength=38)
    assert times[:9].min() > 0.7 * times[:9].float().mean()
    assert times[18:].min() > 0.5 * times[18:].float().mean()


def test_balanced_batches_depend_on_seed_and_epoch_and_go_on_at_any_step():
    first = balanced(2)[0]
    assert first == balanced(2)[0]
    assert first not in (balanced(3)[0], balanced(2, seed=1)[0])
    assert balanced(2, done=3)[0] == first[3:]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--sampler balanced --batch_per_class 3", "do not divide --batch_size 64"),
        ("--sampler balanced --batch_per_class 4", "want 16 classes; there are 10"),
        ("--sampler balanced --batch_per_class 8 --images_per_class 7 --batch_size 32", "0 has 7"),
        ("--batch_per_class 4", "has no use without --sampler balanced"),
        ("--crop_scale 0.5", "neither none nor two shares"),
        ("--crop_scale 0.5,0.2", "neither none nor two shares"),
        ("--colour 3", "3.0 is not in [0, 2.5]"),
        ("--blur 2", "2.0 is not in [0, 1]"),
    ],
)
def test_batches_and_views_that_cannot_be_made_are_one_line(monkeypatch, capsys, tmp_path, options, message):
    assert message in error_of(monkeypatch, capsys, tmp_path, options)


def test_a_run_has_the_augmentation_and_batches_that_it_is_given(monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(loading, "augmented", lambda *a, real=loading.augmented: made.setdefault("views", real(*a)))
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
