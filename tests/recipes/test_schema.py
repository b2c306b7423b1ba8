"""What a recipe must be: each fault is one line that names file and key."""

import copy

import pytest
import yaml
from commands import error_of, run

import recipes
from util import InputError

CE, LOOK_UP = "python main_ce.py --exp_name a", "python retrieval.py --ckpt $path2chkpt"
GIVEN = {"given": {"checkpoint": "a.pth"}}
RECIPE = {
    "title": "T",
    "methods": {"a": {"command": CE}, "b": {"command": f"{CE} --exp_name b"}, **GIVEN},
    "evaluations": {"e": {"command": LOOK_UP, "columns": {"R@1": "fine.R@1", "mAP": "fine.mAP"}}},
}
GRID, EPOCHS = ({"command": CE, "grid": axes} for axes in ({"size": [8]}, {"epochs": [1]}))
CALLED = "two methods have the name a_size8"


def changed(key, value):
    """RECIPE with another value there, key by key from the top; `key` may be ""."""
    recipe = copy.deepcopy(RECIPE)
    *path, last = key.split("/")
    place = recipe
    for part in path:
        place = place.setdefault(part, {})
    place[last] = value
    return recipe if key else value


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("", "nothing", "r.yaml must be a mapping, not 'nothing'"),
        ("title", None, "r.yaml: title is missing"),
        ("titel", "t", "r.yaml: unknown key titel; did you mean title?"),
        ("jobs", "two", "jobs must be a whole number"),
        # methods
        ("methods", [CE], "methods must be a mapping"),
        ("methods/a", None, "method a must be a mapping, not None"),
        ("methods/a/comand", CE, "method a: unknown key comand; did you mean command?"),
        ("methods/a", {"title": "t"}, "method a: command is missing, or checkpoint, a file that needs no training"),
        ("methods/a/checkpoint", "a.pth", "method a: command and checkpoint: give one of the two"),
        ("methods/a/command", "make", "method a: command must be a command, such as `python main_supcon"),
        ("methods/a/command", "python 'x", "method a: command must be a command"),
        ("methods/a/command", "python main_ce.py", "method a: its command must name the run"),
        ("methods/a/command", f"{CE} --seed=1", "method a: leave --seed out of the command"),
        ("methods/a/command", f"{CE} --learning_rat 1", "did you mean --learning_rate?"),
        ("methods/a/command", "python main_c.py --exp_name a", "training: the script main_c.py does not exist"),
        ("methods/a", {"command": f"{CE} --mod 1 {{x}}", "with": {"x": "--none"}}, "--mod 1 --none"),
        ("methods/a/scaled", {"epochs": "ten"}, "a: scaled: epochs must be a number"),
        ("methods/a/seeds", 0, "method a: seeds must be at least 1"),
        ("methods/given/seeds", 1, "method given: seeds has no use without"),
        ("methods/source", {"command": CE}, "method source: give it another name; source has a meaning in published"),
        ("methods/a_", {"command": CE}, "method a: two have this name, apart from spaces and signs; rename one"),
        ("report", {"for": ["a"]}, "r.yaml: report: command is missing"),
        ("report", {"command": "python report.py", "for": ["aa"]}, "report: for: unknown method aa; did you mean"),
        ("report", {"command": "python report.py --max_item 9"}, "r.yaml: report: report.py: unrecognized arguments"),
        # evaluations
        ("evaluations/e/for", "a", "evaluation e: for must be a list"),
        ("evaluations/e/for", ["aa"], "evaluation e: for: unknown method aa; did you mean a?"),
        ("evaluations/e", {"command": LOOK_UP}, "evaluation e: columns is missing"),
        ("evaluations/e/columns", {"R": [1]}, "columns: R must be text"),
        ("evaluations/e/columns", {"seconds": "x"}, "column seconds exists"),
        ("evaluations/f", {**RECIPE["evaluations"]["e"], "for": ["a"]}, "evaluation f: column R@1 exists"),
        ("evaluations/e/command", "python retrieval.py --ckpt $x", "$x is unknown; a run's"),
        ("evaluations/e/command", "python retrieval.py", "required: --ckpt"),
        ("evaluations/e/command", "python retrieval.py --size big", "argument --size"),
        ("evaluations/training", RECIPE["evaluations"]["e"], "evaluation training: give it another name"),
        ("evaluations/e_", RECIPE["evaluations"]["e"] | {"columns": {"R": "x"}}, "evaluation e: two have this name"),
        # before, after, published, baseline, means
        ("after", [[3]], "after 1 must be a mapping, not ['3']"),
        ("published", {"a": {"R@1": 1}}, "published: source is missing"),
        ("published", {"source": "s", "aa": {"R@1": 1}}, "published: unknown method aa; did you mean a?"),
        ("published", {"source": "s", "a": {"R@2": 1}}, "published a: no column R@2; did you mean R@1?"),
        ("baseline", "aa", "r.yaml: baseline: unknown method aa; did you mean a?"),
        ("baseline", "given", "r.yaml: baseline: given is a given checkpoint, which has no seeds to pair"),
        ("correction", "Holm", "r.yaml: correction Holm: must be Holm, of a recipe with a baseline"),
        ("", RECIPE | {"baseline": "a", "correction": "BH"}, "r.yaml: correction BH: must be Holm, of a recipe with a"),
        ("means", {"both": ["R@1", "map"]}, "means: both: no column map"),
        ("means", {"mAP": ["R@1"]}, "means: column mAP exists"),
        # a grid
        ("methods/a/grid/size", [], "method a: grid: size must be a list of values, or a mapping `label: value`"),
        ("methods/a/grid/size", 8, "method a: grid: size must be a list of values"),
        ("methods/a/grid/size", {"small": None}, "method a: grid: size: small must be text, not None"),
        ("methods/a/grid/size", ["'8"], 'grid: size: "\'8" must be a value'),
        ("methods/a/grid/--size", [8], "grid: --size: write the option without dashes, size"),
        ("methods/a/grid/seed", [0, 1], "method a: grid: seed cannot be an axis: --seeds sets the seeds"),
        ("methods/a/grid/exp_name", ["b"], "method a: grid: exp_name cannot be an axis: a cell's name has its values"),
        ("methods/a/grid/size", [8, 8], "grid: size: two cells have the name size8; give other labels"),
        ("methods/a/grid/size", {"8 %": 8, "8": 9}, "grid: size: two cells have the name size8"),
        ("methods", {"a": GRID, "a_size8": {"command": CE}}, CALLED),
        ("methods", {"a": GRID | {"grid": {"size": [8], "epochs": [1]}}, "a_size8": EPOCHS}, f"{CALLED}_epochs1"),
        ("", RECIPE | {"methods": GIVEN, "grid": {"size": [8]}}, "r.yaml: grid: it needs a method with a command"),
        ("methods/given/grid", {"size": [8]}, "method given: grid: a given checkpoint has no options"),
        ("methods/a", {**GRID, "with": {"size": "3"}}, "grid: size: is under `with`, too"),
        ("methods/a", {**GRID, "grid": {"epochs": ["x"]}, "scaled": {"epochs": 3}}, "epochs, which is scaled must be"),
        ("methods/a/grid/batch_sise", [8], "a_batch_sise8: training: main_ce.py: unrecognized arguments: --batch_"),
        ("methods/a/grid/batch_size", [64, "many"], "a_batch_sizemany: training: main_ce.py: argument --batch_size"),
    ],
)
def test_a_wrong_recipe_is_one_line(monkeypatch, capsys, tmp_path, key, value, reason):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(changed(key, value), sort_keys=False))
    assert reason in error_of(monkeypatch, capsys, tmp_path, "r.yaml --dry-run --seeds 2", "reproduce")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("none.yaml", "none.yaml: no such file"),
        ("r.yaml --seeds 0", "--seeds 0"),
        ("r.yaml --scale 0", "--scale 0"),
        ("r.yaml --jobs -1", "--jobs -1"),
        ("r.yaml --only a_size9", "r.yaml: --only: unknown method a_size9; did you mean a_size8?"),
    ],
)
def test_a_wrong_option_is_one_line(monkeypatch, capsys, tmp_path, words, reason):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(changed("methods/a", GRID)))
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, "reproduce")


def test_what_a_recipe_may_leave_out_may_be_empty_too(monkeypatch, capsys, tmp_path):
    content = RECIPE | dict.fromkeys(("before", "about", "jobs", "published")) | {"after": ["python x.py"]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    run(monkeypatch, tmp_path, "r.yaml --dry-run", "reproduce")
    assert capsys.readouterr().out.endswith("\npython x.py\n")


def test_a_page_of_a_table_compares_its_methods_with_their_checkpoints_and_titles(tmp_path):
    recipe = changed("report", {"command": "python report.py --out page.html", "for": ["b", "given"]})
    recipe["methods"]["b"]["title"] = "two words"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    (after,) = recipes.read(tmp_path / "r.yaml")["after"]
    own = "--ckpt save/SupCon/digits_models/b a.pth --names 'two words' given"
    assert after == {"command": f"python report.py --out page.html {own} --table $table"}
    recipe["report"].pop("for")
    recipe["methods"] |= {f"m{i}": {"command": f"{CE} --exp_name m{i}"} for i in range(4)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="report: for: 7 methods; name at most 6"):
        recipes.read(tmp_path / "r.yaml")
