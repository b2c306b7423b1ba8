"""Where encoders start: a library's weights, files of them, checkpoints; and what of timm's encoders can be trained."""

import argparse
import copy
import urllib.error

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from commands import error_of, result, run
from torch import nn

import datasets
import hubconf
import main_supcon
from engine.encoder import pretrained, trained_encoder
from engine.run import checkpoint
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank
from util import InputError

VIT, CONVNEXT = "timm:test_vit", "timm:test_convnext"
FILES = {VIT: "vit.pth", CONVNEXT: "convnext.safetensors", "resnet18": "resnet18.pth"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Files as the libraries leave them, with classifiers, and the models that they are of."""
    folder, models = tmp_path_factory.mktemp("library"), {}
    torch.manual_seed(0)
    for name, file in FILES.items():
        timms = name.startswith("timm:")
        models[name] = timm.create_model(name[5:]) if timms else torchvision.models.resnet18(num_classes=10)
        if file.endswith(".safetensors"):
            safetensors.torch.save_file(models[name].state_dict(), folder / file)
        else:
            torch.save(models[name].state_dict(), folder / file)
    prefixed = {f"module.backbone.{name}": x for name, x in models[VIT].state_dict().items()}
    for name, content in (("prefixed", prefixed), ("empty", {})):
        torch.save(content, folder / f"{name}.pth")
    (folder / "bad.safetensors").write_bytes(b"nothing of the kind")
    return folder, models


def start_from(model, file):
    return pretrained.choose_start(model, str(file), False)


def features_of(model, images):
    """What the library pools, before its classifier."""
    if isinstance(model, torchvision.models.ResNet):
        model.fc = nn.Identity()
        return model(images)
    return model.forward_head(model.forward_features(images), pre_logits=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["bare", "of its training"])
@torch.no_grad()
def test_a_file_of_a_library_is_for_init_ckpt_and_hub_what_the_library_pools(library, tmp_path, name, form):
    folder, models = library
    file, model = folder / FILES[name], models[name].eval()
    if form != "bare":
        place = "state_dict" if name.startswith("timm:") else "model"
        about = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(model=name, epochs=90)}
        file = tmp_path / "checkpoint.pth"
        torch.save({place: model.state_dict(), **about}, file)
    start = start_from(name, file)
    if name.startswith("timm:"):
        known = model.pretrained_cfg
        views = datasets.ViewSettings(known["input_size"][1], known["mean"], known["std"])
    else:
        views = datasets.ViewSettings(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (start.views, start.pretrained) == (views, True)
    encoder, images = start.build(True, views.size).eval(), torch.randn(2, 3, views.size, views.size)
    want = encoder(images)  # with the file's stem, though the images are small
    torch.testing.assert_close(want, features_of(copy.deepcopy(model), images))
    net = trained_encoder.load(str(file), datasets.build("digits"), model=name)
    assert (net.views, net.record["pretrained"]) == (views, True)
    assert torch.equal(net.encoder(images), want)
    assert torch.equal(hubconf.encoder(file, name)(images), want)


@pytest.mark.parametrize(("name", "better"), [(VIT, "state_dict_ema"), ("resnet18", "model")])
def test_which_of_several_weights_in_a_file_are_taken_is_said(capsys, library, tmp_path, name, better):
    names = ("state_dict", "state_dict_ema") if name == VIT else ("model", "model_ema")
    state = library[1][name].state_dict()
    torch.save(
        {place: {k: x + 1 if place == better else x for k, x in state.items()} for place in names}, tmp_path / "x.pth"
    )
    encoder = start_from(name, tmp_path / "x.pth").build(True, 160)
    (worse,) = set(names) - {better}
    assert f"--init {tmp_path / 'x.pth'}: holds {better} and {worse}; {better} is taken\n" in capsys.readouterr().out
    assert all(torch.equal(x, state[key] + 1) for key, x in encoder.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "resnet8"])
def test_bare_weights_of_what_no_library_has_see_the_data_sets_views(tmp_path, name):
    torch.save(resnet.encoder(name, small_images=True).state_dict(), tmp_path / "x.pth")
    start = start_from(name, tmp_path / "x.pth")
    assert (start.views, start.pretrained) == (datasets.ViewSettings(), False)
    assert start.build(False, 32)(torch.randn(2, 3, 32, 32)).shape[0] == 2


def test_timm_fits_the_position_embeddings_to_the_size_of_the_views(library):
    folder, models = library
    encoder = start_from(VIT, folder / FILES[VIT]).build(True, 64)
    assert encoder.pos_embed.shape[1] < models[VIT].pos_embed.shape[1]
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, encoder.dim)
    torch.testing.assert_close(encoder.blocks[0].attn.qkv.weight, models[VIT].blocks[0].attn.qkv.weight)


# a patch size that is a number, a pair, overlapping patches, patches without the attribute, none; all on 48 pixels
FAMILIES = {
    "xcit_nano_12_p16_224": 0, "efficientvit_m0": 0, "vit_tiny_patch16_224": 0, "eva02_tiny_patch14_224": 6,
    "pvt_v2_b0": 0, "test_convnext": 0, "test_resnet": 0, "mobilenetv3_small_050": 0, "test_efficientnet": 0,
    "test_vit2": 0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "left_out"), FAMILIES.items())
def test_every_size_that_timm_takes_is_taken_whatever_its_patches(capsys, name, left_out):
    encoder = pretrained.TrainedWeights(f"timm:{name}").build(True, 48)
    assert encoder.training
    assert encoder(torch.randn(2, 3, 48, 48)).shape == (2, encoder.dim)
    line = f"--size 48: timm:{name} begins with whole patches: the last {left_out} pixels of both sides are not seen\n"
    assert capsys.readouterr().out == (line if left_out else "")


class LooksAlike(nn.Module):
    """Weights whose names are those of the published forms, and are meant as they stand."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"shortcut": nn.Linear(2, 2), "backbone_k": nn.Linear(2, 2)})
        self.head, self.fc, self.encoder, self.layer_blocks = (nn.Linear(2, 2) for _ in range(4))


def test_names_that_look_like_published_ones_are_left_alone_in_checkpoints_of_this_code():
    encoder, classifier = LooksAlike(), nn.Linear(2, 3)
    state = {f"encoder.{name}": x for name, x in encoder.state_dict().items()}
    state |= {f"key_encoder.{name}": x for name, x in encoder.state_dict().items()}
    state |= {f"fc.{name}": x for name, x in classifier.state_dict().items()}
    state |= {"head.0.weight": torch.zeros(1), "bank.keys": torch.zeros(1)}
    weights, found = pretrained.split_weights({"format": 1, "model": state}, "--ckpt x")
    assert weights.keys() == encoder.state_dict().keys()
    assert all(weights[name] is not None and torch.equal(weights[name], x) for name, x in encoder.state_dict().items())
    assert found.keys() == {"weight", "bias"}


def test_the_key_encoder_draws_no_dropout_and_moves_its_own_means_in_training_alone():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    model = ContrastiveModel(encoder, projection_head(8, 4), MemoryBank(4, 4), None)
    images = torch.randn(6, 3, 2, 2)
    for training in (True, False, True):  # the last after it was evaluated
        model.train(training)
        before = model.key_encoder[2].running_mean.clone()
        assert torch.equal(model.encode_keys(images), model.encode_keys(images))
        assert torch.equal(model.encoder(images), model.encoder(images)) != training
        assert torch.equal(before, model.key_encoder[2].running_mean) != training


def test_an_encoder_of_timm_is_trained_probed_and_looked_at(monkeypatch, capsys, tmp_path, library):
    folder, _ = library
    small = "--size 32 --batch_size 128 --epochs 1 --images_per_class 20"
    with monkeypatch.context() as m:
        run(m, tmp_path, f"--model {VIT} --init {folder / FILES[VIT]} {small}")
    name = "rince_in_timm_test_vit_20_per_class_seed0"  # no colon in it
    ckpt = f"save/SupCon/digits_models/{name}"
    run(monkeypatch, tmp_path, f"--ckpt {ckpt} --cache_features --epochs 1", "main_linear")
    run(monkeypatch, tmp_path, f"--ckpt {ckpt}", "retrieval")
    record = result(tmp_path, "retrieval_*")["checkpoint"]
    assert (record["model"], record["pretrained"]) == (VIT, True)
    encoder = hubconf.encoder(tmp_path / ckpt)
    assert encoder(torch.randn(1, 3, 32, 32)).shape == (1, encoder.dim)
    capsys.readouterr()
    run(monkeypatch, tmp_path, f"--model {VIT} --init {ckpt} {small} --exp_name more", "main_ce")
    assert "began" not in capsys.readouterr().err


def test_a_run_begins_with_the_weights_of_init(monkeypatch, tmp_path, digits):
    file = digits / "save/SupCon/digits_models/ce/last.pth"
    start = start_from("resnet20", file)
    want, _ = pretrained.split_weights(checkpoint.load(file), "x")
    args = main_supcon.get_parser().parse_args([])
    args.memorybank_size, args.feat_dim = 64, 8
    model = main_supcon.build_model(args, start.build(True, 8), None, torch.device("cpu"), torch.contiguous_format)
    for net in (model.encoder, model.key_encoder):
        assert all(torch.equal(net.state_dict()[name], x) for name, x in want.items())


def test_names_of_runs_hold_no_slash(monkeypatch):
    args = main_supcon.get_parser().parse_args(["--model", "timm:hf-hub:org/name"])
    assert main_supcon.default_name(args) == "rince_in_timm_hf-hub_org_name_seed0"


@pytest.mark.parametrize(
    "options, message",
    [
        ("--model timm:test_vti", "timm:test_vit?"),
        ("--model resnet8 --pretrained", "--model resnet8: no library has weights of it"),
        ("--model resnet18 --pretrained --init x.pth", "--init and --pretrained: give one"),
        ("--model resnet18 --init none.pth", "--init none.pth: no such file"),
        ("--model resnet34 --init {0}/resnet18.pth", "of another architecture: layer1.2.conv1.weight is missing"),
        ("--model timm:test_convnext --size 32 --init {0}/vit.pth", "of another architecture, or no weights"),
        ("--model resnet18 --init {0}/convnext.safetensors", "convnext.safetensors: of another architecture"),
        ("--model timm:test_vit --size 8", "takes no images of 8 pixels"),
        ("--model timm:xcit_nano_12_p16_224 --size 30", "takes no images of 30 pixels (`patch_size` should divide"),
        ("--model timm:mvitv2_tiny --size 48", "takes no images of 48 pixels (index 1 is out of bounds"),
        ("--model timm:botnet26t_256 --size 48", "takes no images of 48 pixels (timm does not say why)"),
        ("--model timm:test_vit --size 32 --init {0}/prefixed.pth", "of another architecture, or no weights"),
        ("--model timm:test_vit --init {0}/empty.pth", "empty.pth: holds no weights by name"),
        ("--model resnet18 --init {0}/bad.safetensors", "not a readable safetensors file (it is a text that begins"),
        ("--model timm:test_vit.foo", "--model timm:test_vit.foo: Invalid pretrained tag"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(monkeypatch, capsys, tmp_path, library, options, message):
    command = options.format(library[0]) + " --exp_name x"
    assert message in error_of(monkeypatch, capsys, tmp_path, command, "main_ce")
    assert not (tmp_path / "save/SupCon/digits_models/x").exists()


def test_without_timm_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r'--model timm:test_vit: timm is not installed; pip install "\.\[timm\]"'):
        pretrained.choose_start(VIT, None, True)


def test_without_a_network_one_line_says_so(monkeypatch, capsys, tmp_path):
    def fails(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fails)
    line = error_of(monkeypatch, capsys, tmp_path, "--model resnet18 --pretrained --exp_name x", "main_ce")
    assert "the weights cannot be fetched" in line and "give --init a file" in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    line = error_of(monkeypatch, capsys, tmp_path, f"--model {VIT} --pretrained --exp_name x", "main_ce")
    assert "the weights cannot be fetched" in line


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("main_ce", ""),
        ("main_supcon", "--init {0}/vit.pth"),
        ("main_linear", "--ckpt {0}/vit.pth"),
        ("retrieval", "--ckpt {0}/of_hub.pth"),
    ],
)
def test_an_encoder_of_the_hub_without_a_network_is_the_same_line_in_every_script(
    monkeypatch, capsys, tmp_path, library, script, options
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = "timm:hf-hub:timm/none_such"
    checkpoint.save(library[0] / "of_hub.pth", {"model": {}, "options": {"model": model}})
    command = options.format(library[0]) + ("" if "of_hub" in options else f" --model {model}")
    line = error_of(monkeypatch, capsys, tmp_path, command, script)
    assert "the weights cannot be fetched (" in line
    assert line.endswith("; `hf download timm/none_such` fetches it where there is a network")


def test_a_library_s_weights_are_warned_of_where_outliers_are_of_imagenet(capsys):
    def warning(pretrained, classes):
        record = {"path": "x.pth", "classes": ["a"], "dataset": "path", "pretrained": pretrained}
        net = trained_encoder.FrozenEncoder(None, record, "x", {}, None, datasets.ViewSettings())
        trained_encoder.warn_of_seen(net, "imagenet", classes)
        return capsys.readouterr().err

    assert "have most likely seen ImageNet's n01440764: it was trained on these OOD images" in warning(
        True, ["n01440764"]
    )
    assert not warning(True, ["cat"])
    assert not warning(False, ["n01440764"])


@pytest.mark.parametrize("classes", [None, 0, 3], ids=["whole", "without its classifier", "of three classes"])
def test_a_file_of_timm_fills_every_weight_whatever_its_classifier(tmp_path, classes):
    torch.manual_seed(1)
    model = timm.create_model("test_vit", **({} if classes is None else {"num_classes": classes}))
    state = model.state_dict()
    torch.save(state, tmp_path / "x.pth")
    encoder = start_from(VIT, tmp_path / "x.pth").build(True, model.pretrained_cfg["input_size"][1])
    assert all(torch.equal(x, state[name]) for name, x in encoder.state_dict().items())


def test_a_resumed_run_needs_no_file_to_start_from_and_keeps_its_views(monkeypatch, capsys, tmp_path, library):
    folder, _ = library
    words = "--model resnet18 --size 24 --batch_size 128 --images_per_class 20 --exp_name a"
    run(monkeypatch, tmp_path, f"{words} --init {folder / FILES['resnet18']} --epochs 1", "main_ce")
    place = tmp_path / "save/SupCon/digits_models/a"
    before = checkpoint.load(place)
    for more in ("", f"--init {tmp_path / 'gone.pth'}"):
        epochs, again = 2 if not more else 3, words.replace("--size 24", "")
        run(monkeypatch, tmp_path, f"{again} {more} --epochs {epochs} --resume auto", "main_ce")
        after = checkpoint.load(place)
        assert all(after[name] == before[name] for name in ("size", "mean", "std", "pretrained"))
        assert after["epoch"] == epochs
    assert before["pretrained"] is True


def test_an_encoder_that_does_not_pool_is_refused(monkeypatch):
    monkeypatch.setattr(timm.models.VisionTransformer, "forward", lambda self, x: torch.zeros(len(x), 5, 64))
    with pytest.raises(InputError, match="it does not pool"):
        pretrained.TrainedWeights(VIT).build(True, 32)
