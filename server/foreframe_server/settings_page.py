"""The page of every setting, written from the settings themselves: `python -m foreframe_server.settings_page`."""

from collections.abc import Iterator
from pathlib import Path

from foreframe_server.settings import PREFIX, Settings

PAGE_PATH = Path(__file__).parents[2] / "docs" / "settings.md"
_HEAD = """# Settings

Everything the server can be told, read once from the environment when it starts: an unknown name or a bad value stops
the start with one line that names it. `none` is a value that is absent. `foreframe serve` has options for the ones that
change most often; [deploying](deploy.md) says which matter where, and [README](../README.md) how to begin.
"""


def settings_page() -> str:
    """Write the page as Markdown: a section a group, a row a setting."""
    return _HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    for group, value in Settings():
        title = (type(value).__doc__ or group).splitlines()[0].rstrip(".")
        yield f"\n## {title}\n\n| setting | default | |\n| --- | --- | --- |\n"
        for key, field in type(value).model_fields.items():
            name = f"{PREFIX}{group}__{key}".upper()
            yield f"| `{name}` | `{_default(getattr(value, key))}` | {field.description} |\n"


def _default(value: object) -> str:
    if value is None or value in ((), ""):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE_PATH.write_text(settings_page(), encoding="utf-8")
