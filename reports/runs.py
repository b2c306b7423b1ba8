"""What each encoder is, in words without paths, and the log of its training."""

import shlex
from pathlib import Path
from typing import Any

from engine.cli import config
from engine.encoder import pretrained
from engine.encoder.trained_encoder import FrozenEncoder
from engine.run import checkpoint, run_log

# of a checkpoint's options, those that say where and how fast it was made, and not what it is
UNSAID = {
    "exp_name", "save_folder", "save_freq", "save_minutes", "keep_checkpoints", "print_freq", "max_hours", "resume",
    "overwrite", "num_workers", "nproc_per_node", "world_size", "rank", "dist_url", "dist_backend", "timeout_minutes",
    "knn_freq", "config", "dataset", "data_folder", "features", "features_val",
}  # fmt: skip
SAID = ("ranking", "positives", "seed", "epochs", "model")  # the rows of every encoder, with its loss and data


def hide_path(text: str) -> str:
    """Return a word of a command or an option; of a path that begins at the root or climbs up, its last part alone."""
    name, equals, value = text.rpartition("=")
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        value = path.name
    return f"{name}{equals}{value}"


def describe_command(words: list[str]) -> str:
    """Write a command line without the folders of the machine."""
    return shlex.join(["python", Path(words[0]).name, *map(hide_path, words[1:])])


def _in_words(value: Any) -> str:
    if value is None or value == []:
        return "-"
    return " ".join(map(_in_words, value)) if isinstance(value, list | tuple) else hide_path(str(value))


def _name_data(options: dict) -> str:
    """Name the data set that an encoder was trained on; of a folder, or of files of features, the folder's name."""
    dataset, files = options.get("dataset"), options.get("features") or ()
    if dataset == "path":
        return Path(options.get("data_folder", "")).name
    return " ".join("/".join(Path(file).parts[-2:]) for file in files) or _in_words(dataset)


def describe_encoders(nets: dict[str, FrozenEncoder]) -> dict[str, list[str]]:
    """Make what is said of encoders, row by row, a cell each: loss and data first, then the options that differ."""
    contents = [pretrained.read_file(net.record["path"], "--ckpt").content if net.record["model"] else {}
                for net in nets.values()]  # fmt: skip
    given = [checkpoint.trained_options(content) for content in contents]
    dims = [str(net.encoder.dim) for net in nets.values()]
    losses = [net.record["objective"] or ("none: raw features" if net.record["model"] is None else "-")
              for net in nets.values()]  # fmt: skip
    rows = {"loss": losses, "data": [_name_data(options) for options in given]}
    for name in SAID:
        rows[name] = [_in_words(options.get(name)) for options in given]
    rows["epoch"] = [_in_words(content.get("epoch")) for content in contents]
    rows["dimensions"], rows["layer"] = dims, [net.layer for net in nets.values()]
    rows["versions"] = [" ".join(f"{k} {v}" for k, v in (c.get("versions") or {}).items()) or "-" for c in contents]
    trained = [options for options in given if options]
    shared = [key for key in (trained[0] if trained else ()) if all(key in options for options in trained)]
    for key in shared:
        values = [_in_words(options[key]) if options else "-" for options in given]
        if key not in UNSAID and key not in rows and len({v for v, o in zip(values, given, strict=True) if o}) > 1:
            rows[key] = values
    return {name: cells for name, cells in rows.items() if {*cells} != {"-"}}


def describe_page() -> dict[str, str]:
    """Return versions and commit of the code that a page is made with."""
    return {**config.versions(), "commit": (config.commit() or "unknown")[:12]}


def read_epochs(path: Path) -> list[dict]:
    """Read the epochs of a log.jsonl, in order; of an epoch that was trained twice, the last. None: an empty list."""
    try:
        records = run_log.read_json_lines(path)
    except (OSError, UnicodeDecodeError):  # a log that cannot be read is no reason to write no page
        return []
    epochs = {record["epoch"]: record for record in records if isinstance(record, dict) and "epoch" in record}
    return [epochs[epoch] for epoch in sorted(epochs)]


def read_logs(nets: dict[str, FrozenEncoder]) -> dict[str, list[dict]]:
    """Read the epochs of the encoders whose folder holds the log of their training."""
    logs = {name: Path(net.record["path"]).parent / "log.jsonl" for name, net in nets.items() if net.record["model"]}
    return {name: epochs for name, path in logs.items() if (epochs := read_epochs(path))}
