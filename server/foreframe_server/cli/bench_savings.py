"""`foreframe bench savings`: what every exact saving saves on a model of the paper's kind, with its parity."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from foreframe_server.cli.console import print_note
from foreframe_server.cli.faults import needs_torch

if TYPE_CHECKING:
    from foreframe_models.studies.savings import Saved

_CLIP_LATENTS = 20
"""Of 77 frames."""


def run_savings(rounds: int, batch: int) -> dict[str, object]:
    """Measure on random weights, on one thread. Raises Fault without torch."""
    with needs_torch():
        import torch

    torch.set_num_threads(1)
    rows = []
    for saved in _measure(rounds, batch):
        print_note(f"{saved.name}: {saved.ratio:.2f}")
        rows.append(
            {key: round(value, 9) if isinstance(value, float) else value for key, value in asdict(saved).items()}
        )
    return {
        "experiment": "bench savings",
        "parameters": "20 million, 512 tokens, a prompt of 512 rows, random weights",
        "batch": batch,
        "rounds": rounds,
        "unit": "ratio of seconds without and with, medians of turns; differences of latents of about unit size",
        "savings": rows,
    }


def _measure(rounds: int, batch: int) -> "Iterator[Saved]":
    from foreframe_models.studies.runtimes import measure_onnxruntime
    from foreframe_models.studies.savings import (
        Workload,
        measure_savings,
        measure_shared_conditions,
        measure_time_terms,
        random_model,
        twenty_million_config,
    )

    model = random_model(twenty_million_config())
    yield from measure_savings(model, Workload(members=1, steps=2, rounds=rounds))
    yield from measure_time_terms(model, Workload(members=batch, rounds=rounds))
    yield measure_shared_conditions(model, Workload(members=batch, rounds=rounds))
    yield _measure_cone(rounds)
    yield from measure_onnxruntime(model, batch=batch, rounds=rounds)


def _measure_cone(rounds: int) -> "Saved":
    """Decode a clip's last four frames by themselves, with a small autoencoder of Wan's kind."""
    import torch

    from foreframe_models.studies.savings import Saved
    from foreframe_models.wan_vae import WanAutoencoder, WanVaeConfig, build_vae, measure_cone

    torch.manual_seed(0)
    config = WanVaeConfig(base_dim=8, decoder_base_dim=16, num_res_blocks=1)
    autoencoder = WanAutoencoder(build_vae(config)).eval().requires_grad_(requires_grad=False)
    timing = measure_cone(autoencoder, torch.randn(1, _CLIP_LATENTS, config.z_dim, 4, 4), num_rounds=rounds)
    return Saved("cone decode", timing.full_s, timing.tail_s, timing.speed_up, timing.max_error)
