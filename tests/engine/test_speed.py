"""What makes a run faster leaves what it computes alone."""

import pytest
import torch
import yaml
from commands import result, run

import datasets
from datasets.augmentation import Augmentation
from datasets.views import Views
from engine.batches import loading
from engine.train import training
from engine.train.optimization import allow_tf32, precision
from engine.train.training import Schedule, Stepper

CPU = torch.device("cpu")
SHORT = "--epochs 1 --batch_size 128 --model resnet8 --print_freq 5 "


def trained(monkeypatch, folder, choice, name):
    run(monkeypatch, folder, SHORT + f"{choice} --exp_name {name}")
    return torch.load(folder / f"save/SupCon/digits_models/{name}/last.pth", weights_only=True)["model"]


def test_device_worker_and_any_number_of_loader_processes_train_the_same_weights(monkeypatch, tmp_path):
    choices = ["--augment_on worker", "--augment_on device", "--num_workers 1", "--augment_on device --num_workers 3"]
    first, *others = (trained(monkeypatch, tmp_path, c, f"run{i}") for i, c in enumerate(choices))
    for other in others:
        assert all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(
    ("choice", "most"),
    [
        ("--channels_last", 1e-3),
        # emulated on many CPUs, and slow there; in float16 the first steps overflow and are skipped
        pytest.param("--channels_last --precision bfloat16", 0.05, marks=pytest.mark.slow),
        pytest.param("--precision float16", 0.3, marks=pytest.mark.slow),
    ],
)
def test_another_layout_or_precision_trains_nearly_the_same_weights(monkeypatch, tmp_path, choice, most):
    plain = trained(monkeypatch, tmp_path, "--channels_last False", "plain")
    other = trained(monkeypatch, tmp_path, choice, "other")
    weights = [k for k in plain if k.startswith("encoder.") and "weight" in k]
    moved = sum((plain[k] - other[k]).norm() for k in weights) / sum(plain[k].norm() for k in weights)
    assert moved < most


@pytest.mark.slow
def test_a_compiled_run_trains_nearly_the_same_weights_under_the_same_names(monkeypatch, tmp_path):
    plain, compiled = (trained(monkeypatch, tmp_path, c, f"run{c[2:]}") for c in ("", "--compile"))
    assert plain.keys() == compiled.keys()
    assert max((plain[k].float() - compiled[k].float()).abs().max() for k in plain if "num_batches" not in k) < 0.01


def test_auto_is_float32_on_a_cpu_and_a_choice_is_obeyed():
    assert precision("auto", CPU) == torch.float32
    assert precision("bfloat16", CPU) == torch.bfloat16
    assert precision("tf32", CPU) == precision("float32", torch.device("cuda")) == torch.float32
    weight = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    for choice, scales in (("auto", False), ("float16", True)):
        assert Stepper(weight, Schedule(0.1, 1, False), precision(choice, CPU), CPU).scaler.is_enabled() == scales


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batches_come_finished_in_the_layout_of_the_convolutions(layout, finished):
    views = Views(datasets.build("digits"), Augmentation(8, (0.5,) * 3, (0.2,) * 3), 0, finished)
    how = loading.Loading(16, 0, CPU, channels_last=layout == torch.channels_last)
    loader, sampler = loading.training_loader(views, how, seed=0)
    sampler.set_epoch(2)
    images, labels = next(iter(loader))
    keys = next(iter(sampler))
    assert images.shape == (2, 16, 3, 8, 8)
    for view in images:
        assert view.is_contiguous(memory_format=layout)
    want, want_labels = Views(views.data, views.augmentation, 0, True).__getitems__(keys)
    torch.testing.assert_close(images, want)
    assert torch.equal(labels, want_labels)


class Seen(torch.nn.Linear):
    """Two features to two classes; keeps the precision that it ran in."""

    def forward(self, x):
        out = super().forward(x)
        self.ran_in = out.dtype
        return out


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_validation_runs_in_the_trainings_precision(precision):
    model = Seen(2, 2)
    torch.nn.init.eye_(model.weight)
    stepper = Stepper(torch.optim.SGD(model.parameters(), 0.1), Schedule(0.1, 1, False), precision, CPU)
    batches = [(torch.tensor([[9.0, 0], [0, 9]]), torch.tensor([0, 0]))]
    assert training.validate(model, batches, stepper) == (50, 100)
    assert model.ran_in == precision
    assert model.training


@pytest.mark.parametrize("script", ["main_linear", "main_ce", "main_supcon"])
def test_compile_compiles_the_encoder_that_a_script_runs(monkeypatch, digits, tmp_path, script):
    """Each compiled module is called for every batch of training; in the probe, the frozen encoder."""
    calls = []

    def compiled(call, **_):
        def counted(*inputs):
            calls.append(len(inputs[0]))
            return call(*inputs)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    ckpt = f"--ckpt {digits / 'save/SupCon/digits_models/ce'}" if script == "main_linear" else "--model resnet8"
    run(monkeypatch, tmp_path, f"{ckpt} --compile --epochs 1 --batch_size 512", script)
    assert calls.count(512) >= (4 if script == "main_supcon" else 2)


@pytest.mark.parametrize(("choice", "tf32"), [("float32", False), ("tf32", True), ("auto", False)])
def test_float32_is_tf32_where_that_is_asked_for_alone_and_a_run_says_so(monkeypatch, tmp_path, choice, tf32):
    allow_tf32(not tf32)
    run(monkeypatch, tmp_path, f"{SHORT} --precision {choice} --exp_name a", "main_ce")
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    about = yaml.safe_load((tmp_path / "save/SupCon/digits_models/a/config.yaml").read_text())["about"]
    assert (about["precision"], about["tf32"]) == ("float32", tf32)
    record = result(tmp_path, "cross_entropy_*")
    assert (record["precision"], record["tf32"]) == ("float32", tf32)
