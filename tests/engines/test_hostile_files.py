"""Bundles from hostile hands, each with a manifest that agrees with it: refused before any library reads the file.

They are opened in a process where no parser can be imported and every file that is opened is seen.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from foreframe_engines import Bundle, bundle, write_manifest

OPENER = """
import json, os, sys
from pathlib import Path
import foreframe_engines
from foreframe_engines import Bundle, BundleError

seen = []
def watch(event, arguments):
    if event == "open" and not (arguments[2] & os.O_DIRECTORY):
        seen.append(str(arguments[0]))
    if event in ("pickle.find_class", "ctypes.dlopen", "import", "subprocess.Popen", "os.system", "socket.connect"):
        seen.append(event + " " + str(arguments[0]))
for parser in ("onnxruntime", "onnx", "safetensors", "torch", "tensorrt", "yaml", "tarfile"):
    sys.modules[parser] = None
import numpy
numpy.load = None
"".encode("cp437")  # zipfile's, imported at its first use
sys.addaudithook(watch)

for line in sys.stdin:
    path, planted = json.loads(line)
    seen.clear()
    if planted:
        Path(planted).read_bytes()
    try:
        Bundle.open(Path(path))
        said = ""
    except BundleError as error:
        said = str(error)
    print(json.dumps([said, seen]), flush=True)
"""


def edit_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(folder / "step.onnx", load_external_data=False)
    change(model)
    (folder / "step.onnx").write_bytes(model.SerializeToString())


def move_weight(folder: Path, **entries: str) -> None:
    def move(model: onnx.ModelProto) -> None:
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.external_data)
        for entry in weight.external_data:
            entry.value = entries.get(entry.key, entry.value)

    edit_graph(folder, move)


def add_node(folder: Path, operator: str, domain: str = "") -> None:
    edit_graph(folder, lambda model: model.graph.node.append(helper.make_node(operator, ["out"], ["z"], domain=domain)))


def add_function(folder: Path) -> None:
    node, opset = helper.make_node("Abs", ["a"], ["b"]), helper.make_opsetid("", 21)
    edit_graph(folder, lambda m: m.functions.append(helper.make_function("mine", "f", ["a"], ["b"], [node], [opset])))


def add_inner_outside(folder: Path) -> None:
    def add(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        model.graph.node.append(helper.make_node("Constant", [], ["z"], value=tensor))

    edit_graph(folder, add)


def write_tensors(folder: Path, header: bytes, data: bytes = b"") -> None:
    (folder / "more.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)


def tensor(start: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_header(folder: Path, header: dict[str, object], data: bytes = b"") -> None:
    write_tensors(folder, json.dumps(header).encode(), data)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def write_objects(folder: Path) -> None:
    np.savez(folder / "clips.npz", frames=np.array([Exploit()], object))


def write_archive(folder: Path, header: bytes, *, size: int = 0) -> None:
    with zipfile.ZipFile(folder / "clips.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(size))


def write_bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "clips.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", bytes(2**20))
        archive.infolist()[0].file_size = 2**30 + 1  # what the directory will say


def write_tar(folder: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    (folder / "model.tar").write_bytes(content.getvalue())


def link_second_name(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    os.link(outside, folder / "model.safetensors")


def link_weights(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def nest_json(folder: Path) -> None:
    (folder / "contract.json").write_text("[" * 200_000)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / "model.pt").write_bytes(pickle.dumps(Exploit())), "not a kind of file"),
    "pickle by another name": (lambda f: (f / "more.safetensors").write_bytes(pickle.dumps(Exploit())), "not a whole"),
    "TorchScript": (lambda f: (f / "encoder.jit").write_bytes(b"PK\3\4"), "'encoder.jit' is not a kind of file"),
    "engine": (lambda f: (f / "step.plan").write_bytes(b"ptrt"), "'step.plan' is not a kind of file"),
    "plug-in": (lambda f: (f / "ops.so").write_bytes(b"\x7fELF"), "'ops.so' is not a kind of file"),
    "program": (lambda f: (f / "modeling.py").write_text("import os"), "'modeling.py' is not a kind of file"),
    "archive": (write_tar, "'model.tar' is not a kind of file"),
    "YAML": (lambda f: (f / "config.yaml").write_text("!!python/object:os.system"), "not a kind of file"),
    "header of 2**60 bytes": (
        lambda f: (f / "more.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        "not a whole",
    ),
    "header of 17 MiB": (lambda f: write_tensors(f, b" " * 17 * 2**20), "the header has more than"),
    "too many tensors": (
        lambda f: write_header(f, {str(number): tensor(0, 0, [0]) for number in range(100_001)}),
        "100001 tensors",
    ),
    "overlap": (lambda f: write_header(f, {"a": tensor(0, 2, [2]), "b": tensor(1, 3, [2])}, b"xyz"), "'b' begins at"),
    "gap": (lambda f: write_header(f, {"a": tensor(0, 1, [1]), "b": tensor(2, 3, [1])}, b"xyz"), "'b' begins at"),
    "hidden bytes": (lambda f: write_header(f, {"a": tensor(0, 1, [1])}, b"x" * 99), "its tensors end at"),
    "shape that overflows": (lambda f: write_header(f, {"a": tensor(0, 0, [2**32, 2**32])}), "do not hold"),
    "a tensor twice": (lambda f: write_tensors(f, b'{"a": {}, "a": {}}'), "stands twice"),
    "weights at an absolute path": (lambda f: move_weight(f, location="/etc/hostname"), "lies outside the folder"),
    "weights above": (lambda f: move_weight(f, location="../secret"), "lies outside the folder"),
    "weights in a file of no manifest": (lambda f: move_weight(f, location="secret"), "no file of the folder"),
    "weights beyond the end": (lambda f: move_weight(f, offset=str(10**9)), "ends at byte"),
    "weights in a node": (add_inner_outside, "only an initializer"),
    "custom operator": (lambda f: add_node(f, "Evil", "evil.ops"), "operator 'Evil'"),
    "known operator of another domain": (lambda f: add_node(f, "Add", "evil.ops"), "'evil.ops' are not ONNX's own"),
    "compiled context": (lambda f: add_node(f, "EPContext", "com.microsoft"), "operator 'EPContext'"),
    "endless loop": (lambda f: add_node(f, "Loop"), "operator 'Loop'"),
    "functions": (add_function, "functions of its own"),
    "no graph": (lambda f: (f / "step.onnx").write_bytes(pickle.dumps(Exploit())), "not a readable ONNX graph"),
    "objects among arrays": (write_objects, "no plain numbers"),
    "array of 80 GB in 100 bytes": (
        lambda f: write_archive(f, b"{'descr': '|u1', 'fortran_order': False, 'shape': (80000000000,)}\n"),
        "other bytes than its shape",
    ),
    "header that runs": (lambda f: write_archive(f, b"__import__('os').system('true')\n"), "not a whole archive"),
    "archive that unpacks to more than 1 GiB": (write_bomb, "unpacks to more than"),
    "nested JSON": (nest_json, "contract.json: not readable"),
    "link": (link_weights, "'model.safetensors' is not a plain file"),
    "second name": (link_second_name, "is one file with 2 names"),
    "pipe": (lambda f: os.mkfifo(f / "pipe.json"), "'pipe.json' is not a plain file"),
}
_WITHOUT_MANIFEST = {"link", "second name", "pipe"}
"""The manifest itself is not written over these; the one of the intact bundle still holds."""


class Opener:
    """The process; says why a folder is refused, and which files were opened for that."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, folder: Path, planted: Path | None = None) -> tuple[str, list[str]]:
        self._process.stdin.write(json.dumps([str(folder), str(planted or "")]) + "\n")
        self._process.stdin.flush()
        said, seen = json.loads(self._process.stdout.readline())
        return said, seen

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def opener():
    process = Opener()
    process.open(Path("/nothing"))  # what Python itself opens at the first error is not ours
    yield process
    process.close()


def leaves(names: list[str], folder: Path) -> list[str]:
    """List what is no plain name: those are opened by the handle of the folder."""
    return [name for name in names if "/" in name or not (folder / name).exists()]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_before_its_parser_runs(bundle_folder: Path, opener: Opener, name: str) -> None:
    make, words = HOSTILE[name]
    make(bundle_folder)
    if name not in _WITHOUT_MANIFEST:
        write_manifest(bundle_folder)
    said, seen = opener.open(bundle_folder)
    assert words in said
    assert leaves(seen, bundle_folder) == []


def test_a_folder_behind_a_link_is_refused(bundle_folder: Path, opener: Opener) -> None:
    link = bundle_folder.parent / "current"
    link.symlink_to(bundle_folder)
    said, seen = opener.open(link)
    assert "'current' is a link" in said
    assert seen == []


def test_an_intact_bundle_opens_there_and_only_its_own_files_are_read(bundle_folder: Path, opener: Opener) -> None:
    said, seen = opener.open(bundle_folder)
    assert said == ""
    assert leaves(seen, bundle_folder) == []
    assert sorted(seen) == sorted(path.name for path in bundle_folder.iterdir())  # each once


def test_a_reader_that_leaves_the_folder_is_caught(bundle_folder: Path, opener: Opener) -> None:
    """The positive control."""
    planted = bundle_folder.parent / "secret"
    planted.touch()
    _, seen = opener.open(bundle_folder, planted)
    assert leaves(seen, bundle_folder) == [str(planted)]


def test_hard_links_of_a_package_manager_are_taken(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = bundle_folder.parent / "bundles" / "toy"
    shutil.copytree(bundle_folder, installed, copy_function=os.link)
    monkeypatch.setattr(bundle, "BUILTIN", installed.parent)
    assert Bundle.open(installed).contract.model == "toy"
