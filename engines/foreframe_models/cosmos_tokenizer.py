"""NVIDIA's discrete Cosmos video tokenizers, turned from TorchScript into graphs offline and checked against it.

    DIR/tokenize.onnx    DIR/tokenize.weights      frames uint8 `1 t h w 3` to ids int64 `1 g s`
    DIR/detokenize.onnx  DIR/detokenize.weights    ids back to frames
    DIR/tokenizer.json   DIR/manifest.json         sizes, where it came from, how exact it is; every file's digest

The interface is that of Cosmos-0.1-Tokenizer-DV8x8x8: pictures -1..1 `b 3 t h w` to ids, codes and a loss; ids back.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional

from foreframe_engines.bundle import MANIFEST, verify_folder, write_manifest
from foreframe_engines.errors import CheckpointError
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.types import TokenSpec
from foreframe_models.config_json import read_config
from foreframe_models.graph import Graph, export_graph
from foreframe_models.tokenizer import ScalarQuantizer
from foreframe_models.torchscript import Function, load_script, record, run_single

LEVELS = (8, 8, 8, 5, 5, 5)
FACTS_FILE = "tokenizer.json"
GRAPH_FILES = ("tokenize.onnx", "tokenize.weights", "detokenize.onnx", "detokenize.weights")

LEAST_EQUAL_IDS = 0.999
MOST_PIXEL_LEVELS = 2
"""How far the graphs may be from the archives: an id flips where a latent lies on the border of two levels."""

_MIN_EXTERNAL_BYTES = 1024
_NUM_GOLDEN = 3


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a converted tokenizer is: sizes, the archives it came from, and its distance from them.

    equal_ids: share of golden ids that the graph gives too. pixel_levels: largest difference of decoded pixels, 0..255.
    """

    levels: tuple[int, ...]
    grid: tuple[int, int]
    height: int
    width: int
    window_frames: int
    window_grids: int
    encoder_sha256: str
    decoder_sha256: str
    equal_ids: float
    pixel_levels: int

    def token_spec(self, max_grids: int, max_candidates: int) -> TokenSpec:
        """Say how frames become ids."""
        return TokenSpec(self.levels, self.grid, self.window_frames, self.window_grids, max_grids, max_candidates)


@dataclass(frozen=True, slots=True, eq=False)
class Scripts:
    """The two archives as functions of what the graphs take, for windows of one size."""

    encoder: Path
    decoder: Path
    window: tuple[int, int, int]
    """Frames, height and width."""
    grids: tuple[int, int, int]
    """What the encoder makes of a window: grids, rows and columns."""
    tokenize: Function
    detokenize: Function


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """What the archives themselves say of some windows: ids, and the frames those decode to."""

    windows: UInt8[np.ndarray, "n t h w 3"]
    ids: Int64[np.ndarray, "n g s"]
    frames: UInt8[np.ndarray, "n t h w 3"]


def convert_tokenizer(encoder: Path, decoder: Path, out: Path, *, size: int = 256, window: int = 17) -> TokenizerFacts:
    """Turn two archives into a folder, which is emptied first; `size` is the frames' height and width.

    Raises CheckpointError when an archive is not one, is no discrete tokenizer with Cosmos' id arithmetic, or its
    graph says something else than it does; then nothing is left in the folder.
    """
    scripts = open_scripts(encoder, decoder, (window, size, size))
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_graphs(scripts, partial)
        facts = compare_graphs(scripts, make_golden(scripts), partial)
        (partial / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
        write_manifest(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def open_tokenizer(folder: Path) -> TokenizerFacts:
    """Verify a converted tokenizer's files and read what it is. Raises BundleError."""
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} holds no converted tokenizer; make one with `foreframe convert`")
    verify_folder(folder)
    for name in (*GRAPH_FILES, FACTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name!r} is missing; this is no converted tokenizer")
    return read_config(TokenizerFacts, (folder / FACTS_FILE).read_text(encoding="utf-8"), FACTS_FILE)


def open_scripts(encoder: Path, decoder: Path, window: tuple[int, int, int]) -> Scripts:
    """Load both archives and see that they are a discrete tokenizer. Raises CheckpointError naming the file."""
    encode, decode = load_script(encoder), load_script(decoder)
    pictures = torch.zeros(1, 3, *window)
    ids = _check_ids(_run(encode, pictures, encoder, "pictures"), encoder)
    back = _run(decode, ids.int(), decoder, "ids")
    if not isinstance(back, Tensor) or back.shape != pictures.shape:
        raise CheckpointError(f"{decoder} does not turn ids into pictures of {window}")
    grids = (ids.shape[1], ids.shape[2], ids.shape[3])

    def tokenize(frames: Tensor) -> Tensor:
        pictures = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
        return encode(pictures)[0].flatten(2).long()

    def detokenize(ids: Tensor) -> Tensor:
        pictures = decode(ids.reshape(len(ids), *grids).int())
        return ((pictures.float() + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 4, 1)

    return Scripts(encoder, decoder, window, grids, tokenize, detokenize)


def make_golden(scripts: Scripts) -> Golden:
    """Ask the archives about some windows, drawn the same every time: smooth moving colours, and noise."""
    windows = golden_windows(scripts.window)
    ids = torch.cat([run_single(scripts.tokenize, window[None]) for window in windows])
    frames = torch.cat([run_single(scripts.detokenize, each[None]) for each in ids])
    return Golden(windows.numpy(), ids.numpy(), frames.numpy())


def golden_windows(window: tuple[int, int, int]) -> Tensor:
    """Draw uint8 windows `n t h w 3`."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0.0, 255.0, (_NUM_GOLDEN - 1, 3, 4, 5, 5))).float()
    smooth = functional.interpolate(coarse, size=window, mode="trilinear").permute(0, 2, 3, 4, 1)
    noise = torch.from_numpy(rng.integers(0, 256, (1, *window, 3)))
    return torch.cat([smooth.round(), noise]).to(torch.uint8)


def _run(script: Function, example: Tensor, path: Path, what: str) -> object:
    try:
        return run_single(script, example)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not take {what} of shape {tuple(example.shape)}") from error


def _check_ids(output: object, encoder: Path) -> Tensor:
    """Return the ids `1 g y x` an encoder made, after comparing them with its codes by Cosmos' arithmetic."""
    match output:
        case (Tensor() as ids, Tensor() as codes, *_) if ids.ndim == 4 and not ids.is_floating_point():
            pass
        case _:
            raise CheckpointError(f"{encoder} gives no ids and codes; expected the encoder of a discrete tokenizer")
    expected = ScalarQuantizer(LEVELS).codes(ids.long()).movedim(-1, 1)
    if codes.shape != expected.shape or float((codes - expected).abs().max()) > 1e-2:
        raise CheckpointError(f"{encoder}: its ids are not the sum of digit times base over the levels {LEVELS}")
    return ids


def _write_graphs(scripts: Scripts, folder: Path) -> None:
    frames = torch.zeros(1, *scripts.window, 3, dtype=torch.uint8)
    ids = torch.zeros(1, scripts.grids[0], scripts.grids[1] * scripts.grids[2], dtype=torch.int64)
    tokenize = Graph(record(scripts.tokenize, "frames", frames), {"frames": frames}, ("ids",), {})
    detokenize = Graph(record(scripts.detokenize, "ids", ids), {"ids": ids}, ("frames",), {})
    for name, graph in (("tokenize", tokenize), ("detokenize", detokenize)):
        onnx.save_model(
            export_graph(graph),
            folder / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.weights",
            size_threshold=_MIN_EXTERNAL_BYTES,
        )


def compare_graphs(scripts: Scripts, golden: Golden, folder: Path) -> TokenizerFacts:
    """Compare a folder's graphs with what the archives say. Raises CheckpointError when they differ too much."""
    ids, frames = run_graphs(folder, golden)
    equal_ids = float((ids == golden.ids).mean())
    if equal_ids < LEAST_EQUAL_IDS:
        raise CheckpointError(f"tokenize.onnx: only {equal_ids:.1%} of the ids are those of {scripts.encoder.name}")
    pixel_levels = int(np.abs(frames.astype(np.int16) - golden.frames).max())
    if pixel_levels > MOST_PIXEL_LEVELS:
        raise CheckpointError(f"detokenize.onnx: pixels differ by {pixel_levels} levels from {scripts.decoder.name}'s")
    window_frames, height, width = scripts.window
    return TokenizerFacts(
        levels=LEVELS,
        grid=scripts.grids[1:],
        height=height,
        width=width,
        window_frames=window_frames,
        window_grids=scripts.grids[0],
        encoder_sha256=_sha256(scripts.encoder),
        decoder_sha256=_sha256(scripts.decoder),
        equal_ids=equal_ids,
        pixel_levels=pixel_levels,
    )


def run_graphs(folder: Path, golden: Golden) -> tuple[Int64[np.ndarray, "n g s"], UInt8[np.ndarray, "n t h w 3"]]:
    """Run a folder's graphs on golden windows and golden ids; returns ids and frames."""
    tokenize, detokenize = (OrtSession(folder / f"{name}.onnx", num_threads=1) for name in ("tokenize", "detokenize"))
    ids = [tokenize.run({"frames": window[None]})["ids"] for window in golden.windows]
    frames = [detokenize.run({"ids": each[None]})["frames"] for each in golden.ids]
    return np.concatenate(ids), np.concatenate(frames)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
