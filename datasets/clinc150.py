"""CLINC150 (Larson et al. 2019): texts of 150 intents in ten domains, and texts of none, as tables of texts.

Its authors publish two JSON files. `data_full.json` maps a split to its pairs of text and intent; `domains.json` maps a
domain to its intents.
"""

import json
import urllib.request
from pathlib import Path

import util
from datasets import text_files
from util import InputError

URL = "https://raw.githubusercontent.com/clinc/oos-eval/master/data/"
DATA, DOMAINS = "data_full.json", "domains.json"
# table -> split of the authors; oos_train and oos_val, for methods that train on out-of-scope texts, are left out
SPLITS = {"train": "train", "val": "val", "test": "test", "out_of_scope": "oos_test"}
OUTLIERS = "out_of_scope"
TIMEOUT = 60  # seconds that a server may stay silent


def prepare(source: Path | None, out: Path) -> dict[str, int]:
    """Write the tables of SPLITS into out/clinc150, and return how many texts each has.

    source: folder of the two files; None: they are downloaded. Raises InputError before anything is overwritten.
    """
    data, domains = ((_read(source / name) if source else _download(name)) for name in (DATA, DOMAINS))
    tables = make_tables(data, domains, f"--from {source}" if source else URL)
    contents = {out / "clinc150" / f"{name}.csv": write_table(rows) for name, rows in tables.items()}
    for path, content in contents.items():
        if path.exists() and path.read_bytes() != content:
            raise InputError(f"--out {out}: {path} exists and differs; remove it first")
    for path, content in contents.items():
        if not path.exists():
            util.write_file(path, content)
    return {name: len(rows) for name, rows in tables.items()}


def _read(path: Path):
    return _parse(text_files.read_text(path, f"--from {path}"), f"--from {path}")


def _download(name: str):
    try:
        with urllib.request.urlopen(URL + name, timeout=TIMEOUT) as answer:
            content = answer.read().decode()
    except (OSError, ValueError) as error:  # no network; a page that is no text
        hint = f"put {DATA} and {DOMAINS} of {URL} into a folder, and give --from FOLDER"
        raise InputError(f"{URL}{name}: the download failed ({util.reason(error)}); {hint}") from None
    return _parse(content, URL + name)


def _parse(text: str, source: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{source}: not readable as JSON ({util.reason(error)}); download it again") from None


def make_tables(data, domains, source: str) -> dict[str, list[tuple[str, ...]]]:
    """Rows (text, label, coarse) of each table of SPLITS; of out-of-scope texts (text, label).

    data, domains: content of the two files. Raises InputError, beginning with `source`, where a file has another form.
    """
    try:
        domain_of = {str(intent): str(domain) for domain, intents in domains.items() for intent in intents}
        texts = {name: [(str(text).strip(), str(intent)) for text, intent in data[key]] for name, key in SPLITS.items()}
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        forms = f"{DATA} must hold lists of [text, intent] for {', '.join(SPLITS.values())}; {DOMAINS} lists of intents"
        raise InputError(f"{source}: {forms} ({type(error).__name__}: {util.reason(error)})") from None
    tables: dict[str, list[tuple[str, ...]]] = {}
    for name, pairs in texts.items():
        if empty := sum(not text for text, _ in pairs):
            raise InputError(f"{source}: {DATA}: {empty} texts of {SPLITS[name]} are empty")
        if name == OUTLIERS:
            tables[name] = [(text, OUTLIERS) for text, _ in pairs]
            continue
        lacking = next((intent for _, intent in pairs if intent not in domain_of), None)
        if lacking is not None:
            raise InputError(f"{source}: {DOMAINS}: names no domain of the intent {lacking}, which {DATA} has")
        tables[name] = [(text, intent, domain_of[intent]) for text, intent in pairs]
    return tables


def write_table(rows: list[tuple[str, ...]]) -> bytes:
    """Return a CSV in UTF-8 with the columns text, label and, where rows have it, coarse."""
    return text_files.format_csv([("text", "label", "coarse")[: len(rows[0])] if rows else ("text", "label"), *rows])
