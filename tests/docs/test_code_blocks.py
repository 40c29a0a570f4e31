"""Every code block of the pages: run against a server, or where that needs more than one machine, checked by its types.

A fence says which: `python` and `bash` run; `py` needs a robot or another package, `sh` hardware, data or time.
`text` is a drawing.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

from foreframe_server.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
SHELL = ("", "bash", "sh")
DIRECTIVES = ("{include}", "{toctree}", "{routes}", "{examples}")
STARTS = re.compile(r"(foreframe|pip|taskset|make|PYTHONPATH=\S+|FOREFRAME_\w+=\S+|[^a-z]) ?")
TYPED = ["--ignore-missing-imports", "--follow-imports=silent", "--check-untyped-defs", "--no-error-summary"]
ELLIPSIS = "…"
UsageError = typer.BadParameter.__bases__[0]


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    language: str
    code: str

    @property
    def name(self):
        return f"{self.page.removesuffix('.md').replace('-', '_')}_{self.number}"


def blocks_of(page):
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(page.name, number, language, code) for number, (language, code) in enumerate(found)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
HERE = [block for block in BLOCKS if block.page != "README.md"]  # the README's have a test of their own


def of_languages(blocks, *languages):
    return [block for block in blocks if block.language in languages]


def named(*languages):
    return pytest.mark.parametrize("block", of_languages(HERE, *languages), ids=lambda block: block.name)


@named("python")
def test_python_blocks_run(block, port, reader, tmp_path):
    done = reader([sys.executable, "-W", "error", "-c", block.code.replace("8000", str(port))], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@named("bash")
def test_bash_blocks_run(block, port, reader, tmp_path):
    done = reader(["bash", "-c", "set -euo pipefail\n" + block.code.replace("8000", str(port))], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@named(*SHELL)
def test_shell_blocks_can_be_read(block, reader, tmp_path):
    done = reader(["bash", "-n", "-c", block.code], tmp_path)
    assert done.returncode == 0, done.stderr
    if block.language == "":
        assert all(STARTS.match(line) for line in block.code.splitlines()), "neither a command nor its rest"


@named("yaml")
def test_yaml_blocks_can_be_read(block):
    assert isinstance(yaml.safe_load(block.code), dict)


def test_every_block_is_of_a_kind_that_is_checked():
    known = ("python", "py", "yaml", "text", *SHELL, *DIRECTIVES)
    assert {block.language for block in BLOCKS} <= set(known)
    assert len(of_languages(HERE, "python")) >= 10
    assert len(of_languages(HERE, "bash")) >= 2


def check_types(folder):
    command = [sys.executable, "-m", "mypy", *TYPED, "--config-file=", f"--cache-dir={folder / 'cache'}"]
    return subprocess.run(
        [*command, *sorted(map(str, folder.glob("*.py")))],
        env={"MYPYPATH": str(ROOT / "clients" / "python"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_python_blocks_that_are_not_run_have_fitting_types(tmp_path):
    blocks = of_languages(BLOCKS, "py")
    assert blocks
    for block in blocks:
        (tmp_path / f"{block.name}.py").write_text(block.code, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("from foreframe_client import Client\nClient().predicts()\n", encoding="utf-8")
    (fault,) = check_types(tmp_path).stdout.splitlines()
    assert '"Client" has no attribute "predicts"' in fault


def commands_of(code):
    """Split a script into its commands, without redirections, settings of the environment and comments."""
    command: list[str] = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = iter(lexer)
        for word in words:
            if set(word) <= set("<>"):
                next(words)
            elif set(word) <= set("();|&"):
                yield command
                command = []
            else:
                command.append(word)
        yield command
        command = []


def without_prefix(command):
    """Leave away settings of the environment, `taskset` and where a program lies."""
    words = [word for word in command if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[:2] == ["taskset", "-c"]:
        words = words[3:]
    return [words[0].rsplit("/", 1)[-1], *words[1:]] if words else []


def parse(words):
    """Read a command line as the program does, up to the point where it would begin to work. Raises UsageError."""
    command, context = typer.main.get_command(app), None
    while True:
        is_whole = ELLIPSIS not in words
        context = command.make_context(words[0], words[1:], parent=context, resilient_parsing=not is_whole)
        rest = [*context._protected_args, *context.args]
        if not hasattr(command, "commands") or not rest:
            return
        name, command, _ = command.resolve_command(context, rest)
        words = [name, *rest[1:]]


def refusals(blocks):
    """Tell which command lines of this project's program it would not take, and which targets make does not have."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in blocks:
        for command in map(without_prefix, commands_of(block.code)):
            if command[:1] == ["make"] and command[1] not in targets:
                yield f"{block.name}: make has no {command[1]}"
            if command[:1] != ["foreframe"]:
                continue
            try:
                parse(command)
            except typer.Exit:  # `--help`
                continue
            except UsageError as error:
                yield f"{block.name}: {' '.join(command)}: {error.format_message()}"


def test_command_lines_are_the_program_s_own():
    told = of_languages(BLOCKS, *SHELL)
    assert sum("foreframe " in block.code for block in told) >= 20
    assert list(refusals(told)) == []


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("FOREFRAME_HTTP__PORT=1 foreframe serve --ports 1", "--ports"),
        ("foreframe serves", "serves"),
        ("taskset -c 0 foreframe bench http server --members many > x", "many"),
        ("make everything", "everything"),
    ],
)
def test_a_command_line_that_is_not_is_told(line, word):
    (told,) = refusals([Block("page.md", 0, "sh", line)])
    assert word in told


def commands_in_prose(text):
    return [span.split() for span in re.findall(r"`(foreframe [^`]+)`", FENCE.sub("", text))]


def is_a_command(words):
    command = typer.main.get_command(app)
    for word in words[1:]:
        if not hasattr(command, "commands") or not re.fullmatch(r"[a-z-]+", word) or word.startswith("-"):
            break
        if word not in command.commands:
            return False
        command = command.commands[word]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_prose_exist(page):
    assert [words for words in commands_in_prose(page.read_text(encoding="utf-8")) if not is_a_command(words)] == []


def test_a_command_in_prose_that_does_not_exist_is_told():
    (words,) = commands_in_prose("run `foreframe bench everything`")
    assert not is_a_command(words)
