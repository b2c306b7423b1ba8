"""The losses that --loss_type names: each trains and resumes, says what it is, and refuses what it cannot use."""

import pytest
import torch
from commands import error_of, result, run

import main_supcon
from engine import objective
from engine.cli import options
from engine.run import checkpoint

SHORT = "--model resnet8 --batch_size 256 --memorybank_size 512 --exp_name a"


def parse(line=""):
    return main_supcon.get_parser().parse_args(line.split())


def test_every_loss_of_the_table_can_be_named():
    assert set(options.LOSS_TYPES) == set(objective.LOSSES)


@pytest.mark.parametrize("name", options.LOSS_TYPES)
def test_a_loss_trains_and_resumes_to_the_same_weights(name, monkeypatch, tmp_path, capsys):
    how = f"{SHORT} --loss_type {name} --knn_freq 2"
    run(monkeypatch, tmp_path, f"{how} --epochs 2 --save_freq 1")
    assert f"{objective.describe_loss(parse(f'--loss_type {name}'))}: 1442 images" in capsys.readouterr().out
    folder = tmp_path / "save/SupCon/digits_models/a"
    whole = checkpoint.load(folder / "last.pth")
    again = f"{how} --epochs 2 --resume {folder}/ckpt_epoch_1.pth".replace("--exp_name a", "--exp_name b")
    run(monkeypatch, tmp_path, again)
    again = checkpoint.load(folder.with_name("b") / "last.pth")
    assert all(torch.equal(x, again["model"][k]) for k, x in whole["model"].items())
    assert whole["model"]["bank.keys"].shape[1] == (128 if name == "two_losses_two_heads" else 64)


@pytest.mark.parametrize(
    ("line", "name", "title"),
    [
        ("", "rince_in", "RINCE in"),
        ("--mixed_out_in True --use_same_and_similar_class True", "rince_cumulative_out_in",
         "RINCE out_in, cumulative positives"),
        ("--positives nested --variant all_in", "rince_nested_all_in", "RINCE all_in, nested positives"),
        ("--n_sim_classes 1", "supcon_in", "SCL in"),
        ("--loss_type supcon --variant all --reduction anchors", "supcon_all", "SupCon"),
        ("--loss_type two_losses --variant all", "two_losses_all", "SupCon on classes and on the coarsest groups"),
        ("--loss_type two_losses_two_heads", "two_losses_two_heads_in",
         "SCL in on classes and on the coarsest groups, a head each"),
        ("--loss_type supcon --variant out --reduction anchors", "supcon_out",
         "SCL out, pairs averaged within anchors"),
        ("--loss_type xclr", "xclr", "X-CLR"),
    ],
)  # fmt: skip
def test_a_run_is_called_what_it_trains(line, name, title):
    args = parse(line)
    assert objective.name_loss(args) == name
    assert objective.describe_loss(args) == title


def test_the_record_of_an_evaluation_says_what_was_trained(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 1 --positives nested")
    run(monkeypatch, tmp_path, "--ckpt save/SupCon/digits_models/a", "retrieval")
    assert result(tmp_path, "retrieval*")["checkpoint"]["objective"] == "RINCE in, nested positives"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--loss_type himulcon --variant in", "--variant: has no use with --loss_type himulcon"),
        ("--loss_type supcon --positives nested", "--positives: has no use with --loss_type supcon"),
        ("--margin 0.1", "--margin: has no use with --loss_type rince"),
        ("--loss_type xclr --sigma 1", "--sigma: has no use"),
        ("--loss_type yaware --target_tau 1", "--target_tau: has no use"),
        ("--loss_type xclr --thresholds 0.5", "--thresholds: has no use"),
        ("--positives separate --use_same_and_similar_class True", "is cumulative; give one"),
        ("--loss_type himulcon --ranking identity", "needs groups of classes"),
        ("--loss_type rnc --ranking identity", "needs an order of classes"),
        ("--loss_type two_losses --ranking identity", "needs groups of classes"),
    ],
)
def test_what_a_loss_has_no_use_for_is_one_line(line, words, monkeypatch, capsys, tmp_path):
    assert words in error_of(monkeypatch, capsys, tmp_path, f"{SHORT} --epochs 1 {line}")


@pytest.mark.parametrize("name", ["xclr", "himulcon"])
def test_losses_that_need_classes_or_a_ranking_say_so(name, monkeypatch, capsys, tmp_path):
    rows = "f1,f2,label\n" + "".join(f"{i % 5},{i % 3 + 1},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "rows.csv").write_text(rows)
    found = error_of(monkeypatch, capsys, tmp_path, f"--features rows.csv --epochs 1 --loss_type {name}")
    assert "needs a ranking of classes: give --ranking" in found
