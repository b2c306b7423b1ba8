"""Small generated data sets in the formats of the real ones."""

import argparse
import json
import pickle

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import datasets
from datasets import rankings


def make_image_folders(root, classes, each, size=(48, 40)):
    """`each` JPEGs a class: a color of the class's own under noise."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        color = rng.integers(0, 255, 3)
        for i in range(each):
            pixels = (0.7 * color + 0.3 * rng.integers(0, 255, (size[1], size[0], 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{i}.JPEG")


def make_cifar100(root, train, test):
    """CIFAR-100's python files with `train` and `test` random images, all classes in turn."""
    groups = rankings.read_shipped("cifar100")
    fine = sorted(c for members in groups.values() for c in members)
    meta = {"fine_label_names": fine, "coarse_label_names": sorted(groups)}
    folder, coarse = root / "cifar-100-python", {c: i for i, g in enumerate(sorted(groups)) for c in groups[g]}
    _make_cifar(folder, {"train": train, "test": test}, "fine_labels", 100, "meta", meta)
    for name in ("train", "test"):
        content = pickle.loads((folder / name).read_bytes())
        content["coarse_labels"] = [coarse[fine[label]] for label in content["fine_labels"]]
        (folder / name).write_bytes(pickle.dumps(content))


def make_cifar10(root, train, test):
    """CIFAR-10's python files: five training batches and one of test images."""
    parts = {f"data_batch_{i}": train // 5 for i in range(1, 6)} | {"test_batch": test}
    meta = {"label_names": [f"class {c}" for c in range(10)]}
    _make_cifar(root / "cifar-10-batches-py", parts, "labels", 10, "batches.meta", meta)


def _make_cifar(folder, parts, key, classes, meta_name, meta):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(classes)
    for name, n in parts.items():
        content = {"data": rng.integers(0, 255, (n, 3072), dtype=np.uint8), key: [i % classes for i in range(n)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / meta_name).write_bytes(pickle.dumps(meta))


def make_tiny_imagenet(root, wnids, each):
    """Tiny-ImageNet as it is downloaded: flat validation images beside val_annotations.txt."""
    folder = root / "tiny-imagenet-200"
    for name in wnids:
        make_image_folders(folder / "train" / name, ["images"], each, size=(64, 64))
    make_image_folders(folder / "val", ["images"], each * len(wnids), size=(64, 64))
    files = sorted((folder / "val" / "images").iterdir())
    rows = [f"{file.name}\t{wnids[i % len(wnids)]}\t0\t0\t62\t62" for i, file in enumerate(files)]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


def make_paper_data(root):
    """Small data in the form of the real sets where the paper's commands expect them, in root/data."""
    data, wnids = root / "data", datasets.class_list("ImageNet-100")
    make_image_folders(data / "imagenet100" / "train", wnids, each=2)
    make_image_folders(data / "imagenet100" / "val", wnids, each=1)
    for i in (1, 2, 3):
        outliers = datasets.class_list(f"imagenet_outliers_split{i}")[:4]
        make_image_folders(data / f"imagenet_outliers_split{i}" / "train", outliers, each=9)
        make_image_folders(data / f"imagenet_outliers_split{i}" / "val", outliers, each=i)
    make_image_folders(data / "Animals_with_Attributes2" / "JPEGImages", ["antelope", "zebra"], each=5)
    make_cifar100(data, train=100, test=100)
    make_cifar10(data, train=10, test=30)
    make_tiny_imagenet(data, wnids[:3], each=4)


def original_checkpoint(path, encoder, form, model, dataset, classes=None):
    """A checkpoint in a published form, from the weights of `encoder`, a torchvision ResNet without classifier.

    form: "imagenet" (torchvision's names, head fc.0 and fc.2) or "cifar" (encoder., shortcut., head.0 and head.2);
    classes: of a cross-entropy model; None = a contrastive one, with a key encoder and bank of other numbers.
    """
    inner, cifar = {}, form == "cifar"
    for key, value in encoder.state_dict().items():
        inner[f"encoder.{key.replace('downsample', 'shortcut')}" if cifar else key] = value.clone()
    if classes:
        inner |= {"fc.weight": torch.randn(classes, encoder.dim), "fc.bias": torch.randn(classes)}
        state = {f"module.{k}": v for k, v in inner.items()}
    else:
        head = "head" if cifar else "fc"
        for layer, rows in ((0, encoder.dim), (2, 128)):
            inner |= {
                f"{head}.{layer}.weight": torch.randn(rows, encoder.dim),
                f"{head}.{layer}.bias": torch.randn(rows),
            }
        state = {f"module.backbone_q.{k}": v for k, v in inner.items()}
        state |= {f"module.backbone_k.{k}": v + 1 for k, v in inner.items()}
        state["module.memorybank_InfoNCE"] = torch.randn(128, 16)
        state["module.memorybank_labels"] = torch.zeros(16, dtype=torch.long)
        state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    opt = argparse.Namespace(model=model, dataset=dataset, lr_decay_epochs=[700, 800, 900], epochs=100)
    content = {"opt": opt, "model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 100}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return content


def photographs() -> dict:
    """Three real photographs as uint8 arrays: scikit-learn's two samples and matplotlib's portrait."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    portrait = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    return {"china": china, "flower": flower, "portrait": np.asarray(portrait)}


def make_crops(root, each=20, training=14, side=40):
    """Crops of the quarters of photographs, root/{train,val}/<photograph><quarter>; groups.csv, photographs.yaml."""
    rng, rows, names = np.random.default_rng(0), [], {}
    for name, photograph in photographs().items():
        height, width = (x // 2 for x in photograph.shape[:2])
        names[name] = [f"{name}{quarter}" for quarter in range(4)]
        for quarter in range(4):
            top, left = height * (quarter // 2), width * (quarter % 2)
            for i in range(each):
                extent = rng.integers(70, 130)
                y, x = top + rng.integers(0, height - extent), left + rng.integers(0, width - extent)
                place = f"{'train' if i < training else 'val'}/{name}{quarter}/{i}.png"
                (root / place).parent.mkdir(parents=True, exist_ok=True)
                crop = Image.fromarray(photograph[y : y + extent, x : x + extent])
                crop.resize((side, side), Image.Resampling.BILINEAR).save(root / place)
                if i < training:
                    rows.append(f"{place},{name}{quarter},{name}")
    (root / "groups.csv").write_text("\n".join(["image,region,photograph", *rows]) + "\n")
    (root / "photographs.yaml").write_text("".join(f"{n}: [{', '.join(regions)}]\n" for n, regions in names.items()))


def clouds(each=20, dim=8):
    """Three clouds of unit vectors, the first two near one another."""
    g = torch.Generator().manual_seed(0)
    centers = torch.eye(3, dim)
    centers[1] = centers[0] + 0.8 * centers[1]
    labels = torch.arange(3).repeat_interleave(each)
    return F.normalize(centers[labels] + 0.05 * torch.randn(3 * each, dim, generator=g), dim=1), labels


def make_text_encoder(folder):
    """A RoBERTa with random weights and a byte-level tokenizer, in a folder."""
    import transformers

    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=80, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder


def make_video(path, scenes, rate=10, format=None, rotation=0):
    """A video of scenes (color, frames): a plain color, on which a white square moves from left to right."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format=format) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for color, count in scenes:
            for i in range(count):
                pixels = np.full((64, 96, 3), color, np.uint8)
                pixels[8:24, 4 * i : 4 * i + 16] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
