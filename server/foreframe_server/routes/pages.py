"""The page and its files, as the package has them: no build, nothing from elsewhere. Knows no model."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Annotated, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import OPEN
from foreframe_server.problems import NotFound

router = APIRouter(include_in_schema=False, dependencies=[OPEN])

_MEDIA: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PLACEHOLDER = b"/assets/version/"
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_ALWAYS_ASK = "no-cache"
_FOR_GOOD = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class PageFiles:
    """Every file by name, pages with their links in place. `version` changes whenever a file does."""

    version: str
    contents: Mapping[str, bytes]


@router.get("/")
async def read_start(request: Request) -> Response:
    """Send the page."""
    return _page(request, "index.html")


@router.get("/docs")
async def read_docs(request: Request) -> Response:
    """Send the page that renders the OpenAPI document."""
    return _page(request, "docs.html")


@router.get("/assets/{version}/{name}")
async def read_asset(
    version: Annotated[str, Path(max_length=64)], name: Annotated[str, Path(max_length=64)]
) -> Response:
    """Send a script, style or picture of the pages of this version. Raises NotFound for another's."""
    files = page_files()
    if version != files.version or name not in files.contents or name.endswith(".html"):
        raise NotFound("This server has no such file.")
    return Response(files.contents[name], headers={"Cache-Control": _FOR_GOOD}, media_type=_media(name))


@cache
def page_files() -> PageFiles:
    """Read the files from the package, once."""
    folder = resources.files("foreframe_server").joinpath("pages")
    found = sorted((entry.name, entry.read_bytes()) for entry in folder.iterdir() if _suffix(entry.name) in _MEDIA)
    version = hashlib.sha256(repr(found).encode()).hexdigest()[:16]
    links = _PLACEHOLDER.replace(b"version", version.encode())
    return PageFiles(version, {name: content.replace(_PLACEHOLDER, links) for name, content in found})


def _page(request: Request, name: str) -> Response:
    content = page_files().contents[name]
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "Cache-Control": _ALWAYS_ASK, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_media(name))


def _media(name: str) -> str:
    return _MEDIA[_suffix(name)]


def _suffix(name: str) -> str:
    return PurePath(name).suffix
