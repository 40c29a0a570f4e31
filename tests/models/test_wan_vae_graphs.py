"""The graphs of Wan's autoencoder give in ONNX Runtime what diffusers gives, for any number of members."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from foreframe_models.graph import export_graph
from foreframe_models.wan_vae import WanAutoencoder
from foreframe_models.wan_vae_graphs import wan_vae_graphs

NUM_LATENTS, CONTEXT_LATENTS = 6, 2
SHALLOW = {"dim_mult": (1, 1, 1), "temperal_downsample": (True, True), "scale_factor_spatial": 8}

Protos = dict[str, onnx.ModelProto]


@pytest.fixture(scope="module")
def autoencoder(make_wan_vae: Callable[..., WanAutoencoder]) -> WanAutoencoder:
    return make_wan_vae(**SHALLOW)


@pytest.fixture(scope="module")
def protos(autoencoder: WanAutoencoder) -> Protos:
    sizes = {"context_latents": CONTEXT_LATENTS, "num_latents": NUM_LATENTS, "latent_size": (2, 3)}
    return {name: export_graph(graph) for name, graph in wan_vae_graphs(autoencoder, **sizes).items()}


def run(proto: onnx.ModelProto, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: array})
    return output


@torch.no_grad()
def frames_of_diffusers(autoencoder: WanAutoencoder, latents: Tensor) -> np.ndarray:
    mean, std = (number[:, None] for number in (autoencoder.latents_mean, autoencoder.latents_std))
    pictures = autoencoder.vae.decode(latents.transpose(1, 2) * std + mean).sample
    return ((pictures + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()


def draw_latents(batch: int) -> Tensor:
    return torch.randn(batch, NUM_LATENTS, 4, 2, 3, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def test_encode_gives_diffusers_latents(autoencoder: WanAutoencoder, protos: Protos) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 24, 3), dtype=np.uint8)
    pictures = torch.from_numpy(frames).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
    mean, std = (number[:, None] for number in (autoencoder.latents_mean, autoencoder.latents_std))
    expected = (autoencoder.vae.encode(pictures).latent_dist.mode() - mean) / std
    latents = run(protos["encode"], frames)
    assert latents.shape == (1, CONTEXT_LATENTS, 4, 2, 3)
    assert np.abs(latents - expected.transpose(1, 2).numpy()).max() <= 1e-4
    assert np.abs(run(protos["encode"], 255 - frames) - latents).max() > 1e-2


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "num_frames"), [("decode", 21), ("decode_tail", 4)])
def test_decoding_gives_diffusers_frames(
    autoencoder: WanAutoencoder, protos: Protos, name: str, num_frames: int, batch: int
) -> None:
    latents = draw_latents(batch)
    expected = frames_of_diffusers(autoencoder, latents)[:, -num_frames:]
    frames = run(protos[name], latents.numpy())
    assert frames.dtype == np.uint8
    assert frames.shape == (batch, num_frames, 16, 24, 3)
    assert np.abs(frames - expected).max() <= 0.5 + 1e-2  # nothing but the rounding to bytes
    assert np.abs(run(protos[name], latents.flip(1).numpy()) - expected).max() > 10


def test_no_layer_is_repeated_however_many_latents_there_are(autoencoder: WanAutoencoder, protos: Protos) -> None:
    layers = [*autoencoder.vae.decoder.modules(), autoencoder.vae.post_quant_conv]
    num_convolutions = sum(isinstance(layer, nn.Conv2d | nn.Conv3d) for layer in layers)
    for name in ("decode", "decode_tail"):
        assert sum(node.op_type == "Conv" for node in protos[name].graph.node) == num_convolutions


def test_bytes_are_only_at_the_ends_of_a_graph(protos: Protos) -> None:
    for proto in protos.values():
        ends = {value.name for value in (*proto.graph.input, *proto.graph.output)}
        casts = [node for node in proto.graph.node if node.op_type == "Cast"]
        assert all(node.output[0] in ends for node in casts if node.attribute[0].i == onnx.TensorProto.UINT8)
        readers = [node for node in proto.graph.node if "frames" in node.input]
        assert all(node.op_type == "Cast" for node in readers)
