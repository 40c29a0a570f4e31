"""A report's document as Markdown: a heading and its tables."""

from collections.abc import Iterator, Mapping, Sequence

from foreframe_server.reports.sections import Section, lay_out


def write_markdown(document: Mapping[str, object]) -> str:
    """Write the whole report."""
    return "\n".join([f"# {document['experiment']}", *_parts(document)]) + "\n"


def _parts(document: Mapping[str, object]) -> Iterator[str]:
    for section in lay_out(document):
        yield f"\n## {section.title}\n"
        yield from _table(section)


def _table(section: Section) -> Iterator[str]:
    yield _row(section.head)
    yield _row(["---"] * len(section.head))
    for cells in section.rows:
        yield _row(cells)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
