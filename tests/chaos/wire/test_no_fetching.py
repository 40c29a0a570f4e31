"""What serves fetches nothing: it imports no HTTP client, and no request has a field for an address or for memory."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foreframe_server
from foreframe_server.app import OPENAPI_PATH

SERVER = Path(foreframe_server.__file__).parent
CLIENTS = {"httpx", "requests", "aiohttp", "urllib3", "urllib.request", "http.client", "ftplib", "tritonclient", "wget"}
OWN_TOOLS = ("cli/", "load/", "ray/local_cluster.py")
"""Commands that ask a running server, load generators, and what starts a cluster on this machine to measure it."""

ADDRESSES = re.compile(r"(?:^|_)(?:ur[li]s?|href|link|endpoint|callback|webhook|host|proxy)(?:_|$)")
MEMORY = re.compile(r"(?:^|_)(?:shm|shared_memory|memory_region|segment|region|byte_offset|offset)(?:_|$)")


def find_clients(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name in CLIENTS or name.split(".")[0] in CLIENTS}


def field_names(document: dict) -> set[str]:
    """Names of all fields and parameters that a client may send."""
    sent = [part for name, part in document["components"]["schemas"].items() if not name.endswith(("Reply", "Problem"))]
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    parameters = [each["name"] for operation in operations for each in operation.get("parameters", ())]
    return {name for part in sent for name in part.get("properties", ())} | set(parameters)


def formats(document: object) -> set[str]:
    if isinstance(document, dict):
        own = {document["format"]} if isinstance(document.get("format"), str) else set()
        return own.union(*map(formats, document.values()))
    return set().union(*map(formats, document)) if isinstance(document, list) else set()


@pytest.fixture(scope="module")
def document():
    return json.loads(OPENAPI_PATH.read_text())


def test_no_module_of_the_server_imports_an_http_client():
    modules = [path for path in SERVER.rglob("*.py") if not path.relative_to(SERVER).as_posix().startswith(OWN_TOOLS)]
    assert len(modules) > 100
    assert {str(path): found for path in modules if (found := find_clients(path.read_text()))} == {}


def test_a_server_that_runs_has_none_loaded_of_its_own():
    """Python's own come with other modules, as uvicorn's; what could fetch for a request does not."""
    script = (
        "import sys, foreframe_server.app as app, foreframe_server.processes.child\n"
        "app.create_app(app.Settings())\n"
        "print(*(name for name in sys.modules if name.startswith('foreframe_server.load.') or name.split('.')[0] in "
        f"{sorted(CLIENTS - {'urllib.request', 'http.client'})}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_request_has_a_field_for_an_address_or_for_memory(document):
    names = field_names(document)
    assert {"observation", "future", "name"} <= names
    assert [name for name in names if ADDRESSES.search(name) or MEMORY.search(name)] == []
    assert formats(document) & {"uri", "url", "iri", "uri-reference", "hostname", "ipv4", "ipv6"} == set()


@pytest.mark.parametrize(
    "source",
    ["import httpx", "from urllib.request import urlopen", "from http import client", "import requests.sessions"],
)
def test_control_a_client_is_found(source):
    assert find_clients(f"def fetch():\n    {source}\n")


@pytest.mark.parametrize("name", ["image_url", "url", "shared_memory_region", "callback", "byte_offset"])
def test_control_a_field_for_it_is_found(document, name):
    document = {**document, "components": {"schemas": {"PredictionRequest": {"properties": {name: {}}}}}}
    assert [each for each in field_names(document) if ADDRESSES.search(each) or MEMORY.search(each)] == [name]
