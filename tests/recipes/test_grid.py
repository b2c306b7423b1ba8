"""The grid of a recipe: cells with names, titles and commands of their own, named alone or by their method."""

import shlex

import pytest
import yaml
from commands import ROOT, run

import main_supcon
import recipes
from recipes import grid, table

CE = "python main_ce.py --epochs 1 --exp_name ce"
RETRIEVAL = {"command": "python retrieval.py --ckpt $path2chkpt", "columns": {"R@1": "fine.R@1", "mAP": "fine.mAP"}}


def recipe_of(tmp_path, methods, **more):
    content = {"title": "T", "methods": methods, "evaluations": {"retrieval": RETRIEVAL}, **more}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return recipes.read(tmp_path / "r.yaml")


def trained(**more):
    return {"command": CE, **more}


def test_a_method_becomes_one_for_each_combination_of_its_values_in_order(tmp_path):
    axes = {"batch_size": [64, 256], "data_folder": {"at home": "~/d", "b": "'a b'"}}
    recipe = recipe_of(tmp_path, {"ce": trained(title="CE", grid=axes), "other": trained()})
    assert list(recipe["methods"]) == [
        "ce_batch_size64_data_folderat_home", "ce_batch_size64_data_folderb",
        "ce_batch_size256_data_folderat_home", "ce_batch_size256_data_folderb", "other",
    ]  # fmt: skip
    assert recipe["methods"]["other"] == trained()
    cell = recipe["methods"]["ce_batch_size256_data_folderat_home"]
    assert cell["title"] == "CE, batch_size 256, data_folder at home"
    assert cell["cell"] == {"method": "ce", "title": "CE", "axes": {"batch_size": "256", "data_folder": "at home"}}
    assert recipes.commands(recipe, "ce_batch_size256_data_folderat_home", 0, recipes.Scope())["training"] == (
        f"{CE} --batch_size 256 --data_folder ~/d --exp_name ce_batch_size256_data_folderat_home"
    )


def test_seeds_and_scale_are_of_each_cell_and_its_values_stand_in_every_command(tmp_path):
    evaluation = {**RETRIEVAL, "command": "python retrieval.py --size {size} --model {net} --ckpt $path2chkpt"}
    method = trained(grid={"size": [8, 16], "epochs": [40]}, scaled={"epochs": 10}, **{"with": {"net": "resnet8"}})
    recipe = recipe_of(tmp_path, {"ce": method}, evaluations={"retrieval": evaluation})
    assert recipes.commands(recipe, "ce_size16_epochs40", 2, recipes.Scope(3, 0.5)) == {
        "training": f"{CE} --size 16 --epochs 40 --exp_name ce_size16_epochs40 --epochs 20 --seed 2"
        " --exp_name ce_size16_epochs40_seed2_scale0.5",
        "retrieval": "python retrieval.py --size 16 --model resnet8 --ckpt $path2chkpt",
    }


def test_the_recipes_grid_is_for_the_trained_methods_that_have_none_of_their_own(tmp_path):
    methods = {"a": trained(), "b": trained(grid={"size": [8]}), "c": trained(grid={}), "d": {"checkpoint": "d.pth"}}
    recipe = recipe_of(tmp_path, methods, grid={"batch_size": [64, 128]})
    assert list(recipe["methods"]) == ["a_batch_size64", "a_batch_size128", "b_size8", "c", "d"]


def test_an_evaluation_published_figures_and_only_take_a_method_or_a_cell(monkeypatch, capsys, tmp_path):
    recipe = recipe_of(
        tmp_path,
        {"a": trained(grid={"size": [8, 16]}), "b": trained(grid={"size": [8, 16]})},
        evaluations={"retrieval": {**RETRIEVAL, "for": ["a", "b_size16"]}},
        published={"source": "s", "a_size8": {"mAP": 1}, "a": {"mAP": 2}, "b_size8": {"mAP": 3}},
    )
    has = [name for name in recipe["methods"] if "retrieval" in recipes.commands(recipe, name, 0, recipes.Scope())]
    assert has == ["a_size8", "a_size16", "b_size16"]
    of_a = {"a_size8": {"mAP": "1"}, "a_size16": {"mAP": "2"}}
    assert recipe["published"] == {"source": "s", **of_a, "b_size8": {"mAP": "3"}}
    for only, want in (("a", [8, 16]), ("a_size16 a", [16, 8]), ("a_size8", [8])):
        run(monkeypatch, tmp_path, f"r.yaml --dry-run --only {only}", "reproduce")
        out = capsys.readouterr().out
        assert [line[2:] for line in out.splitlines() if line[:1] == "#"] == [f"a, size {s}, seed 0" for s in want]


BASE = ("scl", "rince")


@pytest.mark.parametrize(
    ("baseline", "want"),
    [
        ("scl", {"rince_size8": "scl_size8", "rince_size16": "scl_size16", "alone": None, "given": None}),
        ("scl_size8", dict.fromkeys(["scl_size16", "rince_size8", "rince_size16", "alone", "given"], "scl_size8")),
        ("alone", dict.fromkeys(["scl_size8", "scl_size16", "rince_size8", "rince_size16", "given"], "alone")),
    ],
)
def test_a_baseline_with_a_grid_is_compared_cell_by_cell_and_a_cell_with_all(tmp_path, baseline, want):
    methods = {name: trained(grid={"size": [8, 16]}, title=name.upper()) for name in BASE}
    methods |= {"alone": trained(), "given": {"checkpoint": "a.pth"}}
    recipe = recipe_of(tmp_path, methods, baseline=baseline)
    assert {name: grid.find_baseline(recipe, name) for name in recipe["methods"]} == {
        **dict.fromkeys(recipe["methods"]), **want,
    }  # fmt: skip


def test_the_table_of_differences_says_which_cells_are_compared(tmp_path):
    methods = {name: trained(grid={"size": [8, 16]}, title=name.upper()) for name in BASE}
    recipe = recipe_of(tmp_path, methods, baseline="scl")
    figures = dict.fromkeys(recipe["methods"], (50.0, 52.0)) | {"rince_size16": (53.0, 55.2)}
    found = {n: [{"seed": s, "values": {"R@1": x}} for s, x in enumerate(of)] for n, of in figures.items()}
    text = table.markdown({"recipe": recipe, "seeds": 2, "scale": 1.0, "results": found, "failures": []})
    assert "Difference to SCL of the same size, paired by seed" in text
    assert "| RINCE, size 8 | +0.0 [0.0, 0.0] | - |\n| RINCE, size 16 | **+3.1 [1.8, 4.4]** | - |\n" in text


def test_thresholds_and_noise_are_the_documented_command_but_for_their_ranking_and_name():
    recipe, documented = (recipes.read(ROOT / f"recipes/{name}.yaml") for name in ("noise", "imagenet100"))
    command = recipes.commands(documented, "rince_out_in", 0, recipes.Scope())["training"]
    found = [recipes.commands(recipe, name, 0, recipes.Scope())["training"] for name in recipe["methods"]]
    assert found[0] == command
    parser = main_supcon.get_parser()
    documented, *found = (vars(parser.parse_args(shlex.split(text)[2:])) for text in (command, *found[1:]))
    changes = [{key: of[key] for key in of if of[key] != documented[key]} for of in found]
    assert [change.pop("exp_name").startswith("rince_imagenet100_") for change in changes] == 6 * [True]
    made = [recipes.option(entry["command"], "--out") for entry in recipe["before"]]
    default = {"similarity_ranking_imagenet": parser.get_default("similarity_ranking_imagenet")}
    assert changes == [{"thresholds": [t]} for t in (0.3, 0.5, 0.6)] + [{"ranking": file, **default} for file in made]


def test_the_grid_in_the_docs_has_the_cells_that_they_say(monkeypatch, capsys, tmp_path):
    page = (ROOT / "docs/recipes.md").read_text().partition("## Try several values of an option\n")[2]
    recipe = recipe_of(tmp_path, yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["methods"])
    first, *others = recipe["methods"]
    assert [name.partition("_")[0] for name in others] == 5 * ["rince"] + 2 * ["noisy"]
    training = recipes.commands(recipe, first, 0, recipes.Scope())["training"]
    for said in (first, recipe["methods"][first]["title"], training.partition("--exp_name rince ")[2]):
        assert said in page.replace("\n", " ")
    run(monkeypatch, tmp_path, "r.yaml --dry-run", "reproduce")  # every option is the script's own
    assert capsys.readouterr().out.count("python main_supcon.py") == 8


def test_means_of_columns_come_last_and_only_where_all_are_there(tmp_path):
    recipe = recipe_of(tmp_path, {"ce": trained()}, means={"both": ["R@1", "mAP"]})
    assert recipes.columns(recipe) == ["R@1", "mAP", "both"]
    assert recipes.add_means(recipe, {"R@1": 10.0, "mAP": 40.0})["both"] == 25.0
    assert recipes.add_means(recipe, {"R@1": 10.0}) == {"R@1": 10.0}
