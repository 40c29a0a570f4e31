"""How the documentation becomes a site: `make docs`. Nothing of it is fetched, when it is built or when it is read."""

import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from api_page import write_routes

project = "foreframe"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["site"]
nitpicky = True

myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "foreframe"
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

_ROOT = Path(__file__).parents[2]
_FRONT = "```{include} ../README.md\n```\n"
_ROUTES = "```{routes}\n```\n"
_EXAMPLES = "```{examples}\n```\n"
_LANGUAGES = {".py": "python", ".sh": "bash"}


def setup(app: Sphinx) -> None:
    """Let pages pass through `rewrite` when they are read."""
    app.connect("source-read", lambda _, page, source: source.__setitem__(0, rewrite(page, source[0])))


def rewrite(page: str, text: str) -> str:
    """Write what a page leaves to be written, and lead links out of the folder to the pages that hold their targets."""
    if page == "index":
        readme = (_ROOT / "README.md").read_text(encoding="utf-8")
        text = text.replace(_FRONT, readme.replace("](docs/", "](").replace("](examples/README.md", "](examples.md"))
    elif page == "api":
        text = text.replace(_ROUTES, write_routes())
    elif page == "examples":
        text = text.replace(_EXAMPLES, "\n".join(_write_examples()))
    return text.replace("](../README.md", "](index.md").replace("](../examples/README.md", "](examples.md")


def _write_examples() -> Iterator[str]:
    for path in sorted((_ROOT / "examples").iterdir()):
        if path.suffix in _LANGUAGES:
            yield f"## {path.name}\n\n```{_LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```\n"
