"""Retrieval with a trained encoder: test images look for their class, or superclass, among the training images.

python retrieval.py --dataset cifar100 --data_folder ./data --labelset coarse --ckpt save/SupCon/cifar100_models/NAME
"""

import json
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import checkpoint
import datasets
import evaluation
import options
import training
import util
from datasets import augmentation, rankings
from networks import resnet
from util import InputError


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    g = p.add_argument_group("evaluation")
    g.add_argument("--ckpt", required=True, help="checkpoint, or a run's folder with last.pth")
    g.add_argument("--model", help="encoder (None: as the checkpoint says)")
    g.add_argument("--model_type", default="contrastive", choices=["contrastive", "cross_entropy"], help="its training")
    g.add_argument("--labelset", default="fine", choices=["fine", "coarse", "both"], help="classes or superclasses")
    g.add_argument("--superclasses", help="YAML file for --labelset coarse (None: the data set's own)")
    g.add_argument("--save_folder", default="./save", help="root of everything written")
    g.add_argument("--features", help="also keep features and labels in this .pt file")
    p.set_defaults(num_workers=0)
    return p


def coarse_labels(args, classes):
    """[C] the superclass of each class."""
    if args.superclasses:
        source = f"--superclasses {args.superclasses}"
        groups = rankings.read_superclasses(Path(args.superclasses), "--superclasses")
    elif datasets.spec(args.dataset).superclasses:
        source = datasets.spec(args.dataset).superclasses
        groups = rankings.known_superclasses(source)
    else:
        raise InputError(f"--labelset {args.labelset}: {args.dataset} has none; give --superclasses FILE.yaml")
    return rankings.superclass_labels(groups, classes, source)


def load_features(args, device):
    """Features of the training and the test split, and the class names."""
    state = checkpoint.load(args.ckpt)
    trained = state.get("options", {})
    name = args.model or trained.get("model")
    if name is None:
        raise InputError(f"--ckpt {args.ckpt} does not say which encoder it holds; give --model")
    spec = datasets.spec(args.dataset)
    try:
        encoder = resnet.encoder(name, spec.small)
    except ValueError as error:
        raise InputError(str(error)) from None
    checkpoint.load_encoder(args.ckpt, encoder)
    encoder.to(device)
    splits = [datasets.build(args.dataset, args.data_folder, s, tuple(args.hold_out)) for s in ("train", "test")]
    if splits[0].classes != splits[1].classes:
        odd = sorted(set(splits[0].classes) ^ set(splits[1].classes))[0]
        raise InputError(f"--data_folder {args.data_folder}: class {odd} is in one of train and validation only")
    # views as in training, unless the options say otherwise
    size = args.size or state.get("size") or spec.size
    mean, std = args.mean or state.get("mean") or spec.mean, args.std or state.get("std") or spec.std
    found = []
    for data in splits:
        data.transform = augmentation.evaluation(size, mean, std, spec.small)
        loader = DataLoader(data, args.batch_size, num_workers=args.num_workers)
        found += evaluation.extract(encoder, loader, device)
    return found, splits[0].classes


def main():
    args = training.parse(get_parser(), {})
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (gallery, gallery_labels, features, labels), classes = load_features(args, device)
    results = {}
    for labelset in ("fine", "coarse") if args.labelset == "both" else (args.labelset,):
        group = torch.arange(len(classes)) if labelset == "fine" else coarse_labels(args, classes)
        try:
            results[labelset] = evaluation.retrieval_metrics(features, group[labels], gallery, group[gallery_labels])
        except ValueError as error:
            raise InputError(f"--data_folder {args.data_folder}: {error}") from None
    seconds = time.perf_counter() - start
    folder = Path(args.save_folder) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    run = Path(args.ckpt) if Path(args.ckpt).is_dir() else Path(args.ckpt).parent
    path = folder / f"retrieval_{args.dataset}_{run.resolve().name}_{args.labelset}.json"
    record = {"metrics": results, "options": options.plain(args), "seconds": seconds, "torch": torch.__version__}
    record |= {"images": {"train": len(gallery), "test": len(features)}}
    path.write_text(json.dumps(record, indent=1))
    if args.features:
        kept = {"gallery": gallery, "gallery_labels": gallery_labels, "features": features, "labels": labels}
        torch.save({**kept, "classes": classes}, args.features)
    columns = list(next(iter(results.values())))
    print(f"{'labels':<8}" + "".join(f"{c:>8}" for c in columns))
    for labelset, metrics in results.items():
        print(f"{labelset:<8}" + "".join(f"{100 * metrics[c]:>8.2f}" for c in columns))
    print(f"saved {path}")


if __name__ == "__main__":
    util.run_command(main)
