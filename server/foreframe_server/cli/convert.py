"""What `foreframe convert` does: models in other people's files become what this server runs."""

from dataclasses import asdict
from pathlib import Path

from foreframe_engines import Bundle
from foreframe_server.cli.console import print_json, print_note
from foreframe_server.cli.faults import needs_torch


def convert_cosmos_tokenizer(encoder: Path, decoder: Path, out: Path, size: int, window: int, *, is_json: bool) -> None:
    """Turn TorchScript archives into graphs and compare both. Raises BundleError, or Fault without torch."""
    with needs_torch():
        from foreframe_models.cosmos_tokenizer import convert_tokenizer
    print_note("converting and comparing; a tokenizer of full size takes some minutes ...")
    facts = convert_tokenizer(encoder, decoder, out, size=size, window=window)
    if is_json:
        print_json({"out": str(out), **asdict(facts)})
    else:
        print_note(
            f"{out}: {facts.equal_ids:.2%} of the golden ids are equal, "
            f"decoded pixels differ by at most {facts.pixel_levels} of 255"
        )


def convert_st_transformer(
    checkpoint: Path, tokenizer: Path, out: Path, name: str | None, revision: str, *, is_json: bool
) -> None:
    """Write a likelihood-only bundle and open it again. Raises BundleError, or Fault without torch."""
    with needs_torch():
        from foreframe_models.cosmos_tokenizer import open_tokenizer
        from foreframe_models.likelihood_bundle import FAMILY, export_likelihood_bundle, likelihood_contract, model_card
        from foreframe_models.token_checkpoint import TokenCheckpoint
    facts, trained = open_tokenizer(tokenizer), TokenCheckpoint.load(checkpoint)
    contract = likelihood_contract(facts, trained.statistics, model=name or FAMILY, revision=revision)
    card = model_card(trained.model, facts).encode()
    print_note("exporting graphs; a model of full size takes some minutes ...")
    export_likelihood_bundle(out, trained, tokenizer, contract, extra_files={"README.md": card})
    digest = Bundle.open(out).digest
    if is_json:
        print_json({"out": str(out), "id": contract.model, "revision": revision, "digest": digest})
    else:
        print_note(f"{contract.model} {revision} lies in {out}")
