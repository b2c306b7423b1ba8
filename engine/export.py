"""Export an encoder: weights in safetensors, under the names of torchvision or timm, and a model card.

python -m engine.export --ckpt save/SupCon/cifar100_models/NAME --out my_encoder --license CC-BY-4.0
"""

import importlib.metadata
import json
from pathlib import Path

import datasets
import util
from engine.cli import config, options
from engine.cli.parsing import Means, Parser
from engine.encoder import official_checkpoints, pretrained
from engine.run import checkpoint
from networks import cards, encoders, exported, vectors
from util import InputError


def get_parser():
    p = Parser(description=__doc__)
    p.add_argument("--ckpt", type=util.user_text, required=True, metavar="FILE", help="checkpoint, or run folder")
    p.add_argument(
        "--out", type=util.user_path, required=True, metavar="FOLDER", help="folder to write, without an encoder"
    )
    p.add_argument("--model", help="name of the encoder (default: from the checkpoint)")
    p.add_argument("--license", "--licence", help="license of the weights, such as CC-BY-4.0, for the model card")
    records = "folder of the records of evaluations"
    p.add_argument("--results", type=util.user_path, metavar="FOLDER", default=Path("save/results"), help=records)
    return p


def find_metrics(sha256: str, folder: Path) -> list[dict]:
    """Read the records of this checkpoint's evaluations in a folder: command, images, metrics in percent."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            if record["checkpoint"]["sha256"] == sha256:
                found.append({name: record[name] for name in ("command", "images", "metrics") if name in record})
        except (OSError, ValueError, KeyError, TypeError):  # not a record
            continue
    return found


def describe(trained: pretrained.TrainedWeights, license: str | None, results: Path) -> dict:
    """Return what a card says of an encoder and its training. results: folder of evaluations' records."""
    path, state = trained.path, trained.content
    given, sha256 = checkpoint.trained_options(state), util.sha256(path)
    official, name = official_checkpoints.find(sha256), given.get("dataset")
    views = trained.views
    if name in datasets.NAMES:  # an official checkpoint does not say them
        views = views.fill_from(datasets.spec(name).views)
    if not views.size or not (views.mean or views.normalize):
        raise InputError(f"--ckpt {path}: has no size, mean and std of its images, which an export needs")
    ranking = state.get("ranking")
    libraries = ("safetensors", "timm") if encoders.is_timm(trained.name) else ("safetensors",)  # read it back
    return {
        "encoder": trained.name,
        **views.to_dict(),
        "dataset": name,
        "classes": state.get("classes"),
        "ranking": _plain(ranking, state["classes"]) if isinstance(ranking, dict) else None,
        "pretrained": trained.pretrained,
        "options": {key: given[key] for key in list_card_options() if given.get(key) not in (None, [], ())},
        "epoch": state.get("epoch"),
        "published": official and official.name,
        "metrics": find_metrics(sha256, results),
        "licence": license,  # the key of cards written before
        "checkpoint_sha256": sha256,
        "versions": config.versions() | {name: importlib.metadata.version(name) for name in libraries},
        "commit": config.commit(),
    }


def list_card_options() -> list[str]:
    """List the options of trainings that say what the features mean."""
    found = {}
    for objective in (options.add_objective, options.add_cross_entropy):
        p = Parser()
        objective(p)
        options.add_training(p)
        options.add_data(p, datasets.NAMES)
        found |= p.meanings()
    return [name for name, means in found.items() if Means.CARD in means]


def _plain(ranking: dict, classes: list[str]) -> dict:
    """Of each class the similar ones with their similarity; of groups without classes, the levels' names; of values,
    how far they reach.
    """
    if "groups" in ranking:
        return {"levels": list(ranking["levels"])}
    if "values" in ranking:
        return {"values": [float(ranking["values"].min()), float(ranking["values"].max())]}
    rows = zip(classes, ranking["similarity"].tolist(), strict=True)
    others = {
        name: {c: round(x, 6) for c, x in zip(classes, row, strict=True) if x and c != name} for name, row in rows
    }
    return {"similar": others}


def build_head(trained: pretrained.TrainedWeights, card: dict) -> vectors.VectorModel:
    """Build the model of vectors of a checkpoint, with its head and `dim`."""
    weights = {key: x for key, x in trained.content["model"].items() if key.startswith(vectors.PARTS)}
    model = vectors.build_vector_model(trained.name, weights, card)
    model.dim = trained.content["model"]["head.0.weight"].shape[0] if "head.0.weight" in weights else model.encoder.dim
    return model


def main():
    args = get_parser().parse_args()
    for name in (cards.WEIGHTS, cards.CARD):
        if (args.out / name).exists():
            raise InputError(f"--out {args.out}: holds {name}, which is not overwritten; give another folder")
    util.check_folder(args.out, "--out")
    trained = pretrained.read_file(args.ckpt, "--ckpt", args.model)
    card = describe(trained, args.license, args.results)
    encoder = trained.build(False, card["size"]) if trained.model not in vectors.NAMES else build_head(trained, card)
    card = exported.save(args.out, encoder, card)
    print(f"saved {args.out / cards.WEIGHTS}: {card['encoder']}, {card['dim']} dimensions; and {cards.CARD}")
    if args.license is None:
        print("warning: the model card has no license; give --license, so that others know how to use the encoder")
    print(f"read it back:\n{card['how_to_load']}")


if __name__ == "__main__":
    util.run_command(main)
