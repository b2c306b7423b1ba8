"""What pictures of trained encoders share: command line, encoders side by side, similarities, names on maps."""

import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import datasets
import figures
import util
from datasets import rankings
from engine import factory
from engine.cli import config, options
from engine.encoder import trained_encoder
from engine.processes import distributed
from util import InputError

MARKERS = "o^sDvP*X"
# Paul Tol's muted scheme: told apart by color-blind readers
COLORS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#AA4499", "#44AA99", "#661100", "#555555")


def parser(description: str, out: str, kind: str = "picture"):
    """Make the options of a picture, or a page, of encoders: data, checkpoints, names, and which classes are alike."""
    p = options.parser(description)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p, several=True)
    g = p.add_argument_group("comparison")
    g.add_argument("--names", nargs="+", metavar="NAME", help="name of each checkpoint (default: of its run)")
    superclasses = "YAML file of superclasses (default: the data set's own)"
    g.add_argument("--superclasses", type=util.user_text, metavar="FILE", help=superclasses)
    g = p.add_argument_group(kind)
    g.add_argument("--out", type=util.user_path, metavar="FILE", default=Path(out), help="file to write")
    return p


class Comparison:
    """What a command line asks for: images, their classes by superclass, encoders, and the features of these."""

    def __init__(self, parser, check=figures.check_picture):
        """check(path, flag): raises InputError where --out cannot be written."""
        self.args = args = config.parse(parser, options.SMALL_DATA)
        check(args.out, "--out")
        self.train, self.test = datasets.build_pair(args.dataset, factory.find_data(args), factory.select_images(args))
        distributed.say((self.train.left_out + self.test.left_out).describe())
        self.data = datasets.title(args.dataset, factory.find_data(args))  # what titles call it
        self.superclasses = find_superclasses(args.superclasses, self.train.superclasses, self.train.classes)

    def check_superclasses(self) -> None:
        """Raise InputError unless there are superclasses that tell classes apart."""
        args, groups = self.args, self.superclasses
        if groups is None:
            raise InputError(f"--dataset {args.dataset}: has no superclasses; give --superclasses FILE.yaml")
        few = "all classes" if len(groups) < 2 else "no two classes" if max(map(len, groups.values())) < 2 else None
        if few:
            source = f"--superclasses {args.superclasses}" if args.superclasses else f"--dataset {args.dataset}"
            raise InputError(f"{source}: {few} are of one superclass; there is nothing to compare")

    @cached_property
    def encoders(self) -> dict[str, trained_encoder.FrozenEncoder]:
        """name -> encoder, in the order given; InputError where names do not fit, or classes that they know differ."""
        names, ckpts = self.args.names, self.args.ckpt or [options.RAW]
        if names and len(names) != len(ckpts):
            raise InputError(f"--names: {len(names)} for {len(ckpts)} checkpoints of --ckpt; give one each")
        nets = [factory.load_layer(self.args, self.train, ckpt) for ckpt in ckpts]
        chosen = names or [net.name for net in nets]
        if (again := util.twice(chosen)) is not None:
            raise InputError(f"--{'names' if names else 'ckpt'}: two are called {again}; give --names that differ")
        records = [net.record for net in nets if net.record["classes"] and not net.record["instance_ranks"]]
        for record in records[1:]:
            _check_same_classes(records[0], record)
        return dict(zip(chosen, nets, strict=True))

    def features(self, data: datasets.ImageData, title: str) -> dict[str, torch.Tensor]:
        """name -> [n, d] `trained_encoder.extract_features` of the images. Raises InputError where all are 0."""
        loading, cache = factory.loading(self.args, torch.device("cpu")), factory.features_cache(self.args)
        found = {}
        for name, net in self.encoders.items():
            found[name] = trained_encoder.extract_features(net, data, f"{title}, {name}", loading, cache)
            if not found[name].any():
                raise InputError(f"--ckpt {net.record['path']}: all features are 0; there is nothing to draw")
        return found


def find_superclasses(file: str | None, known, classes: list[str]) -> dict[str, list[str]] | None:
    """superclass -> those of the classes in it, of --superclasses or the data set's own, `known`; None without."""
    groups, source = rankings.choose_superclasses(file, known)
    if groups is None:
        return None
    if file:
        rankings.number_superclasses(groups, classes, source)
    found = {g: [c for c in util.match_spelling(members, classes) if c in classes] for g, members in groups.items()}
    return {g: members for g, members in found.items() if members}


def _check_same_classes(first: dict, other: dict) -> None:
    others = util.match_spelling(other["classes"], first["classes"])
    lacking = [c for c in first["classes"] if c not in others]
    more = [c for c in others if c not in first["classes"]]
    if lacking or more:
        which = f"without {lacking[0]}" if lacking else f"with {more[0]}"
        raise InputError(f"--ckpt {other['path']}: was trained on other classes than {first['path']} ({which})")


def group_numbers(groups: dict[str, list[str]] | None, classes: list[str]) -> list[int]:
    """Return the number of each class's superclass, all 0 without superclasses."""
    return rankings.number_superclasses(groups, classes, "superclasses").tolist() if groups else [0] * len(classes)


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """[C, d] mean of each class's features, these brought to length 1 before."""
    z = F.normalize(features, dim=1)
    return torch.stack([z[labels == c].mean(0) for c in range(classes)])


def class_cosines(features: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    """[C, C] mean cosine between the images of two classes (of an image with itself included); NaN without images."""
    means = class_means(features, labels, classes)
    return (means @ means.T).numpy()


def pair_kinds(labels: np.ndarray, others: np.ndarray, group_of: list[int]) -> np.ndarray:
    """Of two images, by their labels, each against each as NumPy broadcasts: 0 one class, 1 one group, 2 neither."""
    group = np.array(group_of)
    return np.where(labels == others, 0, np.where(group[labels] == group[others], 1, 2))


def mds(z: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, 2]; without a random start: the same map from the same features."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import MDS

    start = PCA(2, random_state=0).fit_transform(z)
    with warnings.catch_warnings():  # scikit-learn 1.9 warns of the default of `init` although one is given
        warnings.simplefilter("ignore", FutureWarning)
        return MDS(n_init=1, normalized_stress="auto", random_state=0).fit_transform(z, init=start)


def write_names(ax, places: np.ndarray, names: list[str], colors: list, em: float, size: float) -> None:
    """Write names about places [n, 2], moved apart and outlined in white, to be read on dots of their color.

    em: height of the letters on the axes; size: the same in points.
    """
    from matplotlib import patheffects

    places = spread_apart(places, 0.65 * em * np.array([len(name) for name in names]), 1.1 * em)
    outline = [patheffects.withStroke(linewidth=2, foreground="white")]
    how = dict(ha="center", va="center", path_effects=outline, zorder=3, fontsize=size)
    for (x, y), name, color in zip(places, names, colors, strict=True):
        ax.text(x, y, name, color=color, **how)


def spread_apart(places: np.ndarray, widths: np.ndarray, height: float, rounds: int = 200) -> np.ndarray:
    """[n, 2] middles of texts, moved up and down until no two of these widths and this height overlap, or nearly so."""
    places = places.astype(float)
    for _ in range(rounds):
        apart = places[:, None] - places
        close = np.abs(apart[..., 0]) < (widths[:, None] + widths) / 2
        overlap = np.clip(height - np.abs(apart[..., 1]), 0, None) * close * ~np.eye(len(places), dtype=bool)
        if not overlap.any():
            break
        up = np.where(apart[..., 1] == 0, np.arange(len(places))[:, None] > np.arange(len(places)), apart[..., 1] > 0)
        places[:, 1] += (np.where(up, 1, -1) * overlap).sum(1) / 2
    return places
