"""What the README promises to a newcomer: its commands for an own folder run as they stand, but for their length."""

import json

import pytest
from commands import ROOT, run
from made_data import make_image_folders

README = (ROOT / "README.md").read_text()


def section(title):
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Images as the section says to lay them out, its superclass file, and the training of its first command."""
    root = tmp_path_factory.mktemp("own")
    classes = ["cat", "dog", "car", "lorry", "bus"]
    for part, each in (("train", 8), ("val", 3)):
        make_image_folders(root / "my_images" / part, classes, each)
    make_image_folders(root / "my_other_images", ["anything"], each=6)
    text = section("Your own data").partition("### Rankings")[0]
    (root / "my_superclasses.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    commands = [line for line in text.splitlines() if line.startswith("python ")]
    with pytest.MonkeyPatch.context() as patch:
        run(
            patch,
            root,
            f"{commands[0]} --epochs 2 --knn_freq 1 --size 32 --batch_size 8 --model resnet8 --num_workers 0",
        )
    return root, commands


def test_the_first_command_trains_on_an_own_folder_with_own_superclasses(own):
    root, _ = own
    lines = (root / "save/SupCon/path_models/mine/log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["epoch"] == 2
    assert {"loss_rank_1", "val_knn"} <= set(last)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_other_commands_evaluate_it(monkeypatch, own, number):
    root, commands = own
    command = commands[number]
    short = "--epochs 1 --batch_size 8 " if "main_linear" in command else ""
    run(monkeypatch, root, f"{command} --num_workers 0 {short}")
    script = command.split()[1].removesuffix(".py")
    name = {"main_linear": "linear", "out_of_dist_detection": "ood"}.get(script, script)
    (record,) = (root / "save/results").glob(f"{name}_path_*.json")
    assert json.loads(record.read_text())["metrics"]


def test_the_last_command_draws_it(monkeypatch, own):
    root, commands = own
    words = commands[4].removeprefix("python -m figures.embedding ")
    assert len(commands) == 5
    run(monkeypatch, root, f"{words} --num_workers 0", "figures.embedding")
    assert (root / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_the_columns_of_the_log_are_explained(own):
    root, _ = own
    lines = (root / "save/SupCon/path_models/mine/log.jsonl").read_text().splitlines()
    explained = section("Watching a run")
    for key in json.loads(lines[-1]):
        assert f"`{key.replace('rank_1', 'rank_0')}`" in explained or key == "epoch"
