"""The site: built with every warning an error, complete, and without a word to anybody but its own host."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foreframe_server.app import OPENAPI_PATH, create_app
from foreframe_server.errors import CODES
from foreframe_server.keys import Scope
from foreframe_server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FETCHED = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']*""")
FETCHED_BY_STYLES = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")


def build(source, out):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-c", str(DOCS / "site")]
    return subprocess.run(
        [*command, "-d", str(out / "doctrees"), str(source), str(out / "site")],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out / "site"


@pytest.fixture(scope="module")
def api_page():
    spec = importlib.util.spec_from_file_location("api_page", DOCS / "site" / "api_page.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["api_page"] = module
    spec.loader.exec_module(module)
    return module


def test_every_page_is_there_and_can_be_found(site):
    names = {page.stem for page in DOCS.glob("*.md")}
    assert names <= {page.stem for page in site.glob("*.html")}
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{name}"' in index for name in names)
    front = (site / "index.html").read_text(encoding="utf-8")
    assert [name for name in names - {"index"} if f'href="{name}.html"' not in front] == []


def test_nothing_is_fetched_from_elsewhere(site):
    assert FETCHED.search('<script src="https://cdn.example/x.js">')
    assert FETCHED_BY_STYLES.search("@import url(//fonts.example/x.css)")
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    styles = [style.read_text(encoding="utf-8") for style in site.rglob("*.css")]
    assert [FETCHED.findall(page) for page in pages if FETCHED.search(page)] == []
    assert not any(FETCHED_BY_STYLES.search(style) for style in styles)


def test_the_readme_is_the_front(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="examples.html"' in front
    assert "_images/demo.png" in front


def test_links_that_lead_nowhere_stop_the_build(tmp_path):
    source = tmp_path / "pages"
    source.mkdir()
    faults = "[a page](gone.md) [a part](#no-such-part) ![a picture](gone.png)"
    (source / "index.md").write_text(f"# A page\n\n{faults}\n", encoding="utf-8")
    done = build(source, tmp_path)
    assert done.returncode == 1
    assert [word for word in ("gone.md", "no-such-part", "gone.png") if word not in done.stderr] == []


def test_the_api_page_has_every_route_field_and_error(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    document = json.loads(OPENAPI_PATH.read_text(encoding="utf-8"))
    words = re.sub(r"<[^>]+>", "", page)
    routes = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert [route for route in routes if route not in words] == []
    fields = {name for schema in document["components"]["schemas"].values() for name in schema.get("properties", {})}
    assert [name for name in fields if f">{name}<" not in page] == []
    assert [error.code for error in CODES if f">{error.code}<" not in page] == []
    assert "/v1/realtime/robot/openpi" in words


def test_access_is_what_the_routes_declare(api_page):
    document = json.loads(OPENAPI_PATH.read_text(encoding="utf-8"))
    routes = {(route.method, route.path): route for route in api_page.read_routes(document, create_app(Settings()))}
    assert len(routes) == sum(map(len, document["paths"].values()))
    assert routes["GET", "/healthz"].access == "everybody"
    assert routes["POST", "/v1/predictions"].access == f"`{Scope.PREDICT}`"
    assert routes["GET", "/v1/models"].access == "any key"
    assert routes["GET", "/metrics"].access.startswith(f"`{Scope.METRICS}`, on the operators' listener")


def test_a_route_that_the_app_does_not_have_is_told(api_page):
    document = {"paths": {"/v1/wishes": {"get": {"tags": ["models"]}}}}
    with pytest.raises(KeyError):
        list(api_page.read_routes(document, create_app(Settings())))
