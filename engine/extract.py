"""Write features, labels and superclasses of a data set as safetensors, to train and evaluate on features.

python -m engine.extract --dataset cifar100 --ckpt save/SupCon/cifar100_models/NAME --out features
python -m engine.extract --dataset cifar100 --model timm:resnet50 --pretrained --views 8 --out features
python -m engine.extract --features features/train-*.safetensors --ckpt HEAD --split train --out embeddings
python -m engine.extract --texts train.csv test.csv --text_encoder FOLDER --out features   # CSV text,label,coarse

Files are train-00000-of-00001.safetensors and so on, val-... for test images, and for texts they have the name of the
CSV. The same command continues an extraction that was stopped: stored files are kept.
"""

import importlib.metadata
from dataclasses import asdict
from functools import partial
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import datasets
from datasets import feature_shards, rankings, text_tables
from datasets.feature_shards import FeatureSet
from datasets.rankings import taxonomy, text_encoders
from engine import factory
from engine.cli import config, options
from engine.cli.parsing import Means, count, flag, positive
from engine.encoder import extraction, library_encoder, trained_encoder
from engine.encoder.extraction import ImageEncoding, TextEncoding
from engine.processes import distributed
from engine.processes.launch import launch
from util import InputError

OTHERS = ("features", "ckpt", "model", "pretrained", "init", "views", "superclasses")  # options without use for texts


def get_parser():
    p = options.parser(__doc__)
    p.epilog = None  # it is about trainings
    options.add_data(p, datasets.NAMES)
    g = p.add_argument_group("encoder: --ckpt, or for images --model with --pretrained or --init")
    g.add_argument("--ckpt", type=util.user_text, metavar="FILE", help="checkpoint, exported encoder, or run folder")
    g.add_argument("--model", help="name of the encoder (default: from the checkpoint)")
    flag(g, "--pretrained", means=Means.PIXELS, help="use the library's pretrained weights of --model")
    init = "file of weights of --model, from its library"
    g.add_argument("--init", type=util.user_text, metavar="FILE", means=Means.PIXELS, help=init)
    parts = "features of a head (default: its output)"
    g.add_argument("--layer", choices=options.LAYERS, means=Means.VECTORS, help=parts)
    g = p.add_argument_group("images and views")
    g.add_argument(
        "--split",
        choices=["train", "test", "both"],
        default="both",
        help="images to extract; files of test are called val",
    )
    stored = "augmented views to store per training image, after the plain one"
    g.add_argument("--views", type=count, default=0, metavar="N", means=Means.PIXELS, help=stored)
    options.add_augmentation(g)
    g.add_argument("--seed", type=int, default=0, help="random seed of the augmented views")
    superclasses = "YAML file of superclasses (default: the data set's own)"
    g.add_argument("--superclasses", type=util.user_text, metavar="FILE", help=superclasses)
    g = p.add_argument_group("texts instead of images")
    g.add_argument(
        "--texts", type=util.user_text, nargs="+", metavar="FILE", help="CSV files with columns text,label,coarse"
    )
    encoder = f"name on the Hugging Face hub, or local folder (default: {text_encoders.ENCODER})"
    g.add_argument("--text_encoder", type=util.user_text, help=encoder)
    g = p.add_argument_group("output")
    g.add_argument("--out", type=util.user_path, required=True, metavar="FOLDER", help="folder to write")
    g.add_argument("--dtype", choices=feature_shards.DTYPES, default="float32", help="type of the stored numbers")
    g.add_argument("--shard_size", type=positive, default=100, help="largest file size in MB")
    options.add_distributed(p)
    return p


def check_options(args) -> None:
    """Raise InputError for options that contradict one another, or have no use."""
    if args.texts:
        if idle := next((name for name in OTHERS if getattr(args, name)), None):
            raise InputError(f"{args.spelling[idle]}: has no use with --texts; leave it out")
        if (again := util.twice(Path(path).stem for path in args.texts)) is not None:
            raise InputError(f"--texts: two files are called {again}, as their features would be; rename one")
        return
    if args.text_encoder:
        raise InputError(f"--text_encoder {args.text_encoder}: has no use without --texts")
    if sum(map(bool, (args.ckpt, args.pretrained, args.init))) != 1:
        raise InputError(
            "--ckpt or --model: give one encoder: --ckpt FILE, --model NAME --pretrained, or --model NAME --init FILE"
        )
    if not args.ckpt and not args.model:
        raise InputError(f"--{'init' if args.init else 'pretrained'}: needs the name of the encoder; give --model NAME")


# ---- images ----------------------------------------------------------------------------------------------------------


def read_parts(args) -> tuple[datasets.ImageData, dict[str, datasets.ImageData]]:
    """Read the images by which views are normalized, of training if both splits are taken; the parts, by name."""
    which, folder = factory.select_images(args), factory.find_data(args)
    if args.split != "both":
        data = datasets.build(args.dataset, folder, args.split, which)
        return data, {"train" if args.split == "train" else "val": data}
    try:
        train, test = datasets.build_pair(args.dataset, folder, which)
    except InputError as error:
        raise InputError(f"{error}; --split train or test extracts one of them") from None
    return train, {"train": train, "val": test}


def load_encoder(args, train: datasets.ImageData) -> trained_encoder.FrozenEncoder:
    """Load the encoder that the options name, for the images of --dataset."""
    views = factory.chosen_views(args)
    if args.ckpt:
        net = trained_encoder.load(args.ckpt, train, args.dataset, views, args.model)
        return net.take_layer(args.layer or net.layers[0])
    return library_encoder.load(args.model, args.init, train, args.dataset, views)


def name_superclasses(args, train: datasets.ImageData) -> list[str] | None:
    """Return the superclass of each class, by --superclasses or as the data set knows it; None without."""
    groups, source = rankings.choose_superclasses(args.superclasses, train.superclasses)
    if groups is None:
        return None
    return taxonomy.match_classes(train.classes, {c: name for name, members in groups.items() for c in members}, source)


def describe_images(args, encoding: ImageEncoding) -> dict:
    """How features of images are made."""
    from networks import encoders  # and with it torchvision's models: not before a network is built

    net, augmented = encoding.net, encoding.augmented
    libraries = ("timm",) if encoders.is_timm(net.record["model"]) else ()
    return {
        "encoder": net.record["model"],
        "weights_sha256": net.record["sha256"],
        "pretrained": net.record["pretrained"],
        "dataset": args.dataset,
        "images_sha256": extraction.hash_images(encoding.data),
        "views": net.views.to_dict(),
        "interpolation": net.record.get("interpolation"),
        "layer": args.layer,
        "augmented": augmented and asdict(augmented) | {"seed": encoding.seed},
        "versions": config.versions() | {name: importlib.metadata.version(name) for name in libraries},
    }


def extract_images(args, device) -> None:
    """One process: data, encoder, and its share of every shard."""
    loading, encodings, sets = factory.loading(args, device), [], []
    with distributed.main_first():
        util.check_folder(args.out, "--out")
        train, parts = read_parts(args)
        for data in parts.values():
            distributed.say(data.left_out.describe())
        net, coarse = load_encoder(args, train), name_superclasses(args, train)
        source = f"--ckpt {args.ckpt}" if args.ckpt else f"--model {args.model}"
        augmentation = None
        if args.views:
            augmentation = factory.augmented(args, datasets.spec(args.dataset), net.views, count=args.views)
        for name, data in parts.items():
            augmented = augmentation if name == "train" else None
            encoding = ImageEncoding(source, net, data, loading, augmented, args.seed)
            shape = (1 + args.views, net.encoder.dim) if augmented else (net.encoder.dim,)
            labels = [names and [names[y] for y in data.labels] for names in (data.classes, coarse)]
            sets.append(FeatureSet(name, len(data), shape, args.dtype, describe_images(args, encoding), *labels))
            encodings.append(encoding)
        missing = extraction.find_missing(sets, args.out, args.shard_size)
    extraction.write_sets(sets, encodings, missing, args.out)


# ---- texts -----------------------------------------------------------------------------------------------------------


def extract_texts(args, device) -> None:
    """One process: tables, encoder, and its share of every shard of each table."""
    name, sets, encodings = args.text_encoder or text_encoders.ENCODER, [], []
    with distributed.main_first():
        util.check_folder(args.out, "--out")
        tables = {Path(path).stem: text_tables.read_texts(Path(path), "--texts") for path in args.texts}
        encoder = text_encoders.load_encoder(name, "--text_encoder")
        encoder.model.to(device)
        width = len(text_encoders.embed_texts(["a text"], encoder)[0])
        about = {
            "encoder": Path(name).resolve().name if Path(name).is_dir() else name,
            "details": f"{encoder.about}, at most {encoder.most} tokens" if encoder.most else encoder.about,
            "weights_sha256": library_encoder.hash_weights(encoder.model),
            "versions": {n: importlib.metadata.version(n) for n in ("torch", "transformers")},
        }
        for stem, table in tables.items():
            texts, labels = table.texts, (table.labels, table.coarse)
            whole = about | {"texts_sha256": extraction.hash_texts(texts)}
            sets.append(FeatureSet(stem, len(texts), (width,), args.dtype, whole, *labels))
            encodings.append(TextEncoding(f"--text_encoder {name}", encoder, width, texts, device))
        missing = extraction.find_missing(sets, args.out, args.shard_size)
    extraction.write_sets(sets, encodings, missing, args.out)


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    check_options(args)
    launch(partial(extract_texts if args.texts else extract_images, args), factory.processes(args))


if __name__ == "__main__":
    util.run_command(main)
