"""What README, CONTRIBUTING and docs/ say is so: flags, commands, links, code, and the five minutes of a newcomer."""

import argparse
import ast
import importlib
import json
import re
import shlex
import sys
import types

import pytest
import torch
from commands import ROOT, module_file, run
from made_data import make_image_folders, original_checkpoint

import evaluation
import losses
import networks
from engine.cli import reference
from engine.encoder.records import read_table
from examples import own_loop
from networks import memory_bank, resnet
from recipes import schema, table

PAGES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md"))]}
del PAGES["CHANGELOG.md"]  # names what is gone, too
README = PAGES["README.md"]
# torchrun's, tensorboard's, argparse's and sbatch's
FOREIGN = {"--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts", "--logdir"}
FOREIGN |= {"--help", "--partition", "--gres", "--cpus-per-task", "--time", "--nodes", "--ntasks"}
every_page = pytest.mark.parametrize("page", PAGES)


def section(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def flags_written_in(file):
    strings = (n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant))
    return {word for word in strings if isinstance(word, str) and re.fullmatch(r"--[a-zA-Z][\w-]*", word)}


def commands_of(text):
    """Command lines of a page, continuation lines joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("python ")]


def known_flags(module, words):
    """The flags that a command may have: those of its parser, and of the sub-parser that its words choose."""
    if not hasattr(importlib.import_module(module), "get_parser"):
        return flags_written_in(module_file(module))
    parsers, flags = [importlib.import_module(module).get_parser()], set()
    for parser in parsers:
        flags |= {name for action in parser._actions for name in action.option_strings}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                (kind,) = [word for word in words if word in action.choices][:1]
                parsers.append(action.choices[kind])
    return flags


def unknown_flags(command):
    """What a command of a page has that its script or module has not; the module itself, where there is none."""
    words = shlex.split(command, comments=True)[1:]
    module = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
    if module_file(module) is None:
        return {module}
    return {word.partition("=")[0] for word in words if word.startswith("--")} - known_flags(module, words)


def anchors_of(text):
    """What links to the headings of a page end in."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)
    earlier = re.findall(r'^<a id="([\w-]+)"></a>$', outside, flags=re.MULTILINE)  # of a heading that was renamed
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | {*earlier}


# ---- what is named exists --------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 170
    linked = set(re.findall(r"\]\(([\w./]+\.md)\)", section(README, "Documentation")))
    assert linked == {*PAGES, "CHANGELOG.md"} - {"README.md"}


@every_page
def test_every_flag_that_is_written_about_exists(page):
    named = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", PAGES[page]))
    files = [p for p in ROOT.rglob("*.py") if ".venv" not in p.parts and "tests" not in p.relative_to(ROOT).parts]
    assert named - set().union(*map(flags_written_in, files)) - FOREIGN == set()


def test_the_page_of_the_command_line_is_what_the_parsers_say():
    assert PAGES["docs/command_line.md"] == reference.write_page(), "run: python -m engine.cli.reference"


def test_it_has_every_module_with_a_parser():
    files = (f for f in ROOT.rglob("*.py") if not {".venv", "tests"} & {*f.relative_to(ROOT).parts})
    have = {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files if "\ndef get_parser(" in f.read_text()}
    assert have == {*reference.SCRIPTS, *reference.MODULES}


def test_published_and_earlier_spellings_are_in_the_last_group_alone_with_their_modern_form():
    *others, last = importlib.import_module("main_supcon").get_parser()._action_groups
    old = {a.option_strings[0]: a.help for a in last._group_actions}
    assert {"--mixed_out_in", "--mixed_out_in_log", "--m", "--roberta_float_threshold", "--colour"} <= old.keys()
    assert all(re.search(r"spelling of --\w+", text) for text in old.values())
    assert old.keys() & {a.option_strings[0] for group in others for a in group._group_actions} == set()


@every_page
def test_every_flag_of_a_command_is_the_scripts_own(page):
    assert {command: wrong for command in commands_of(PAGES[page]) if (wrong := unknown_flags(command))} == {}


def test_a_flag_of_another_sub_command_would_be_found():
    assert unknown_flags("python rankings.py show ranking.csv --share 0.3") == {"--share"}
    assert unknown_flags("python -m figures.classes --outt x.png") == {"--outt"}
    assert unknown_flags("python -m datasets.rankings_of show") == {"datasets.rankings_of"}


@every_page
def test_every_script_module_and_target_that_is_named_exists(page):
    text = PAGES[page]
    modules = {name for name in re.findall(r"python -m ([a-z_]+\.\w+)", text) if not name.endswith(".NAME")}
    modules |= set(re.findall(r"python (\w+)\.py", text))
    assert {name for name in modules if module_file(name) is None} == set()
    files = {name for name in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|yaml|sh))?)`", text) if "NAME" not in name}
    made = {name for name in files if name.split("/")[0] in ("save", "data", "superclass", "val", "train")}
    assert {name for name in files - made if not (ROOT / name).exists()} == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) - targets == set()


@every_page
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.resolve().is_file(), link
        if anchor:
            assert anchor in anchors_of(file.read_text()), link


def test_the_navigation_of_the_site_names_every_page_once():
    named = re.findall(r'"([\w/]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert sorted(named) == sorted({*PAGES, "CHANGELOG.md"})


@every_page
def test_the_site_has_every_file_that_a_page_links(page):
    patterns = re.search(r"^SITE +:= (.+)$", (ROOT / "Makefile").read_text().replace("\\\n", ""), re.MULTILINE)[1]
    on_site = {file for pattern in patterns.split() for file in ROOT.glob(pattern)}
    for link in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
        file = ((ROOT / page).parent / link).resolve()
        assert re.match(r"https?://", link) or {file, file.parent} & on_site, link


@every_page
def test_a_block_in_a_list_is_indented_by_four_spaces_so_that_the_site_nests_it(page):
    assert re.findall(r"^ {1,3}```.*", PAGES[page], flags=re.MULTILINE) == []


def draw_rows(name, *choices, baseline=None):
    """The lines of a table kept in figures/, drawn with each choice of columns, by default all, and the same without
    the seconds, which some pages leave out; with differences to `baseline`, if given.
    """
    content = read_table(ROOT / f"figures/{name}.json")
    if baseline:
        content["recipe"]["baseline"] = baseline
    lines = [line for columns in choices or [None] for line in table.markdown(content, columns).splitlines()]
    return {*lines, *(re.sub(r" (\d+|-) \|$", "", line) for line in lines)}


def of_hidden_layer(columns):
    return [f"{column}, hidden" for column in columns]


RESULTS = PAGES["docs/results.md"]
CLINC150 = RESULTS.partition("## CLINC150")[2].partition("### Findings on CLINC150")[0]
ORDER = ["R@1", "fine mAP", "coarse mAP, other classes"]
UNSEEN = ["unseen R@1", "unseen fine mAP", "unseen coarse mAP"]
OF_TEXTS = [*ORDER, "AUROC 1>2", "out-of-scope AUROC"]
OF_CLINC150 = draw_rows("clinc150", OF_TEXTS, of_hidden_layer(ORDER), ["coarse R@1"])
OF_HELD_OUT = draw_rows(
    "clinc150_held_out",
    ["R@1", "coarse mAP, other classes", "held-out AUROC", *UNSEEN[1:]],
    of_hidden_layer(UNSEEN),
)
LOSSES = "(raw|SupCon|SCL|two|RINCE|HiMulCon|X-CLR|y-aware|rank-n|cross)"
OF_IMAGES = [*ORDER, "AUROC 0>1", "AUROC 1>2", "CIFAR-10 AUROC"]
OF_FEATURES = draw_rows("cifar100_features", OF_IMAGES, of_hidden_layer(ORDER), ["coarse R@1"])
OF_FEATURES_HELD_OUT = draw_rows(
    "cifar100_features_held_out", [*ORDER, "held-out AUROC", *UNSEEN], of_hidden_layer(UNSEEN)
)
OF_ENCODERS = draw_rows("cifar100_finetune", ["R@1", "fine mAP", "coarse R@1", *OF_IMAGES[2:]])
OF_CHOICES = draw_rows("clinc150_choices")
OF_CIFAR = draw_rows("cifar100_small", ["fine R@1", "fine mAP", "coarse R@1", *OF_IMAGES[2:-1], "probe"])


@pytest.mark.parametrize(
    ("text", "begins", "count", "drawn"),
    [
        (section(README, "Results"), LOSSES, 8, OF_CLINC150),
        (CLINC150, LOSSES, 122, OF_CLINC150 | OF_HELD_OUT),
        (RESULTS.partition("## CIFAR-100: a head")[2].partition("\n* ")[0], LOSSES, 59, OF_FEATURES),
        (RESULTS.partition("### Two of five classes")[2].partition("\n* ")[0], LOSSES, 21, OF_FEATURES_HELD_OUT),
        (RESULTS.partition("## CIFAR-100: the whole")[2].partition("\n* ")[0], LOSSES, 8, OF_ENCODERS),
        (RESULTS.partition("## CIFAR-100 from scratch")[2].partition("### Held-out classes")[0],
         LOSSES, 19, OF_CIFAR),
        (RESULTS.partition("### Held-out classes")[2].partition("\n## ")[0], "(RINCE|SCL)", 5,
         draw_rows("cifar100_small_held_out")),
        (PAGES["docs/choosing.md"], "(RINCE in|SupCon), ", 8, OF_CHOICES),
    ],
    ids=["README", "CLINC150", "features", "unseen", "encoder", "CIFAR-100", "held-out classes", "choices"],
)  # fmt: skip
def test_the_rows_of_a_table_are_drawn_from_its_json(text, begins, count, drawn):
    rows = [line for line in text.splitlines() if re.match(rf"\| ?{begins}", line)]
    rows = rows[:count] if begins else rows  # of some pages, other tables follow
    assert len(rows) == count and [row for row in rows if row not in drawn] == []


def test_a_difference_that_is_claimed_is_one_of_the_table_and_holds():
    """In text an interval stands for a cell of the differences; bold there: it holds after Holm's correction."""
    rows = OF_HELD_OUT | OF_CLINC150 | OF_FEATURES | OF_FEATURES_HELD_OUT | OF_ENCODERS | OF_CIFAR
    bold = {cell.strip(" *") for row in rows for cell in row.split("|") if "**" in cell}
    claimed = re.findall(r"[+-]\d+\.\d+ \[[^\]]+\]", section(README, "Results"))
    findings = RESULTS.partition("### Findings on CLINC150")[2].partition("### Held-out classes")[0]
    claimed += re.findall(r"\(([+-]\d+\.\d+ \[[^\]]+\])\)", findings)
    assert len(claimed) >= 9
    assert set(claimed) <= bold


def cells_of(rows):
    """The values in rows of tables, without their standard deviations."""
    return {cell.split(" ±")[0].strip() for row in rows for cell in row.split("|")}


def test_a_direct_comparison_is_of_its_two_methods():
    section_of = RESULTS.partition("## RINCE and other losses")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (CIFAR-100|CLINC150) \| ([^|]+) \| ([^|]+) (\|.+)$", section_of, flags=re.MULTILINE)
    keys = {"X-CLR": "xclr", "y-aware": "yaware", "HiMulCon": "himulcon", "two losses, all": "two_losses_all"}
    columns = [*OF_IMAGES[:-1], "out-of-scope AUROC"]
    tables = {"CIFAR-100": ("cifar100_features", OF_IMAGES), "CLINC150": ("clinc150", columns)}
    for data, method, other, cells in rows:
        assert f"| {method} {cells}" in draw_rows(*tables[data], baseline=keys[other])
    assert len(rows) == 8


def test_the_numbers_of_the_short_answer_are_cells_of_the_tables():
    text = RESULTS.partition("## In short")[2].partition("\n## ")[0]
    cells = cells_of(OF_CLINC150 | OF_FEATURES | OF_FEATURES_HELD_OUT | OF_ENCODERS | OF_CIFAR)
    accuracy = {"95.2", "69.7", "1.5"}  # of classifiers; of the direct comparisons
    numbers = {*re.findall(r"\d+\.\d", text)} - accuracy
    assert len(numbers) == 30 and numbers - cells == set()


def test_the_numbers_of_the_faq_are_cells_of_the_tables():
    answer = section(PAGES["docs/faq.md"], "Is RINCE better than cross-entropy?")
    rows = OF_CLINC150 | OF_HELD_OUT | OF_ENCODERS | OF_CIFAR
    rows = [row for row in rows if re.match(r"\| (RINCE in|cross-entropy) \|", row)]
    cells = cells_of(rows)
    numbers = re.findall(r"\d+\.\d", answer)
    assert len(numbers) == 15 and [number for number in numbers if number not in cells] == []
    variants = {*re.findall(r"\d+\.\d", section(PAGES["docs/faq.md"], "Which variant should I use?"))}
    rows = [row for row in OF_CLINC150 | OF_FEATURES | OF_ENCODERS if re.match(r"\| (RINCE|SupCon)", row)]
    assert len(variants) == 9 and variants <= cells_of(rows)


def test_the_numbers_of_what_to_choose_are_cells_of_the_tables():
    page = PAGES["docs/choosing.md"]
    measured = page.partition("## Your situation")[2].partition("## Check a ranking")[0]
    rows = OF_CLINC150 | OF_HELD_OUT | OF_FEATURES | OF_ENCODERS | OF_CIFAR | OF_CHOICES
    cells = cells_of(rows)
    numbers = re.findall(r"\b\d{2}\.\d\b", measured)
    assert len(numbers) > 60 and [number for number in numbers if number not in cells] == []


@pytest.mark.parametrize("kind", schema.FORMS)
def test_the_keys_of_a_recipe_are_listed_with_their_types(kind):
    (title,) = re.findall(rf"^## (Keys of (?:an? )?{kind})$", PAGES["docs/recipe_keys.md"], flags=re.MULTILINE)
    text = section(PAGES["docs/recipe_keys.md"], title)
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|", text, flags=re.MULTILINE)
    listed = {key + "*" * (default == "required"): form for key, form, default in rows}
    assert listed == schema.FORMS[kind]


def test_the_first_command_trains_with_own_superclasses_and_the_columns_of_its_log_are_explained(own):
    last = json.loads((own.root / "save/SupCon/path_models/mine/log.jsonl").read_text().splitlines()[-1])
    assert last.pop("epoch") == 2 and {"loss_rank_1", "val_knn"} <= set(last)
    explained = section(PAGES["docs/runs.md"], "Columns of the log")
    assert [key for key in last if f"`{key.replace('rank_1', 'rank_0')}`" not in explained] == []


# ---- code runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(monkeypatch):
    """The modules under the names that the wheel gives them."""
    monkeypatch.setitem(sys.modules, "rince", types.ModuleType("rince"))
    parts = {"losses": losses, "evaluation": evaluation, "networks": networks, "networks.memory_bank": memory_bank}
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, f"rince.{name}", module)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_the_code_of_a_page_runs_from_top_to_bottom(monkeypatch, tmp_path, wheel, page):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "save/SupCon/digits_models/NAME/last.pth"
    original_checkpoint(checkpoint, resnet.encoder("resnet18"), "cifar", "resnet18", "cifar100")
    torch.manual_seed(0)
    names = {}
    for code in blocks(PAGES[page], "python"):
        exec(code.replace("path/to/this/folder", str(ROOT)), names)


def test_the_loop_of_ones_own_learns_classes_and_ranks(capsys):
    before, after = own_loop.main(epochs=4)
    assert after["mAP"] > before["mAP"] + 0.1
    assert after["mAP of other digits"] > before["mAP of other digits"]
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(after)


# ---- plain words -----------------------------------------------------------------------------------------------------

MOST_WORDS, MEAN_WORDS = 30, 18  # of a sentence
NOT_PLAIN = re.compile(
    r"""\b(?:
        anew | likewise | beside | so\ many | learnt | as\ it\ stands | go(?:es)?\ on | lies\ in | (?:is|are)\ none
        | (?:is|are)\ there\ already | looks?\ among | by\ chance | (?:a|the)\ vote | loader\ process(?:es)? | sisters?
        | (?:in|out)liers? | (?:its|the|their)\ own\ (?:class|key) | (?<!most\ )similar\ class(?:es)? | unit\ vectors?
        | slots? | published\ code | probe\ best | times\ ours | to\ the\ same\ bits | kept\ features | damaged
        | stand-in | (?:a|the)\ packs? | ground\ floor
        | \w*colour\w* | grey\w* | licence\w* | cent(?:re|red|res) | \w*neighbour\w* | behaviour\w*
        | (?:normal|optim|initial|visual|general|summar|recogn)is(?:e[ds]?|ing|ation)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
SENTENCE_END = re.compile(r"(?<!et al\.)(?<!e\.g\.)(?<=[.!?])[)\"*]* +(?=[\"*]*[A-Z`$])")


def prose_of(text):
    """A page without code blocks and addresses; a code span or a formula counts as one word."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$[^$]+\$", "formula", re.sub(r"`[^`]+`", "`code`", text))
    for _ in range(2):  # a badge is a picture in a link
        text = re.sub(r"!?\[([^][]*)\]\([^)]*\)", r"\1", text)
    return text


def sentences_of(prose):
    """The sentences outside tables and headings; a paragraph ends one, and so does an item of a list."""
    lines = [line for line in prose.splitlines() if not re.match(r" *[|#<]", line)]
    parts = re.split(r"\n\s*\n|\n *(?=(?:[*-]|\d+\.) )", "\n".join(lines))
    return [sentence for part in parts for sentence in SENTENCE_END.split(" ".join(part.split()))]


def count_words(sentence):
    return len(re.findall(r"\S*\w\S*", sentence))


def faults_of(text):
    """Sentences that are too long; sentences, rows and headings with a word of which there is a plainer one."""
    prose = prose_of(text)
    sentences, rows = sentences_of(prose), re.findall(r"^ *[|#].+", prose, flags=re.MULTILINE)
    found = [f"{n} words: {s}" for s in sentences if (n := count_words(s)) > MOST_WORDS]
    return found + [f"{word[0]}: {text}" for text in sentences + rows for word in NOT_PLAIN.finditer(text)]


@every_page
def test_a_page_is_in_plain_words(page):
    faults = faults_of(PAGES[page])
    assert not faults, "\n".join(faults)


@every_page
def test_the_sentences_of_a_page_are_short_on_average(page):
    words = [count_words(sentence) for sentence in sentences_of(prose_of(PAGES[page]))]
    assert sum(words) / len(words) <= MEAN_WORDS


def test_a_long_sentence_and_a_word_that_is_not_plain_would_be_found():
    long = "It has " + "many " * 28 + "words."
    assert faults_of(f"# Title\n\nShort. {long} Short.\n\n* An item, so\n  many.\n") == [
        f"31 words: {long}",
        "so many: * An item, so many.",
    ]
    assert faults_of(f"```\n{long}\n```\n\n`grey`\n") == []


CODE = {
    f.relative_to(ROOT).as_posix(): ast.parse(f.read_text())
    for f in sorted(ROOT.rglob("*.py"))
    if not {".venv", "tests"} & {*f.relative_to(ROOT).parts}
}
NOT_A_MESSAGE = re.compile(r"\b(?:(?<!there )(?:is|are) no (?!longer)|wants?\b|stands? in\b|told\b)")


def text_of(node):
    """A literal's text, with the word VALUE for what is filled in; "" of what is no literal."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "VALUE" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def texts_of(tree):
    """What a module can print, be it an error, a warning, a log line or help: literals of three words and more."""
    nodes = [*ast.walk(tree)]
    known = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}  # docstrings
    known |= {id(part) for n in nodes if isinstance(n, ast.JoinedStr) for part in n.values}
    found = [text_of(n) for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant) and id(n) not in known]
    return [text for text in found if len(text.split()) > 2]


def faults_of_texts(tree):
    """As of a page, and what is unclear in a message."""
    texts = [re.sub(r"--[a-z][\w-]*", "--option", text) for text in texts_of(tree)]
    return [fault for text in texts for fault in [*faults_of(text), *(t for t in [text] if NOT_A_MESSAGE.search(t))]]


def unnamed_errors(tree):
    """Messages of InputError that begin neither with an option, nor a value, such as a file, nor with what is wrong."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "InputError"]
    texts = [text_of(n.args[0]) for n in calls]
    return [text for text in texts if text and not re.match(r"VALUE|--|[\w ]+: ", text)]


@pytest.mark.parametrize("file", CODE)
def test_what_the_code_can_print_is_in_plain_words(file):
    faults = faults_of_texts(CODE[file]) + unnamed_errors(CODE[file])
    assert not faults, "\n".join(faults)


def test_a_message_that_is_not_plain_or_names_nothing_would_be_found():
    code = "def f(x):\n    'Docs are no message.'\n    print(f'the image {x} is no image')\n"
    assert faults_of_texts(ast.parse(code)) == ["the image VALUE is no image"]
    assert faults_of_texts(ast.parse("help = 'start ' 'training anew'")) == ["anew: start training anew"]
    assert unnamed_errors(ast.parse("InputError('wrong')\nInputError(f'{x}: wrong')")) == ["wrong"]


# ---- images of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Images as docs/own_images.md says to lay them out, its superclass file, and the training of its first command."""
    root = tmp_path_factory.mktemp("own")
    classes = ["cat", "dog", "car", "lorry", "bus"]
    for part, each in (("train", 8), ("val", 3)):
        make_image_folders(root / "my_images" / part, classes, each)
    make_image_folders(root / "my_other_images", ["anything"], each=6)
    text = PAGES["docs/own_images.md"]
    (root / "my_superclasses.yaml").write_text(blocks(text, "yaml")[0])
    commands = commands_of(text)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, f"{commands[0]} --epochs 2 --knn_freq 1 --batch_size 8 --num_workers 0")
    return types.SimpleNamespace(root=root, commands=commands)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_other_commands_evaluate_it(monkeypatch, own, number):
    command = own.commands[number]
    short = "--epochs 1 --batch_size 8 " if "main_linear" in command else ""
    run(monkeypatch, own.root, f"{command} --num_workers 0 {short}")
    script = command.split()[1].removesuffix(".py")
    name = {"main_linear": "linear", "out_of_dist_detection": "ood"}.get(script, script)
    (record,) = (own.root / "save/results").glob(f"{name}_path_*.json")
    assert json.loads(record.read_text())["metrics"]


def test_the_last_command_writes_its_page(monkeypatch, own):
    words = own.commands[4].removeprefix("python report.py ")
    assert len(own.commands) == 5
    run(monkeypatch, own.root, f"{words} --num_workers 0", "report")
    assert "lorry" in (own.root / "save/mine.html").read_text()
