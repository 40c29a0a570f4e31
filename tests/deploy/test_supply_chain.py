"""Locks are whole and hashed, audits cannot pass by looking nothing up, and the list of parts is the lock."""

import datetime as dt
import importlib.util
import json
import re
import subprocess
import sys
import tomllib

import pytest

TODAY = dt.date(2026, 11, 23)
LOCKS = ["serving", "gpu", "client", "build"]
# Below these, holes are known that a server can be reached through.
FLOORS = {"starlette": (1, 0, 1), "h11": (0, 16), "onnx": (1, 21), "python-multipart": (0, 0, 31)}
_PIN = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)( ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


@pytest.fixture(scope="module")
def audit(deploy):
    spec = importlib.util.spec_from_file_location("audit", deploy / "supply_chain" / "audit.py")
    module = sys.modules["audit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_pins(text):
    """Read a lock. Raises AssertionError when any of it is no pin with hashes."""
    assert _PIN.sub("", text).strip() in {"", "# The following packages were excluded from the output:\n# onnxruntime"}
    return {(name, version) for name, version, _, _ in _PIN.findall(text)}


@pytest.fixture(scope="module")
def pins(deploy):
    return {name: read_pins((deploy / "locks" / f"{name}.txt").read_text()) for name in LOCKS}


@pytest.mark.parametrize("line", ["flask\n", "flask==3.0\n", "--find-links somewhere\n", "./here\n", "git+ssh://x\n"])
def test_what_is_no_hashed_pin_is_found(line):
    with pytest.raises(AssertionError):
        read_pins(line)


def test_everything_that_serves_is_locked(pins, root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["otel"]]
    names = {re.match(r"[A-Za-z0-9._-]+", text)[0].lower() for text in wanted}
    serving = {name for name, _ in pins["serving"]}
    assert names <= serving
    assert names - {"onnxruntime"} <= {name for name, _ in pins["gpu"]}


def test_a_gpus_runtime_is_not_beside_the_other_that_owns_its_module(pins):
    runtimes = {kind: {name for name, _ in pins[kind] if name.startswith("onnxruntime")} for kind in ("serving", "gpu")}
    assert runtimes == {"serving": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}


def test_locks_are_the_versions_that_the_tests_ran_with(pins, root):
    tested = set(re.findall(r"^([a-z0-9._-]+)==([^ \n]+)", (root / "constraints.txt").read_text(), re.MULTILINE))
    names = {name for name, _ in tested}
    for kind in ("serving", "client"):
        assert {pin for pin in pins[kind] if pin[0] in names} <= tested


def test_nothing_that_trains_or_downloads_models_is_served(pins):
    unwanted = {"torch", "transformers", "diffusers", "huggingface-hub", "hf-xet", "pip", "setuptools", "cloudpickle"}
    for kind in ("serving", "gpu"):
        assert {name for name, _ in pins[kind]} & unwanted == set()


@pytest.mark.parametrize("kind", LOCKS)
def test_no_version_with_a_known_hole_is_locked(pins, kind):
    for name, version in pins[kind]:
        number = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        assert number >= FLOORS.get(name, (0,)), (name, version)


def report_of(*parts):
    return {"dependencies": list(parts)}


FINE = {"name": "h11", "version": "0.16.0", "vulns": []}
BAD = {
    "name": "h11",
    "version": "0.14.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2025-43859"], "fix_versions": ["0.16.0"]}],
}
SKIPPED = {"name": "h11", "skip_reason": "not found"}


def test_an_audit_that_finds_nothing_passes(audit):
    assert audit.judge(report_of(FINE), (), TODAY).code == 0


def test_a_finding_fails_and_says_what_fixes_it(audit):
    verdict = audit.judge(report_of(FINE, BAD, SKIPPED), (), TODAY)
    assert verdict.code == 1
    assert verdict.lines[0] == "h11 0.14.0: PYSEC-1, fixed in 0.16.0"


@pytest.mark.parametrize("parts", [[], [SKIPPED], [FINE, SKIPPED]], ids=["nothing", "skipped", "half"])
def test_an_audit_that_looked_nothing_up_does_not_pass(audit, parts):
    assert audit.judge(report_of(*parts), (), TODAY).code == 3


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-2025-43859"])
def test_an_exception_covers_a_finding_until_its_day(audit, name):
    risk = audit.AcceptedRisk(name, "never called", TODAY + dt.timedelta(days=1))
    assert audit.judge(report_of(BAD), (risk,), TODAY).code == 0
    assert audit.judge(report_of(BAD), (risk,), risk.until).code == 1
    assert audit.judge(report_of(FINE), (risk,), risk.until).code == 1


def test_the_exceptions_of_this_repository_can_be_read(audit):
    assert isinstance(audit.read_exceptions(), tuple)


@pytest.mark.parametrize(
    "entry",
    [
        'id = "X"\nwhy = "y"',
        'id = "X"\nwhy = " "\nuntil = 2027-01-01',
        'why = "y"\nuntil = 2027-01-01',
        'id = "X"\nwhy = "y"\nuntil = "soon"',
    ],
)
def test_an_exception_without_a_reason_or_a_day_is_refused(audit, tmp_path, entry):
    path = tmp_path / "exceptions.toml"
    path.write_text(f"[[exception]]\n{entry}\n")
    with pytest.raises(ValueError, match="exception"):
        audit.read_exceptions(path)


def test_the_list_of_parts_is_the_lock_with_its_hashes(pins, root, tmp_path):
    path = tmp_path / "parts.json"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "cyclonedx_py",
        "requirements",
        "--output-reproducible",
        "--pyproject",
    ]
    subprocess.run([*command, "pyproject.toml", "-o", path, "deploy/locks/serving.txt"], cwd=root, check=True)
    parts = json.loads(path.read_bytes())
    assert {(part["name"], part["version"]) for part in parts["components"]} == pins["serving"]
    assert all(part["externalReferences"][0]["hashes"] for part in parts["components"])
    assert parts["metadata"]["component"]["name"] == "foreframe"
