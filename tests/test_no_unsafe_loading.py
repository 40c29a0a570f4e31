"""No module reads an object format that can run code, from anywhere: no exceptions are listed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVING = ("engines/foreframe_engines", "server/foreframe_server", "clients/python/foreframe_client")
TORCH_SIDE = "engines/foreframe_models"

MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"),
    *("multiprocessing", "tarfile", "code", "codeop", "runpy", "xmlrpc", "jsonpickle"),
}
"""`multiprocessing` pickles whatever goes through its pipes and queues."""
NAMES = {"eval", "exec", "compile", "__import__", "ProcessPoolExecutor", "Unpickler", "unpack_archive", "extractall"}
LOADERS = {"torch.load", "torch.jit.load", "torch.hub.load", "jit.load", "hub.load", "pandas.read_pickle"}
KEYWORDS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "auto_map": True}
HOOKS = {"object_hook", "ext_hook"}
"""With which msgpack builds objects."""


def find_unsafe(source: str) -> list[str]:
    return [finding for node in ast.walk(ast.parse(source)) for finding in judge(node)]


def judge(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names):
            yield from (alias.name for alias in names if alias.name.split(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            if module.split(".")[0] in MODULES:
                yield module
            yield from (alias.name for alias in names if alias.name in NAMES or f"{module}.{alias.name}" in LOADERS)
        case ast.Call(func, _, keywords):
            yield from judge_call(ast.unparse(func), keywords)


def judge_call(name: str, keywords: list[ast.keyword]) -> Iterator[str]:
    is_method = "." in name
    last = name.rpartition(".")[2]
    if name in LOADERS or (last in NAMES and not (is_method and last in {"eval", "compile"})):
        yield name
    for keyword in keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in KEYWORDS and value is not (not KEYWORDS[keyword.arg]):
            yield f"{name}({keyword.arg})"
        if keyword.arg in HOOKS and name.startswith("msgpack."):
            yield f"{name}({keyword.arg})"


def sources(folder: str) -> dict[str, str]:
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")}
    assert found
    return found


@pytest.mark.parametrize("folder", SERVING)
def test_what_serves_reads_no_format_that_runs_code(folder: str) -> None:
    findings = {name: found for name, source in sources(folder).items() if (found := find_unsafe(source))}
    assert findings == {}


def test_the_torch_side_reads_only_tensors_and_one_module_reads_torchscript() -> None:
    """Training reads back its own checkpoints, as tensors alone; TorchScript is converted once, never served."""
    findings = {name: set(found) for name, source in sources(TORCH_SIDE).items() if (found := find_unsafe(source))}
    own = {"multiprocessing", "ProcessPoolExecutor", "torch.load"}
    unsafe = {name: rest for name, found in findings.items() if (rest := found - own)}
    assert unsafe == {f"{TORCH_SIDE}/torchscript.py": {"torch.jit.load"}}


@pytest.mark.parametrize("folder", [TORCH_SIDE, *SERVING])
def test_checkpoints_are_read_as_tensors_alone(folder: str) -> None:
    calls = [
        node
        for source in sources(folder).values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    for call in calls:
        assert any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
    assert bool(calls) == (folder == TORCH_SIDE)


def test_torchscript_is_read_by_no_module_that_serves() -> None:
    for folder in SERVING:
        readers = [name for name, source in sources(folder).items() if "foreframe_models.torchscript" in source]
        assert readers == []


PLANTED = [
    "import pickle",
    "import pickle as p",
    "from pickle import loads",
    "import multiprocessing.pool",
    "from concurrent.futures import ProcessPoolExecutor",
    "from torch import load",
    "def f(x):\n    import dill\n    return dill.loads(x)",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.jit.load(path)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "yaml.load(text)\nimport yaml",
    "eval(text)",
    "exec(text)",
    "exec(compile(text, 'x', 'exec'))",
    "__import__(name)",
    "msgpack.unpackb(data, object_hook=build)",
    "shutil.unpack_archive(path)",
    "archive.extractall(folder)",
]


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_loader_is_found(source: str) -> None:
    """The positive control."""
    assert find_unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile(pattern)",
        "np.load(path, allow_pickle=False)",
        "json.loads(text, object_pairs_hook=unique)",
        "safetensors.numpy.load(content)",
    ],
)
def test_harmless_calls_are_left_alone(source: str) -> None:
    assert find_unsafe(source) == []
