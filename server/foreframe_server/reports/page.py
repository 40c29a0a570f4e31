"""A report as one HTML file that needs nothing else: tables, and its charts drawn inline."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from foreframe_server.plots import Chart
from foreframe_server.reports.sections import Section, lay_out
from foreframe_server.reports.svg import draw_chart

_STYLE = """
:root { color-scheme: light dark; --faint: #8884; --bad: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #6fdd8b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
td { overflow-wrap: anywhere; } .met { color: var(--good); } .missed { color: var(--bad); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; margin: 2rem 0 .5rem; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; } .note { font-weight: 400; opacity: .75; }
svg { max-width: 100%; height: auto; margin-right: 1rem; }
""".strip()


def write_page(document: Mapping[str, object], charts: Sequence[Chart]) -> str:
    """Write the whole report."""
    title = escape(str(document["experiment"]))
    sections = list(lay_out(document))
    figures = [draw_chart(chart) for chart in charts] if document["is_valid"] else []
    # A reader wants what it says first: bars, or why it says nothing, then the pictures.
    body = [*_write_sections(sections[:1]), *figures, *_write_sections(sections[1:])]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _write_sections(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        title, table = escape(section.title), _table(section)
        if section.is_long:
            yield f"<details><summary>{title}</summary>{table}</details>"
        else:
            yield f"<h2>{title}</h2>{table}"


def _table(section: Section) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in section.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in section.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(text: str) -> str:
    mark = f' class="{text}"' if text in {"met", "missed"} else ""
    return f"<td{mark}>{escape(text)}</td>"
