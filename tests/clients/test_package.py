"""What the package promises without being called: Python 3.8, two dependencies, types, and an exact public list."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import foreframe_client

PACKAGE = Path(foreframe_client.__file__).parent
SOURCES = sorted(PACKAGE.glob("*.py"))
SINCE_3_9 = {"removeprefix", "removesuffix", "to_thread", "nextafter", "lcm", "pairwise", "is_relative_to", "with_stem"}
BUILTIN_GENERICS = {"dict", "frozenset", "list", "set", "tuple", "type"}


def findings(source: str) -> list[str]:
    """Say what in a source Python 3.8 cannot run."""
    try:
        tree = ast.parse(source, feature_version=(3, 8))
    except SyntaxError as error:
        return [str(error)]
    found = [] if postpones_annotations(tree) else ["annotations are evaluated"]
    for node in evaluated(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in BUILTIN_GENERICS:
            found.append(f"line {node.lineno}: {node.value.id}[...]")
        if isinstance(node, ast.Attribute) and node.attr in SINCE_3_9:
            found.append(f"line {node.lineno}: {node.attr}")
        if isinstance(node, ast.Call) and any(
            keyword.arg in ("strict", "slots", "kw_only") for keyword in node.keywords
        ):
            found.append(f"line {node.lineno}: a keyword of a later Python")
    return found


def postpones_annotations(tree: ast.Module) -> bool:
    has_code = any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign)) for node in ast.walk(tree))
    future = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__")
    return not has_code or any(alias.name == "annotations" for node in future for alias in node.names)


def evaluated(tree: ast.AST):
    """Walk what runs: everything but annotations."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield node
                yield from evaluated(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_every_module_is_written_for_python_3_8(path):
    assert findings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "match x:\n    case 1: pass",
        "with (open(a) as b, open(c) as d):\n    pass",
        "from __future__ import annotations\nNames = list[str]",
        "def f(x: list[str]) -> None: ...",
        "'a'.removeprefix('b')",
        "zip(a, b, strict=True)",
        "@dataclass(slots=True)\nclass A: ...",
        "try:\n    pass\nexcept* ValueError:\n    pass",
    ],
)
def test_a_later_construct_would_be_found(source):
    assert findings(source) != []


def test_modules_import_numpy_httpx_and_the_standard_library_only():
    allowed = {"numpy", "httpx", "foreframe_client", "__future__"}
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:
        pytest.skip("this Python cannot list its standard library")
    for path in SOURCES:
        for node in evaluated_imports(ast.parse(path.read_text(encoding="utf-8"))):
            assert node in allowed or node in standard, f"{path.name} imports {node}"


def evaluated_imports(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        else:
            yield from evaluated_imports(node)


def test_the_public_list_is_exact():
    named = {name for name, value in vars(foreframe_client).items() if not isinstance(value, ModuleType)}
    public = {name for name in named if not name.startswith("_")} | {"__version__"}
    assert set(foreframe_client.__all__) == public
    assert foreframe_client.__all__ == sorted(foreframe_client.__all__)


def test_environments_without_gymnasium_say_what_to_install():
    code = "import sys; sys.modules['gymnasium'] = None; import foreframe_client.gym"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("needs gymnasium: pip install 'foreframe-client[gym]'\n")


def test_results_that_hold_arrays_are_printed_without_them():
    kinds = [value for value in vars(foreframe_client).values() if dataclasses.is_dataclass(value)]
    holding = {kind for kind in kinds if any("np.ndarray" in str(each.type) for each in dataclasses.fields(kind))}
    assert {foreframe_client.Prediction, foreframe_client.StepPrediction} < holding
    for kind in holding:
        fields = {each.name: np.zeros((7, 5)) for each in dataclasses.fields(kind)}
        words = ", ".join(f"{name}=float64[7, 5]" for name in fields)
        assert repr(kind(**fields)) == f"{kind.__name__}({words})"
    goal = foreframe_client.Objective.goal_image(np.zeros((4, 5, 3), np.uint8))
    assert "'image': uint8[4, 5, 3]" in repr(goal)


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_the_readme_example_is_python_3_8_and_uses_public_names():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    tree = ast.parse(block, feature_version=(3, 8))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(imported) <= set(foreframe_client.__all__)
