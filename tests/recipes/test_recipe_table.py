"""The table of a recipe: differences to a baseline with their intervals, JSON and Markdown that say the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from commands import ROOT, error_of, run

import recipes
import reproduce
from recipes import running, table
from recipes.completed import figures
from recipes.running import Finder


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_a_paired_difference_is_the_references_and_nothing_that_a_seed_adds_to_both_changes_it(n, seed):
    a, b = np.random.default_rng([seed, n]).normal(90, 3, (2, n))
    mean, half = reference.paired_difference(a.tolist(), b.tolist())
    of_seed = 10.0 * np.arange(n) ** 2
    for x, y, want in ((a, b, mean), (b, a, -mean), (a + of_seed, b + of_seed, mean)):
        found = table.difference(dict(enumerate(x)), dict(enumerate(y)))
        assert (found["mean"], found["half"]) == pytest.approx((want, half), rel=2e-4)
        assert found["p"] == pytest.approx(reference.paired_p(a.tolist(), b.tolist()), abs=1e-6)
        assert (found["p"] < 0.05) == (abs(found["mean"]) > found["half"])


@pytest.mark.parametrize("seed", range(5))
def test_holms_adjusted_p_is_below_a_level_where_his_procedure_rejects_at_it(seed):
    p = (np.random.default_rng(seed).random(6) ** 3).round(2)
    found = table.holm({str(i): x for i, x in enumerate(p)})
    for level in (0.013, 0.051, 0.207, 0.493):
        assert sorted(int(i) for i, x in found.items() if x <= level) == reference.holm_rejects(p.tolist(), level)
    assert all(p[int(i)] <= x <= 1 for i, x in found.items())


@pytest.mark.parametrize(
    ("differences", "want"),
    [
        ((2, 2.5, 1.5), "**+2.0 [0.8, 3.2]**"),
        ((-2, -2.5, -1.5), "**-2.0 [-3.2, -0.8]**"),
        ((1.26, 0.74), "+1.0 [-2.3, 4.3]"),
        ((2, 2.8, 1.19), "+1.997 [-0.003, 3.996]"),
        ((2, 2.8, 1.2), "**+2.00 [0.01, 3.99]**"),
        ((0.25, 0.25), "+0.2 [0.2, 0.2]"),
        ((1e-13, 1e-13), "+0.0 [0.0, 0.0]"),
        ((1,), "-"),
        ((), "-"),
    ],
)
def test_an_interval_is_bold_where_it_excludes_0_and_shows_on_which_side_its_ends_lie(differences, want):
    b = {seed: 50.0 + 10 * seed for seed in range(len(differences))}
    a = {seed: value + differences[seed] for seed, value in b.items()}
    assert table.difference_cell(table.difference(a, b), len(differences)) == want


def test_cells_are_over_the_seeds_that_there_are_and_differences_over_those_of_both_which_are_counted():
    a, b = {0: 3.0, 2: 5.0, 3: 90.0}, {2: 4.0, 0: 2.5, 1: -90.0}
    assert table.difference_cell(table.difference(a, b), 4) == "+0.8 [-2.4, 3.9] (2 of 4)"
    cells = [table.cell([1.0, 2.0, 6.0], 3), table.cell([1.0, 2.0], 3), table.cell([4.0], 1), table.cell([], 3)]
    assert cells == ["3.0 ± 2.6", "1.5 ± 0.7 (2 of 3)", "4.0", "-"]


METHOD = {"command": "python main_ce.py --exp_name a"}
RECIPE = {
    "title": "T", "about": "", "published": None, "baseline": "scl",
    "methods": {"scl": {**METHOD, "title": "SCL in"}, "rince": METHOD, "given": {"checkpoint": "a.pth"}},
    "evaluations": {"e": {"columns": {"R@1": "x", "mAP": "y"}}},
}  # fmt: skip


def results(*of_seeds):
    return [{"seed": s, "values": values, "records": {}} for s, values in enumerate(of_seeds)]


RESULTS = {
    "scl": results({"R@1": 50.0, "mAP": 40.0, "seconds": 9.0}, {"R@1": 51.0, "mAP": 40.0, "seconds": 11.0}),
    "rince": results({"R@1": 52.0}, {"R@1": 53.1, "mAP": 41.0}),
    "given": results({"R@1": 60.0, "mAP": 60.0}),
}


def content(recipe=RECIPE, **change):
    return {"recipe": recipe, "seeds": 2, "scale": 1.0, "results": RESULTS, "failures": [], **change}


def test_differences_to_the_baseline_stand_in_a_second_table_and_how_they_are_made_below_it():
    text = table.markdown(content())
    assert (
        text
        == """## T

| method | R@1 | mAP | seconds |
|---|---|---|---|
| SCL in | 50.5 ± 0.7 | 40.0 ± 0.0 | 10 |
| rince | 52.5 ± 0.8 | 41.0 (1 of 2) | - |
| given | 60.0 | 60.0 | - |

Difference to SCL in, paired by seed, with 95 % interval:

| method | R@1 | mAP |
|---|---|---|
| rince | **+2.0 [1.4, 2.7]** | - |
| given | - | - |

Interval: the mean ± t(0.975, n - 1) / √n standard deviations of the paired difference, Student's; with 2 seeds 8.98 \
of them. Bold: it excludes 0. Without a difference, 1 in 20 does, if differences are normal.

In percent, seeds 0 to 1, mean ± standard deviation; seconds of training.

Given checkpoints are evaluated once: seeds are those of trainings.
""".replace("\\\n", "")
    )
    assert "with 5 seeds 1.24 of them" in table.markdown(content(seeds=5))


def test_with_holms_correction_a_row_is_bold_where_it_holds_over_the_columns_of_the_table():
    made = {"scl": [(50.0, 40.0), (51.0, 40.0), (52.0, 40.0)], "rince": [(52.0, 41.0), (53.1, 40.9), (54.0, 41.6)]}
    runs = {name: results(*({"R@1": a, "mAP": b} for a, b in of)) for name, of in made.items()}
    bold = "| rince | **+2.0 [1.9, 2.2]** | **+1.2 [0.2, 2.1]** |"
    assert bold in table.markdown(content(results=runs, seeds=3))
    recipe = RECIPE | {"correction": "Holm"}
    found = table.find_differences(recipe, runs)["methods"]["rince"]["columns"]
    assert found["R@1"]["p_holm"] == 2 * found["R@1"]["p"] < found["mAP"]["p_holm"] == found["mAP"]["p"]
    corrected = table.markdown(content(recipe, results=runs, seeds=3))
    assert bold in corrected and "Bold: p < 0.05 after Holm's correction over the columns of a row; " in corrected
    recipe["evaluations"] = {"e": {"columns": {"R@1": "x", "mAP": "y", "again": "z"}}}
    for of in runs.values():
        for of_seed in of:
            of_seed["values"]["again"] = of_seed["values"]["mAP"]
    three = content(recipe, results=runs, seeds=3)
    assert "| rince | **+2.0 [1.9, 2.2]** | +1.2 [0.2, 2.1] | +1.2 [0.2, 2.1] |" in table.markdown(three)
    assert bold in table.markdown(three, ["R@1", "mAP"])


def test_runs_are_paired_on_machines_of_one_kind_and_the_table_says_so():
    def on(machines, runs):
        return [run | {"machine": machine} for machine, run in zip(machines, runs, strict=True)]

    runs = {name: results(*({"R@1": x + i} for i in range(3))) for name, x in (("scl", 50.0), ("rince", 52.0))}
    runs = {"scl": on("aab", runs["scl"]), "rince": on("aaa", runs["rince"])}
    runs["rince"][0]["values"]["R@1"] += 0.5
    text = table.markdown(content(results=runs, seeds=3))
    assert "| rince | +2.2 [-0.9, 5.4] (2 of 3) |" in text
    assert text.count("Runs come from several kinds of machines; those of one kind are paired.") == 1


def test_correlations_have_two_decimals_and_a_title_with_a_bar_or_a_line_break_stays_one_cell():
    found = {"scl": results({"R@1": 52.0, "mAP": -0.25}, {"R@1": 0.5, "mAP": 1.0})}
    methods = {"scl": {**METHOD, "title": "SCL | in\nhere"}}
    text = table.markdown(content(RECIPE | {"methods": methods, "baseline": None}, results=found))
    assert "\n| SCL \\| in here | 26.2 ± 36.4 | 0.38 ± 0.88 |" in text


def test_without_a_baseline_or_with_one_seed_there_is_one_table():
    for change in ({"seeds": 1}, {"recipe": RECIPE | {"baseline": None}}):
        assert "ifference" not in table.markdown(content(**change))


# ---- the JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("/home/me/work/save/results/a.json", "save/results/a.json"),
        ("main_ce.py --save_folder=/home/me/work/save --x '/home/me/work//d'", "main_ce.py --save_folder=save --x 'd'"),
        ("exit code 2: no such folder; /home/me/work/save/log.txt", "exit code 2: no such folder; save/log.txt"),
        ("--data_folder /home/me/work --size 8", "--data_folder . --size 8"),
        ("/home/me/work/", "./"),
        *((path, path) for path in ("/home/me/workshop/a", "/data/home/me/work/a", "/home/me/work.old", "/data/a")),
    ],
)
def test_paths_below_the_folder_are_relative_to_it(text, want):
    assert table.portable({"a": [text, 3, None]}, Path("/home/me/work")) == {"a": [want, 3, None]}
    assert table.portable(text, Path("/")) == text


def test_what_is_written_is_drawn_from_what_is_written_and_names_no_folder_of_the_machine(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    runs = {**RESULTS, "rince": [{**RESULTS["rince"][0], "folder": str(tmp_path / "save/a"), "warning": str(tmp_path)}]}
    about = {"command": ["reproduce.py", f"{ROOT}/recipes/digits.yaml"], "unfinished": 3}
    about["failures"] = [{"what": "a", "why": f"log {tmp_path}/a.txt"}]
    text = table.write(tmp_path / "tables/t", RECIPE, runs, recipes.Scope(2, 0.5, "--size 8"), about)
    written = (tmp_path / "tables/t.json").read_text()
    assert str(tmp_path) not in written + text
    assert json.loads(written)["command"] == ["reproduce.py", "recipes/digits.yaml"]
    assert json.loads(written)["results"]["rince"][0]["folder"] == "save/a"
    assert (tmp_path / "tables/t.md").read_text() == text
    for part in ("UNFINISHED: runs still to come when this was written: 3.", "With --size 8", "FAILED: a (log a.txt)"):
        assert part in text
    run(monkeypatch, tmp_path, "tables/t.json", "recipes.table")
    assert capsys.readouterr().out == text
    run(monkeypatch, tmp_path, "tables/t.json --columns mAP --out other/t.md", "recipes.table")
    columns = (tmp_path / "other/t.md").read_text()
    assert "| method | mAP | seconds |\n|---|---|---|\n| SCL in | 40.0 ± 0.0 | 10 |" in columns and "R@1" not in columns


@pytest.mark.parametrize(
    ("file", "words", "reason"),
    [
        (None, "t.json", "t.json: no such file; give the JSON of a table"),
        ("{", "t.json", "t.json: not readable as JSON"),
        ('{"metrics": 3}', "t.json", "t.json: is not a table of reproduce.py"),
        (json.dumps(content()), "t.json --columns R@2", "--columns R@2: no column of t.json; did you mean R@1?"),
        (json.dumps(content()), "t.json --out ./t.json", "--out t.json: is the table itself; give another file"),
    ],
)
def test_what_is_no_table_is_one_line(monkeypatch, capsys, tmp_path, file, words, reason):
    if file:
        (tmp_path / "t.json").write_text(file)
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, "recipes.table")
    assert file is None or (tmp_path / "t.json").read_text() == file


# ---- while it runs ---------------------------------------------------------------------------------------------------


def run_recipe():
    recipe = {"before": [], "after": [], "jobs": 1, **RECIPE}
    args = reproduce.get_parser().parse_args(["r.yaml", "--seeds", "2"])
    return reproduce.run_recipe(recipe, list(RESULTS), recipes.Scope(2), args)


def test_a_table_that_is_broken_off_holds_what_there_is_what_was_there_before_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run_method(recipe, name, seed, scope, runner):
        if isinstance(runner, Finder) and (name, seed) != ("rince", 1):
            return {"seed": seed, "values": {}, "records": {}}
        if (name, seed) == ("rince", 0):
            runner.stop()
            raise KeyboardInterrupt
        return RESULTS[name][seed]

    monkeypatch.setattr(running, "run_method", run_method)
    with pytest.raises(KeyboardInterrupt):
        run_recipe()
    text = (tmp_path / "save/tables/r.md").read_text()
    assert "| SCL in | 50.0 (1 of 2) | 40.0 (1 of 2) | 9 |\n| rince | 53.1 (1 of 2) | 41.0 (1 of 2) | - |\n" in text
    assert "UNFINISHED: runs still to come when this was written: 4." in text
    assert table.markdown(json.loads((tmp_path / "save/tables/r.json").read_text())) == text


def test_a_table_that_cannot_be_written_meanwhile_ends_no_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    writes, write = [], table.write

    def fail_first(*what):
        writes.append(what)
        if len(writes) == 1:
            raise recipes.InputError("r.json: cannot be written (No space left on device)")
        return write(*what)

    monkeypatch.setattr(table, "write", fail_first)
    monkeypatch.setattr(running, "run_method", lambda recipe, name, seed, *_: RESULTS[name][seed])
    assert run_recipe() == []
    out = capsys.readouterr().out
    assert "== r.json: cannot be written (No space left on device)\n" in out
    assert out.endswith((tmp_path / "save/tables/r.md").read_text() + "\nsaved save/tables/r.md and .json\n")
    assert len(writes) == 5 + 1
    assert "UNFINISHED" not in out


def test_a_column_finds_a_figure_whatever_stands_in_a_levels_name():
    metrics = {"fine": {"mAP": 1.0}, "v1.0": {"mAP": 2.0}, "v1": {"R@1": 3.0}, "AUROC": 4.0, "v1.0.mAP": {"x": 5.0}}
    want = {"fine.mAP": 1.0, "v1.0.mAP": 2.0, "v1.R@1": 3.0, "AUROC": 4.0, "v1.0.mAP.x": 5.0}
    assert figures(metrics | {"none": None, "text": "4"}) == want
