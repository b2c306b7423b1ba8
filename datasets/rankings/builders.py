"""Makes tables of class similarity: from class names, superclasses, features, and noise."""

import pickle
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import datasets
from datasets import folders, rankings
from datasets.folders import existing_folder
from datasets.rankings import files, pooling, taxonomy
from util import InputError, reason

ENCODER = "sentence-transformers/all-distilroberta-v1"


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizer and model; pooling: modes of pooling.MODES; about: revision and pooling, in words."""

    tokenizer: Any
    model: Any
    pooling: tuple[str, ...]
    about: str


def embed(texts: list[str], encoder: TextEncoder, batch: int = 64) -> torch.Tensor:
    """[n, d] unit vectors: a text's last hidden states, pooled over its tokens (Reimers and Gurevych 2019)."""
    found = []
    for start in range(0, len(texts), batch):
        inputs = encoder.tokenizer(texts[start : start + batch], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder.model(**inputs).last_hidden_state.double()
        found.append(pooling.pool(hidden, inputs["attention_mask"], encoder.pooling))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def text_encoder(name: str) -> TextEncoder:
    """The text encoder of a hub name or local folder, with its own pooling, the mean of the tokens if it names none.

    Raises InputError if it cannot be had, or pools in a way that is not known.
    """
    if name.startswith((".", "/", "~")):  # no name of the hub: ask nobody
        existing_folder(Path(name).expanduser(), f"--model {name}")
    from transformers import AutoModel, AutoTokenizer

    try:
        modes, part = pooling.configured(partial(_model_file, name), f"--model {name}")
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=part)
        model = AutoModel.from_pretrained(name, subfolder=part).eval()
    except InputError:
        raise
    except Exception as error:  # no such folder, no network, a damaged file: transformers has an exception for each
        raise InputError(
            f"--model {name}: cannot be loaded ({reason(error)}); fetch it where there is a network, with "
            f"`hf download {ENCODER} --local-dir FOLDER`, and give --model FOLDER"
        ) from None
    revision = getattr(model.config, "_commit_hash", None) or "local folder"
    words = f"pooling {' and '.join(modes)}" if modes else "pooling mean, since the model names none"
    return TextEncoder(tokenizer, model, modes or ("mean",), f"revision {revision}, {words}")


def _model_file(name: str, file: str) -> Path | None:
    """Where a file of a model lies, fetched from the hub where need be; None where the model has none such."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    import huggingface_hub as hub

    kept = hub.try_to_load_from_cache(name, file)
    if kept is hub._CACHED_NO_EXIST:
        return None
    try:
        return Path(kept or hub.hf_hub_download(name, file))
    except hub.errors.LocalEntryNotFoundError:  # no network: whether there is one cannot be known
        raise
    except hub.errors.EntryNotFoundError:
        return None


def cosines(names: dict[str, str], model_name: str, template: str) -> tuple[np.ndarray, str]:
    """[C, C] cosines of the names' embeddings, rounded to six places, and what they were made of, in words."""
    encoder = text_encoder(model_name)
    table = cosine_matrix(embed([template.format(name) for name in names.values()], encoder).numpy())
    return table, f"cosine of class names; model {model_name}, {encoder.about}, template {template!r}"


def superclass_table(groups: dict[str, list[str]]) -> tuple[np.ndarray, list[str]]:
    """1 on the diagonal, 0.75 inside a superclass, 0 elsewhere, and the sorted classes that it is in."""
    classes = sorted(c for members in groups.values() for c in members)
    return rankings.superclass_table(groups, classes, "superclasses"), classes


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int, centre: bool) -> np.ndarray:
    """[C, d] the mean unit feature of each class; centre: minus the mean of these means.

    Features after a ReLU all point into one corner; about their mean, their cosines spread over [-1, 1].
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    means = torch.stack([unit[labels == c].mean(0) for c in range(classes)])
    return (means - means.mean(0) if centre else means).numpy()


def cosine_matrix(x: np.ndarray) -> np.ndarray:
    """[C, C] cosines of rows, rounded to six places, symmetric, 1 on the diagonal."""
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    table = np.round(x @ x.T, 6).clip(-1, 1)
    table = (table + table.T) / 2
    np.fill_diagonal(table, 1.0)
    return table


def of_names(names: dict[str, str], model: str, template: str) -> tuple[np.ndarray, list[str], str]:
    """Cosines [C, C] of the embeddings of class names, the classes, and what they are, in words.

    names: class -> name; model: hub name or folder; template: text that holds {} once, for the name. Raises InputError.
    """
    if template.count("{}") != 1:
        raise InputError(f"--template {template!r}: must hold {{}} once, for the name")
    nameless = [c for c, name in names.items() if re.fullmatch(r"n\d{8}", name)]
    if nameless:
        raise InputError(
            f"the name of the wnid {nameless[0]} is not known here ({len(nameless)} such); give --names with lines "
            "of wnid,name"
        )
    table, about = cosines(names, model, template)
    return table, list(names), about


def of_noise(source: Path, share: float, seed: int) -> tuple[np.ndarray, list[str], str]:
    """A ranking file with a share of its pairs dealt anew, its classes, and what that is, in words."""
    if not 0 <= share <= 1:
        raise InputError(f"--share {share}: must lie in [0, 1]")
    table, classes = files.read_table(source, "--from")
    noisy, pairs = with_noise(table, share, seed), np.triu_indices(len(table), k=1)
    changed = f"{int((noisy != table)[pairs].sum())} of {len(pairs[0])} pairs have another value"
    return noisy, classes, f"noise {share:g} on {source}, seed {seed}, {changed}"


def with_noise(table: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The table with the values of a random share of its pairs of classes dealt anew among these pairs.

    It stays symmetric with the same values, so that the ranks keep their sizes; share 1 is a random ranking.
    """
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(len(table), k=1)
    chosen = rng.permutation(len(a))[: round(share * len(a))]
    result = table.copy()
    result[a[chosen], b[chosen]] = table[a[chosen], b[chosen]][rng.permutation(len(chosen))]
    result[b[chosen], a[chosen]] = result[a[chosen], b[chosen]]
    return result


# ---- classes and superclasses ----------------------------------------------------------------------------------------


def read_classes(names_file: Path | None, folder: Path | None) -> dict[str, str]:
    """class -> name in words, of --names, --data_folder, or the folder's classes by the names of the file."""
    if not names_file and not folder:
        raise InputError("which classes? give --names, --data_folder, or both")
    if not folder:
        return files.read_names(names_file)
    data = datasets.build("path", folder)
    classes = data.classes
    if datasets.left_out(data):
        print(datasets.left_out(data))
    if not names_file:
        return files.in_words(classes)
    names = files.read_names(names_file)
    foreign = [c for c in names if c not in classes]
    if foreign:
        raise InputError(
            f"--names {names_file}: {foreign[0]} is no class of {folder} ({len(foreign)} in all); its "
            f"classes are {', '.join(classes[:5])}" + (", ..." if len(classes) > 5 else "")
        )
    missing = [c for c in classes if c not in names]
    if missing:
        raise InputError(f"--names {names_file}: lacks the class {missing[0]} ({len(missing)} in all)")
    return {c: names[c] for c in classes}


def of_levels(source: str, flag: str = "--from") -> tuple[np.ndarray, list[str]]:
    """A table of superclasses, as `read_superclasses` has them, or of a taxonomy's levels, and its classes."""
    levels = taxonomy.read(source, flag) if Path(source).is_file() else None
    if levels is None:
        return superclass_table(read_superclasses(source, flag))
    classes = list(levels.groups)
    return taxonomy.similarity(levels, classes, f"{flag} {source}"), classes


def read_superclasses(source: str, flag: str = "--from") -> dict[str, list[str]]:
    """superclass -> classes: a data set's own by its name, a YAML file, a folder superclass/class/, or CIFAR-100's."""
    path = Path(source)
    if not path.exists() and source in files.shipped():
        return files.known_superclasses(source)
    if not path.exists():
        known = ", ".join(files.shipped())
        raise InputError(f"{flag} {source}: no such file or folder, and none of {known}")
    if path.is_file():
        return files.read_superclasses(path, flag)
    for folder in (path, path / "cifar-100-python"):
        if (folder / "meta").is_file() and (folder / "train").is_file():
            return _coarse_labels(folder)
    return tree(path)


def _coarse_labels(folder: Path) -> dict[str, list[str]]:
    """CIFAR-100's own: the coarse label that its training images carry beside the fine one."""
    try:
        meta, train = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", "train"))
        pairs = sorted(set(zip(train["coarse_labels"], train["fine_labels"], strict=True)))
        coarse, fine = meta["coarse_label_names"], meta["fine_label_names"]
        groups = {name: [fine[f] for c, f in pairs if coarse[c] == name] for name in coarse}
    except Exception as error:  # a damaged pickle fails in many ways
        raise InputError(f"--from {folder}: CIFAR-100's files are damaged ({error!r})") from None
    if sorted(c for members in groups.values() for c in members) != sorted(fine):
        raise InputError(f"--from {folder}: its training images do not give every class one coarse label")
    return groups


def tree(folder: Path) -> dict[str, list[str]]:
    """superclass -> classes of a folder superclass/class/images."""
    left_out = folders.LeftOut()
    groups = {name: folders.subfolders(folder / name, left_out) for name in folders.subfolders(folder, left_out)}
    if left_out.text():
        print(left_out.text())
    empty = [name for name, classes in groups.items() if not classes]
    if not groups or empty:
        raise InputError(
            f"--from {folder}: {empty[0] if empty else 'it'} holds no folders; it must be superclass/class/"
        )
    names = [c for classes in groups.values() for c in classes]
    twice = [c for c in names if names.count(c) > 1]
    if twice:
        raise InputError(f"--from {folder}: the class {twice[0]} lies in two superclasses")
    return groups
