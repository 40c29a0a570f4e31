"""What `foreframe convert wan` does: a Wan base and an adapter become a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_engines import Bundle, BundleError
from foreframe_engines.contract_json import StateStatistics, statistics_from_json
from foreframe_server.cli.console import print_json, print_note
from foreframe_server.cli.faults import needs_torch

if TYPE_CHECKING:
    from foreframe_models.wan_bundle import WanServing, WanSources


def convert_wan_model(
    sources: "WanSources", serving: "WanServing", statistics: Path, out: Path, *, is_json: bool
) -> None:
    """Write a bundle and open it again. Raises BundleError or RuntimeUnavailable, or Fault without torch."""
    with needs_torch():
        from foreframe_models.wan_bundle import convert_wan
    read = _read_statistics(statistics)
    print_note("merging and exporting graphs; a model of full size takes a while ...")
    contract = convert_wan(sources, serving, read, out)
    bundle = Bundle.open(out)
    if is_json:
        print_json({"out": str(out), "id": contract.model, "revision": contract.revision, "digest": bundle.digest})
    else:
        print_note(f"{contract.model} {contract.revision} lies in {out}; `foreframe serve --bundle {out}` serves it")


def _read_statistics(path: Path) -> StateStatistics:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read") from error
    return statistics_from_json(text)
