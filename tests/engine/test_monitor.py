"""What a run shows of itself: measures that equal their references, and time that adds up."""

import json
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from commands import error_of, run
from made_data import make_image_folders
from torch import nn

import datasets
from datasets import augmentation
from datasets.views import Views
from engine.batches.loading import Loading
from engine.run import run_log, runs
from engine.train import monitor
from losses import RINCELoss


def test_advice_is_given_for_much_waiting_on_a_training_of_some_length_alone():
    assert "give more --num_workers (now 2" in monitor.advise_on_waiting(0.4, 300, 2)
    assert "40 % of the time" in monitor.advise_on_waiting(0.4, 300, 2)
    assert monitor.advise_on_waiting(0.1, 300, 2) == ""
    assert monitor.advise_on_waiting(0.9, 5, 2) == ""


def test_images_are_spread_evenly_each_once():
    assert monitor.spread_indices(5, 9) == [0, 1, 2, 3, 4]
    assert monitor.spread_indices(1000, 3) == [0, 499, 999]


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that measures kNN accuracy and chance, and one of the same seed that measures neither."""
    root = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        common = "--epochs 3 --model resnet8 --batch_size 256 --mixed_out_in"
        run(patch, root, f"{common} --exp_name a --knn_freq 2")
        patch.setattr(RINCELoss, "chance", lambda *_: torch.zeros(2))
        run(patch, root, f"{common} --exp_name b")
    return root


def test_a_run_logs_its_temperatures_embeddings_time_and_knn_accuracy(watched):
    lines = (watched / "save/SupCon/digits_models/a/log.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]
    assert [r["epoch"] for r in records if "val_knn" in r] == [2, 3]
    assert records[-1]["val_knn"] > 30  # chance is 10
    for record in records:
        assert (record["tau_rank_0"], record["tau_rank_1"]) == (0.1, pytest.approx(0.225))
        assert record["embedding_norm"] > 0
        assert 0 <= record["alignment"] <= 4
        assert record["uniformity"] < 0
        assert 0 < record["waiting_for_data"] < 1
        assert record["seconds"] > 0


def test_a_run_logs_what_its_losses_chance_is_by_its_bank_and_prints_it_once(monkeypatch, capsys, tmp_path):
    real, found = RINCELoss.chance, []

    def seen(self, labels, bank_labels, dim):
        found.append((labels.clone(), bank_labels.clone(), dim, real(self, labels, bank_labels, dim).tolist()))
        return torch.tensor(found[-1][-1])

    monkeypatch.setattr(RINCELoss, "chance", seen)
    command = "--epochs 2 --model resnet8 --batch_size 200 --memorybank_size 1600 --reduction anchors --variant out"
    run(monkeypatch, tmp_path, f"{command} --exp_name a")
    printed = capsys.readouterr().out
    folder = tmp_path / "save/SupCon/digits_models/a"
    records = run_log.read_json_lines(folder / "log.jsonl")
    for record, (labels, bank_labels, dim, values) in zip(records, found, strict=True):
        assert [record["chance_rank_0"], record["chance_rank_1"]] == pytest.approx(values, rel=1e-6)
        assert torch.equal(labels, bank_labels[bank_labels >= 0]) and dim == 64
    assert torch.equal(found[-1][1], torch.load(folder / "last.pth", weights_only=True)["model"]["bank.labels"])
    by_chance, seen_terms = ([f"{records[0][f'{k}_rank_{r}']:.2f}" for r in (0, 1)] for k in ("chance", "loss"))
    line = f"terms of random embeddings (chance level): {by_chance[0]} (rank 0), {by_chance[1]} (rank 1); "
    assert printed.count(f"{line}in this epoch: {', '.join(seen_terms)}\n") == 1
    assert printed.count("chance level") == 1
    assert "RINCE out, pairs averaged within anchors: 1442 images" in printed


def test_tensorboard_has_scalars_the_pairs_and_the_projector(watched):
    folder = watched / "save/SupCon/digits_tensorboard/a"
    found = events(folder)
    assert {"alignment", "uniformity", "embedding_norm", "tau_rank_1", "val_knn"} <= set(found.Tags()["scalars"])
    (pairs,) = found.Images("augmented_pairs")
    assert (pairs.height, pairs.width) == (4 * 9 + 1, 8 * 9 + 1)  # 16 pairs of 8 x 8, a pixel between
    rows = (folder / "00003/encoder/metadata.tsv").read_text().split()
    assert set(rows) <= set("0123456789")
    assert len(rows) == monitor.PROJECTED
    assert len((folder / "00003/encoder/tensors.tsv").read_text().splitlines()) == len(rows)


def test_watching_changes_nothing_of_the_training(watched):
    a, b = (
        torch.load(watched / f"save/SupCon/digits_models/{name}/last.pth", weights_only=True)["model"] for name in "ab"
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_knn_accuracy_is_measured_in_the_trainings_precision():
    """The encoder runs in the context that training's encoders run in; its features are float32 in the end."""

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.types = set()

        def forward(self, x):
            y = F.linear(x.flatten(1), torch.ones(10, 3 * 8 * 8))
            self.types.add(y.dtype)
            return y

    data = datasets.build("digits", split="test")
    data.transform = augmentation.evaluation(8, (0.5,) * 3, (0.5,) * 3, True)
    views = Views(data, augmentation.Augmentation(8, (0.5,) * 3, (0.5,) * 3, (0.2, 1), False, False), 0, True)
    how, model = Loading(64, 0, torch.device("cpu")), nn.Module()
    model.encoder, model.head = Seen(), nn.Identity()
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    monitor.Watch(views, monitor.ClassNeighbors(data, data), 1, 1, how, autocast).scalars(model, 1)
    assert model.encoder.types == {torch.float32, torch.bfloat16}  # of the pairs that are drawn; of kNN


def test_knn_without_validation_images_is_refused_at_once(monkeypatch, capsys, tmp_path):
    make_image_folders(tmp_path / "mine", ["cat", "dog"], each=8)
    own = "--dataset path --data_folder mine --size 32 --batch_size 8 --num_workers 0 --model resnet8 --knn_freq 1"
    error = error_of(monkeypatch, capsys, tmp_path, f"{own} --ranking identity")
    assert "--knn_freq needs validation images: --data_folder mine" in error
    assert not (tmp_path / "save").exists()


def test_neighbors_of_groups_are_looked_for_among_whole_groups(monkeypatch):
    monkeypatch.setattr(monitor, "NEIGHBORS", 6)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4])
    images = torch.zeros(12, 8, 8, 3, dtype=torch.uint8).numpy()
    held = monitor.GroupNeighbors(
        datasets.ImageData(images, labels, list("abcde")),
        torch.tensor([[g, g // 2] for g in range(5)]),
        ["shot", "film"],
    )
    asked = []

    def features(data, indices):
        asked.append(indices)
        return torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]]), labels[indices]

    # groups 0 and 4 of 5: the images 0, 1 and 8 to 11, in films of their own; 1 and 8 are each other's nearest
    assert held.scalars(features) == {"nn_shot": pytest.approx(400 / 6), "nn_film": pytest.approx(400 / 6)}
    assert asked == [[0, 1, 8, 9, 10, 11]]


def test_a_run_that_was_stopped_at_an_epochs_last_step_shows_no_speed_for_it(monkeypatch, capsys, tmp_path):
    command = "--model resnet8 --batch_size 700 --memorybank_size 700 --epochs 2 --exp_name a"
    steps = []

    def stop_after_the_second(run):
        steps.append(run)  # asked before each step, and after the last
        run.stop.first = "SIGTERM" if len(steps) == 3 else None
        return len(steps) == 3, False

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(runs.Run, "ask_wishes", stop_after_the_second)
        run(patch, tmp_path, command)
    run(monkeypatch, tmp_path, f"{command} --resume auto")
    first, second = [line for line in capsys.readouterr().out.splitlines() if re.match(r"epoch \d/2  loss", line)]
    assert "  no step was left  " in first
    assert "img/s" in second
    log = run_log.read_json_lines(tmp_path / "save/SupCon/digits_models/a/log.jsonl")
    assert [("images_per_second" in record, record["loss"] > 0) for record in log] == [(False, True), (True, True)]
