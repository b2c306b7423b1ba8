"""What is done of a recipe: a run of the same command, a record of the same evaluation of the same checkpoint."""

import json
import shlex
from pathlib import Path

import yaml

import util
from recipes import option


def same(words: list[str], command: str) -> bool:
    """Whether a script was called so, wherever it lies, resumed and overwriting or not."""
    words = [Path(words[0]).name, *words[1:]]
    while "--resume" in words:
        at = words.index("--resume")
        words = words[:at] + words[at + 2 :]
    return [word for word in words if word != "--overwrite"] == shlex.split(command)[1:]


def find_run(folders, command: str) -> Path | None:
    """The folder of a run of this command, whole or cut off."""
    for path in (folder / "config.yaml" for folder in folders):
        if path.is_file() and same(yaml.safe_load(path.read_text())["about"]["command"], command):
            return path.parent
    return None


def epochs_left(folder: Path) -> int:
    """Epochs that a run still has to train."""
    epochs = yaml.safe_load((folder / "config.yaml").read_text())["epochs"]
    done = [record["epoch"] for record in util.read_json_lines(folder / "log.jsonl") if "epoch" in record]
    return epochs - (done[-1] if done and (folder / "last.pth").is_file() else 0)


def find_record(command: str, sha256: str) -> dict | None:
    """The record of an evaluation by this command of this checkpoint, with the file that holds it; None without."""
    folder = Path(option(command, "--save_folder", "./save")) / "results"
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("checkpoint", {}).get("sha256") == sha256 and same(record["command"], command):
            return {**record, "file": str(path)}
    return None
