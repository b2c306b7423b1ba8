"""What the pictures of trained encoders have in common: classes by superclass, several encoders side by side."""

import datasets
import util
from datasets import rankings
from datasets.rankings import files
from engine import frozen, options
from util import InputError


def comparison_parser(description: str):
    """The options of a picture of several checkpoints: data, encoders, their names, and which classes are alike."""
    p = options.parser(description)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p, several=True)
    g = p.add_argument_group("comparison")
    g.add_argument("--names", nargs="+", metavar="NAME", help="one a checkpoint (None: their runs' names)")
    superclasses = "YAML of superclasses (None: the data set's own)"
    g.add_argument("--superclasses", type=util.user_text, metavar="FILE", help=superclasses)
    return p


def superclasses_of(file: str | None, dataset: str, classes: list[str]) -> dict[str, list[str]] | None:
    """superclass -> those of the classes in it, of --superclasses or the data set's own; None without."""
    groups, source = files.chosen_superclasses(file, datasets.spec(dataset).superclasses)
    if groups is None:
        return None
    if file:
        rankings.superclass_labels(groups, classes, source)
    return {
        g: kept
        for g, members in groups.items()
        if (kept := [c for c in util.spelt_as(members, classes) if c in classes])
    }


def compared_superclasses(file: str | None, dataset: str, classes: list[str]) -> dict[str, list[str]]:
    """Likewise, where there must be some that tell classes apart. Raises InputError."""
    groups = superclasses_of(file, dataset, classes)
    if groups is None:
        raise InputError(f"--dataset {dataset}: has no superclasses of its own; give --superclasses FILE.yaml")
    source = f"--superclasses {file}" if file else f"--dataset {dataset}"
    if len(groups) < 2:
        raise InputError(f"{source}: all classes are of one superclass; there is nothing to compare")
    if max(map(len, groups.values())) < 2:
        raise InputError(f"{source}: no two classes are of one superclass; there is nothing to compare")
    return groups


def load(wanted: list[frozen.Wanted], names: list[str] | None, train: datasets.ImageData) -> dict[str, frozen.Frozen]:
    """name -> encoder, in the order given. names: of --names; None: those of the runs.

    Raises InputError where names and checkpoints do not go together, or the checkpoints are of different classes, as
    far as they say.
    """
    if names and len(names) != len(wanted):
        raise InputError(f"--names: {len(names)} for {len(wanted)} checkpoints of --ckpt; give one each")
    nets = [frozen.load(each, train) for each in wanted]
    chosen = names or [net.name for net in nets]
    twice = next((name for name in chosen if chosen.count(name) > 1), None)
    if twice:
        raise InputError(f"--{'names' if names else 'ckpt'}: two are called {twice}; give --names that differ")
    known = [net.record for net in nets if net.record["classes"] and not net.record["instance_ranks"]]
    for record in known[1:]:
        _check_same_classes(known[0], record)
    return dict(zip(chosen, nets, strict=True))


def _check_same_classes(first: dict, other: dict) -> None:
    others = util.spelt_as(other["classes"], first["classes"])
    lacking = [c for c in first["classes"] if c not in others]
    more = [c for c in others if c not in first["classes"]]
    if lacking or more:
        which = f"without {lacking[0]}" if lacking else f"with {more[0]}"
        raise InputError(f"--ckpt {other['path']}: was trained on other classes than {first['path']} ({which})")


def features(nets: dict, data: datasets.ImageData, title: str, loading, cache) -> dict:
    """name -> [n, d] `frozen.features` of the images. Raises InputError where all are 0."""
    found = {name: frozen.features(net, data, f"{title}, {name}", loading, cache)[0] for name, net in nets.items()}
    for name, x in found.items():
        if not x.any():
            raise InputError(f"--ckpt {nets[name].record['path']}: all features are 0; there is nothing to draw")
    return found
