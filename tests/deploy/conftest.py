"""What the tests of deployment share: where it lies, and the part of Helm's template language that the chart uses."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\|+|[^\s|]+')
_OPENING = ("if", "with", "range", "define")


@pytest.fixture(scope="session")
def deploy():
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def root():
    return ROOT


class Chart:
    """A chart, rendered as `helm template` does as far as this chart goes: if, with, range, define and five functions.

    Anything else in a template raises, so that nothing is rendered by guesswork.
    """

    def __init__(self, folder, name="fleet"):
        self.folder, self.name = folder, name
        self.values = yaml.safe_load((folder / "values.yaml").read_text())
        self.defined = {}
        for path in sorted(folder.glob("templates/*.tpl")):
            self._run(_parse(path.read_text()), {}, {})

    def render(self, **values):
        """Return the documents of all templates, by kind and name."""
        scope = {
            "Values": _merged(self.values, values),
            "Release": {"Name": self.name, "Service": "Helm"},
            "Chart": {"AppVersion": yaml.safe_load((self.folder / "Chart.yaml").read_text())["appVersion"]},
        }
        documents = {}
        for path in sorted(self.folder.glob("templates/*.yaml")):
            text = self._run(_parse(path.read_text()), scope, {"$": scope})
            for document in yaml.safe_load_all(text):
                if document is not None:
                    documents[document["kind"], document["metadata"]["name"]] = document
        return documents

    def _run(self, nodes, dot, names):
        return "".join(node if isinstance(node, str) else self._act(node, dot, names) for node in nodes)

    def _act(self, node, dot, names):
        kind, head, body, otherwise = node
        if kind == "value":
            value = self._pipe(head, dot, names)
            return "" if value is None else str(value)
        if kind == "define":
            self.defined[json.loads(head)] = body
            return ""
        if kind == "range":
            return self._repeat(head, body, dot, names)
        value = self._pipe(head, dot, names)
        if not value:
            return self._run(otherwise, dot, names)
        return self._run(body, value if kind == "with" else dot, names)

    def _repeat(self, head, body, dot, names):
        variables, _, source = head.partition(":=")
        key, value = (name.strip() for name in variables.split(","))
        items = sorted((self._pipe(source, dot, names) or {}).items())
        return "".join(self._run(body, item, {**names, key: name, value: item}) for name, item in items)

    def _pipe(self, text, dot, names):
        value, commands = None, [[]]
        for word in _WORD.findall(text):
            if word == "|":
                commands.append([])
            else:
                commands[-1].append(word)
        for index, (first, *rest) in enumerate(commands):
            arguments = [self._look_up(word, dot, names) for word in rest] + ([value] if index else [])
            value = self._call(first, arguments) if first.isalpha() else self._look_up(first, dot, names)
        return value

    def _call(self, function, arguments):
        match function, arguments:
            case "include", [name, dot]:
                return self._run(self.defined[name], dot, {"$": dot})
            case "nindent", [width, text]:
                return "\n" + "\n".join(" " * width + line for line in text.splitlines())
            case "toYaml", [value]:
                return yaml.safe_dump(value, sort_keys=True).rstrip("\n")
            case "quote", [value]:
                return json.dumps(str(value))
            case "or", values:
                return next((value for value in values if value), values[-1])
        raise NotImplementedError(f"{function} with {len(arguments)} arguments")

    def _look_up(self, word, dot, names):
        if word.startswith('"'):
            return json.loads(word)
        if word.isdigit():
            return int(word)
        root, _, path = word.partition(".")
        value = names[root] if root else dot
        for key in filter(None, path.split(".")):
            value = value[key]
        return value


def _parse(text):
    """Read a template into text and (kind, head, body, otherwise)."""
    pieces, position = [], 0
    for action in _ACTION.finditer(text):
        before = text[position : action.start()]
        position = action.end()
        pieces += [before.rstrip() if action[1] else before, (action[2], bool(action[3]))]
    pieces.append(text[position:])
    for index, piece in enumerate(pieces[:-1]):
        if not isinstance(piece, str) and piece[1]:
            pieces[index + 1] = pieces[index + 1].lstrip()
    nodes, rest = _collect(pieces)
    assert not rest, "an `end` too many"
    return nodes


def _collect(pieces):
    nodes = []
    while pieces:
        piece, *pieces = pieces
        if isinstance(piece, str):
            nodes.append(piece)
            continue
        word, _, head = piece[0].partition(" ")
        if word in {"end", "else"}:
            return nodes, [piece, *pieces]
        if word not in _OPENING:
            nodes.append(("value", piece[0], [], []))
            continue
        body, pieces = _collect(pieces)
        otherwise = []
        if pieces[0][0] == "else":
            otherwise, pieces = _collect(pieces[1:])
        assert pieces[0][0] == "end", f"`{word}` has no end"
        nodes.append((word, head, body, otherwise))
        pieces = pieces[1:]
    return nodes, []


def _merged(base, over):
    both = {**base, **over}
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            both[key] = _merged(base[key], value)
    return both


@pytest.fixture(scope="session")
def chart(deploy):
    return Chart(deploy / "helm" / "foreframe")


def _run_helm(folder, values, tmp):
    path = tmp / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        ["helm", "template", "fleet", str(folder), "--values", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    documents = (document for document in yaml.safe_load_all(done.stdout) if document)
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.fixture
def helm_template(deploy, tmp_path):
    """Render with Helm itself."""
    if shutil.which("helm") is None:
        pytest.skip("helm is not installed; the chart is rendered by the tests' own reader alone")
    return lambda **values: _run_helm(deploy / "helm" / "foreframe", values, tmp_path)
