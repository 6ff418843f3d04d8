"""The pages say what is so: every command is parsed, every setting is known, every link leads somewhere,
and examples run.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from cluster.__main__ import parser as cluster_parser
from cluster.calling import short_names
from cluster.schemas import described
from cluster.settings import load_settings
from finetune.__main__ import COMMANDS as FINETUNE
from finetune.api import FinetuneKeywords
from finetune.settings import FinetuneSettings
from fovea.__main__ import COMMANDS as FOVEA
from pretrain.__main__ import COMMANDS as PRETRAIN
from pretrain.api import PretrainKeywords
from pretrain.settings import PretrainSettings
from tests.benchmarks import house
from tests.finetune.stripes import stripes

README = Path("README.md")
PAGES = [
    README,
    *sorted(
        path for name in ("cluster", "pretrain", "finetune", "docs") for path in Path(name).rglob("*.md")
    ),
]
CONFIGS = sorted(Path("configs").rglob("*.yaml"))
EXTRAS = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
SETTINGS = {one.key for schema in (PretrainSettings, FinetuneSettings) for one in described(schema)}
BLOCKS = {key.partition(".")[0] for key in SETTINGS if "." in key}
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# what a setting of a block, or several, is called in a sentence
NAMED = re.compile(rf"(?:{'|'.join(sorted(BLOCKS))})\.[a-z_.]+")


def blocks(page, kind):
    """Fenced blocks of a page by what is written behind the fence."""
    return [body for _, language, body in FENCED.findall(page.read_text()) if language == kind]


def anchor_of(heading):
    """What a link calls the section below a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def commands_of(text):
    """The commands of a shell block as lists of words, without comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            cut = words.index("&&")
            yield words[:cut]
            words = words[cut + 1 :]
        if words:
            yield words[: words.index(">")] if ">" in words else words


def check_command(words):
    """Raises, or ends the test, where the program would not take these words."""
    program, *rest = words
    if program in ("export", "."):
        return
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE)
        assert all("=" in word or word in targets for word in rest), words
    elif program == "pip":
        assert rest[0] == "install" and set(re.findall(r"\w+", rest[1].partition("[")[2])) <= set(EXTRAS), (
            words
        )
    elif program == "fovea":
        command = FOVEA[rest[0]]
        check_module(command.module.removesuffix(".__main__"), [*command.before, *rest[1:]])
    elif program == "sbatch":
        assert Path("cluster", rest[0]).exists(), words
    else:
        assert program == "python" and rest[0] == "-m", words
        check_module(rest[1], rest[2:])


def check_module(module, words):
    if "--help" in words:
        return
    if module in ("pretrain", "finetune"):
        commands, schema = {
            "pretrain": (PRETRAIN, PretrainSettings),
            "finetune": (FINETUNE, FinetuneSettings),
        }[module]
        if words[0] in commands:
            commands[words[0]].parser().parse_args(words[1:])
        else:
            load_settings(schema, words[0], [word for word in words[1:] if word != "--check"])
    elif module == "pretrain.data":
        _, rest = import_module("pretrain.data.__main__").parser().parse_known_args(words)
        assert all("=" in word and word[0] != "-" for word in rest), rest
    elif module == "cluster":
        cut = words.index("--") if "--" in words else len(words)
        options = cluster_parser().parse_args(words[:cut])
        assert not hasattr(options, "file") or Path(options.file).exists(), words
        if words[cut + 1 :]:
            check_command(words[cut + 1 :])
    else:
        import_module(module).parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_one(page):
    for block in blocks(page, ""):
        for words in commands_of(block):
            check_command(words)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_command_in_the_header_of_a_configuration_is_one(path):
    header = path.read_text().split("\n\n")[0]
    lines = [line[1:] for line in header.splitlines() if re.match(r"#    *\S", line)]
    for words in commands_of("\n".join(lines)):
        if words[0] == "python":
            check_command(words)


def test_the_table_of_the_front_page_names_commands():
    told = [
        text
        for text in re.findall(r"^\|[^|]*\| `([^`]+)` \|", README.read_text(), re.MULTILINE)
        if "..." not in text
    ]
    assert len(told) > 10
    for text in told:
        if text.startswith("fovea "):
            check_command(shlex.split(text))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_in_sentences_are_known(page):
    for text in re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text())):
        key = text.partition("=")[0]
        if NAMED.fullmatch(key) and not key.endswith((".py", ".md", ".yaml", ".json")):
            assert re.sub(r"\.arguments\..*", ".arguments", key) in SETTINGS, f"{page} names {text}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_blocks_call_what_there_is(page):
    short = {"pretrain": short_names(PretrainKeywords), "finetune": short_names(FinetuneKeywords)}
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module)
                assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in short:
                given = {one.arg for one in node.keywords} - {"config", "settings"}
                assert given <= set(short[node.func.id]), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in {anchor_of(one) for one in headings}, f"{page}: {target}"


def section(page, anchor):
    """The text of a page below one heading and above the next; all of it without an anchor."""
    text = page.read_text()
    if not anchor:
        return text
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    headings = {anchor_of(one): at for at, one in enumerate(parts) if at % 2}
    return parts[headings[anchor] + 1]


QUESTIONS = Path("docs/questions.md")
ANSWERS = re.findall(r"^\| (.+\?.*?) \| \[.+\]\((.+)\) \| `(.+)` \|$", QUESTIONS.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("question", "where", "word"), ANSWERS, ids=[question for question, *_ in ANSWERS])
def test_the_answer_to_a_usual_question_stands_where_the_list_says(question, where, word):
    path, _, anchor = where.partition("#")
    assert word in section(QUESTIONS.parent / path, anchor)
    assert (
        f"]({path.removeprefix('../').removesuffix('README.md')}" in README.read_text()
    )  # a click from the front page


def test_the_list_of_questions_is_read():
    assert len(ANSWERS) == QUESTIONS.read_text().count("\n| ") - 1 > 10  # less the heading


@pytest.mark.parametrize("page", house.PAGES, ids=str)
def test_the_ways_through_the_code_are_short_and_as_the_pages_say(page):
    ways = house.ways(page)
    assert ways and all(0 < lines <= 400 for lines in ways.values()), ways
    for _, functions, told in house.STEP.findall(page.read_text()):
        # to the line they need not be
        assert int(told) == pytest.approx(house.lines_of_step(functions), rel=0.25, abs=8), functions


def test_the_front_page_is_short():
    assert len(README.read_text().splitlines()) <= 120


@pytest.fixture
def my(tmp_path, monkeypatch):
    """A folder with a few images, where the commands of the front page are given."""
    for number in range(48):
        place = tmp_path / "my" / "photos" / ("across" if number % 2 else "down")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(stripes(number)[0])
    (tmp_path / "my" / "photo.jpg").write_bytes(stripes(99)[0])
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = [
    "training.steps=2",
    "training.batch_size_global=8",
    "cluster.workers=0",
    "training.warmup_epochs=0",
    "report_images=8",
]


@pytest.mark.slow
def test_the_five_lines_run(my):
    block = next(
        text for text in blocks(Path(os.environ["PYTHONPATH"]) / README, "") if "data import" in text
    )
    ran = []
    for words in commands_of(block):
        if words[0] == "fovea":
            is_training = words[2].endswith(".yaml")
            subprocess.run([sys.executable, "-m", *words, *(FEW if is_training else [])], check=True)
            ran.append(words[1])
    assert ran == ["data", "pretrain", "finetune", "finetune"]
    assert (my / "runs/classifier/report.html").exists()
    assert len((my / "predicted/predictions.jsonl").read_text().splitlines()) == 48


@pytest.mark.slow
def test_the_five_lines_of_python_run(my):
    block = next(
        text for text in blocks(Path(os.environ["PYTHONPATH"]) / README, "python") if "import_images" in text
    )
    few = 'steps=2, batch_size=8, workers=0, settings={"training.warmup_epochs": 0}'
    code = block.replace("epochs=10", few).replace("config=small", f"config=small, {few}")
    assert code.count(few) == 2
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "accuracy" in told.splitlines()[-1]
