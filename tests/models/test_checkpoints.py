"""Folders of weights become the transformer they hold, in memory of their own size; a wrong one is refused by name."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from foreframe_engines.errors import BundleError, CheckpointError, RuntimeUnavailable
from foreframe_models import checkpoints
from foreframe_models.checkpoint_files import find_tensors
from foreframe_models.checkpoint_names import from_original
from foreframe_models.checkpoints import digest_tensors, load_rollout, load_transformer, read_transformer_config
from foreframe_models.rollout import RolloutConfig
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.wan import WanConfig, WanTransformer

SMALL = WanConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    ffn_dim=40,
    freq_dim=16,
    text_dim=4096,
    in_channels=4,
    out_channels=4,
)
DIFFUSERS_CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.35.0",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 4096,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-06,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
    "pos_embed_seq_len": None,
}
ORIGINAL_CONFIG = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.33.0",
    "dim": 24,
    "eps": 1e-06,
    "ffn_dim": 40,
    "freq_dim": 16,
    "in_dim": 4,
    "model_type": "ti2v",
    "num_heads": 2,
    "num_layers": 2,
    "out_dim": 4,
    "text_len": 512,
}
NORM = "blocks.1.norm2.weight"
QUERY = "blocks.0.attn1.to_q.weight"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SINGLE = "diffusion_pytorch_model.safetensors"

# Written out and not derived, so that a wrong rule cannot agree with itself.
ORIGINAL_NAMES = {
    "blocks.1.modulation": "blocks.1.scale_shift_table",
    "blocks.0.self_attn.q.weight": "blocks.0.attn1.to_q.weight",
    "blocks.0.self_attn.k.bias": "blocks.0.attn1.to_k.bias",
    "blocks.0.self_attn.v.weight": "blocks.0.attn1.to_v.weight",
    "blocks.0.self_attn.o.weight": "blocks.0.attn1.to_out.0.weight",
    "blocks.0.self_attn.norm_q.weight": "blocks.0.attn1.norm_q.weight",
    "blocks.0.cross_attn.q.bias": "blocks.0.attn2.to_q.bias",
    "blocks.0.cross_attn.o.bias": "blocks.0.attn2.to_out.0.bias",
    "blocks.1.cross_attn.norm_k.weight": "blocks.1.attn2.norm_k.weight",
    "blocks.1.norm3.weight": "blocks.1.norm2.weight",
    "blocks.1.norm3.bias": "blocks.1.norm2.bias",
    "blocks.0.ffn.0.weight": "blocks.0.ffn.net.0.proj.weight",
    "blocks.0.ffn.2.bias": "blocks.0.ffn.net.2.bias",
    "patch_embedding.weight": "patch_embedding.weight",
    "time_embedding.0.weight": "condition_embedder.time_embedder.linear_1.weight",
    "time_embedding.2.bias": "condition_embedder.time_embedder.linear_2.bias",
    "time_projection.1.weight": "condition_embedder.time_proj.weight",
    "text_embedding.0.weight": "condition_embedder.text_embedder.linear_1.weight",
    "text_embedding.2.weight": "condition_embedder.text_embedder.linear_2.weight",
    "head.modulation": "scale_shift_table",
    "head.head.weight": "proj_out.weight",
    "head.head.bias": "proj_out.bias",
}


def small_transformer() -> WanTransformer:
    torch.manual_seed(0)
    return WanTransformer(SMALL).eval()


@pytest.fixture(scope="module")
def tensors() -> Mapping[str, Tensor]:
    return small_transformer().state_dict()


def write_shards(folder: Path, tensors: Mapping[str, Tensor], num_shards: int = 3) -> None:
    """Write `model-0000k-of-0000n` files and their index, as diffusers does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(DIFFUSERS_CONFIG))
    names, weight_map = sorted(tensors), {}
    for shard in range(num_shards):
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[shard::num_shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


def write_single(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] = DIFFUSERS_CONFIG) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE)


def assert_holds(model: WanTransformer, tensors: Mapping[str, Tensor]) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_shards_become_the_model_that_they_hold(tmp_path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_shards(tmp_path, tensors)
    model = load_transformer(tmp_path)
    assert model.config == SMALL
    assert_holds(model, tensors)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    latents, timestep, prompt = torch.randn(1, 4, 2, 4, 4), torch.tensor([[0.0, 500.0]]), torch.randn(1, 3, 4096)
    with torch.no_grad():
        assert torch.equal(model(latents, timestep, prompt), small_transformer()(latents, timestep, prompt))


def test_a_pipelines_folder_is_entered(tmp_path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_single(tmp_path / "transformer", tensors)
    (tmp_path / "model_index.json").write_text("{}")
    assert_holds(load_transformer(tmp_path), tensors)


def test_what_is_loaded_does_not_change_with_the_file(tmp_path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_single(tmp_path, tensors)
    model = load_transformer(tmp_path)
    with (tmp_path / SINGLE).open("r+b") as file:
        file.seek(10_000)
        file.write(b"\xff" * 100_000)
    assert_holds(model, tensors)


def test_original_names_are_the_diffusers_ones() -> None:
    assert {name: from_original(name) for name in ORIGINAL_NAMES} == ORIGINAL_NAMES


def test_the_original_layout_is_the_same_model(tmp_path: Path, tensors: Mapping[str, Tensor]) -> None:
    names = {from_original(name): name for name in original_names()}
    assert names.keys() == tensors.keys()
    write_single(tmp_path, {names[name]: tensor for name, tensor in tensors.items()}, ORIGINAL_CONFIG)
    model = load_transformer(tmp_path)
    assert model.config == SMALL
    assert_holds(model, tensors)


def original_names() -> list[str]:
    attention = [f"{part}.{kind}" for part in "qkvo" for kind in ("weight", "bias")] + [
        "norm_q.weight",
        "norm_k.weight",
    ]
    inner = [f"{branch}_attn.{name}" for branch in ("self", "cross") for name in attention]
    inner += [
        "modulation",
        "norm3.weight",
        "norm3.bias",
        *(f"ffn.{i}.{kind}" for i in "02" for kind in ("weight", "bias")),
    ]
    pairs = ["patch_embedding", "time_projection.1", "head.head"]
    pairs += [f"{kind}_embedding.{layer}" for kind in ("time", "text") for layer in "02"]
    top = ["head.modulation", *(f"{name}.{kind}" for name in pairs for kind in ("weight", "bias"))]
    return top + [f"blocks.{index}.{name}" for index in range(2) for name in inner]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_rounded_on_the_way_except_where_single_precision_matters(
    tmp_path: Path, tensors: Mapping[str, Tensor], stored: torch.dtype
) -> None:
    write_shards(tmp_path, {name: tensor.to(stored) for name, tensor in tensors.items()})
    loaded = load_transformer(tmp_path, torch.bfloat16).state_dict()
    kept = [name for name in loaded if loaded[name].dtype == torch.float32]
    assert {"scale_shift_table", NORM, "condition_embedder.time_embedder.linear_1.weight"} <= set(kept)
    assert QUERY not in kept
    for name, tensor in tensors.items():
        expected = tensor.to(stored)
        assert torch.equal(loaded[name], expected.float() if name in kept else expected.to(torch.bfloat16))


def test_a_rollout_model_takes_the_folders_sizes_and_starts_without_states(
    tmp_path: Path, tensors: Mapping[str, Tensor]
) -> None:
    write_shards(tmp_path, tensors)
    state = StateBranchConfig(num_states=4, raw_states=(3,), hidden=16)
    model = load_rollout(tmp_path, RolloutConfig(state=state, latent_size=(4, 4), prompt_length=3))
    assert model.config.transformer == SMALL
    assert_holds(model.transformer, tensors)
    tables = model.state_branch.per_block(model.condition(torch.randn(1, 21, 4))[0])
    assert all(torch.equal(table, torch.zeros_like(table)) for table in tables)


def test_diffusers_own_folder_loads_and_predicts_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {key: value for key, value in DIFFUSERS_CONFIG.items() if not key.startswith("_")}
    other = WanTransformer3DModel(**arguments).eval()
    other.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_transformer(tmp_path)
    assert_holds(model, other.state_dict())
    half = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, tensor in load_transformer(tmp_path, torch.bfloat16).state_dict().items():
        assert torch.equal(tensor.to(half.state_dict()[name].dtype), half.state_dict()[name])
    latents, prompt = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 3, 4096)
    with torch.no_grad():
        expected = other(latents, torch.tensor([500.0]), prompt, return_dict=False)[0]
        torch.testing.assert_close(model(latents, torch.full((1, 2), 500.0), prompt), expected, atol=1e-4, rtol=0.0)


def test_the_full_size_reads_every_name_of_the_5b(tmp_path: Path) -> None:
    config = DIFFUSERS_CONFIG | {
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "in_channels": 48,
        "out_channels": 48,
        "freq_dim": 256,
        "ffn_dim": 14336,
        "num_layers": 30,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_transformer_config(tmp_path) == WanConfig()
    original = ORIGINAL_CONFIG | {"dim": 3072, "num_heads": 24, "num_layers": 30, "ffn_dim": 14336, "freq_dim": 256}
    (tmp_path / "config.json").write_text(json.dumps(original | {"in_dim": 48, "out_dim": 48}))
    assert read_transformer_config(tmp_path) == WanConfig()


Tensors = dict[str, Tensor]
WRONG_TENSORS: dict[str, Callable[[Tensors], object]] = {
    f"tensor {NORM!r} is missing": lambda tensors: tensors.pop(NORM),
    r"tensors 'blocks.1.attn1.norm_k.weight' and \d+ more are missing": lambda tensors: [
        tensors.pop(name) for name in list(tensors) if name.startswith("blocks.1")
    ],
    "tensor 'blocks.0.attn2.add_k_proj.weight' is not part of this model": lambda tensors: tensors.update(
        {"blocks.0.attn2.add_k_proj.weight": torch.zeros(24, 24)}
    ),
    rf"tensor {QUERY!r} is \(24, 12\), the model's is \(24, 24\)": lambda tensors: tensors.update(
        {QUERY: torch.zeros(24, 12)}
    ),
    f"tensor {QUERY!r} is F64; expected one of F32, F16, BF16": lambda tensors: tensors.update(
        {QUERY: tensors[QUERY].double()}
    ),
    f"tensor {QUERY!r} is F8_E4M3": lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.float8_e4m3fn)}),
    "tensor 'blocks.1.norm3.weight' is not part of this model|tensor 'blocks.1.norm2.weight' is missing": (
        lambda tensors: tensors.update({"blocks.1.norm3.weight": tensors.pop(NORM)})
    ),
    "are the same one": lambda tensors: tensors.update({"blocks.0.self_attn.q.weight": tensors[QUERY].clone()}),
}


@pytest.mark.parametrize("message", WRONG_TENSORS)
def test_wrong_tensors_are_refused_by_name(tmp_path: Path, tensors: Mapping[str, Tensor], message: str) -> None:
    changed = dict(tensors)
    WRONG_TENSORS[message](changed)
    write_single(tmp_path, changed)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path)


def edit_index(folder: Path, edit: Callable[[dict], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


def shard(folder: Path, number: int) -> Path:
    return folder / f"diffusion_pytorch_model-{number:05}-of-00003.safetensors"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def overstate_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


WRONG_FILES: dict[str, Callable[[Path], object]] = {
    "00002-of-00003.safetensors is missing": lambda folder: shard(folder, 2).unlink(),
    "00002-of-00003.safetensors is not a whole safetensors file": lambda folder: truncate(shard(folder, 2)),
    "00003-of-00003.safetensors is not a whole safetensors file": lambda folder: overstate_header(shard(folder, 3)),
    r"says that tensor .* lies in .*00002-of-00003.safetensors, which does not hold it": lambda folder: edit_index(
        folder, lambda index: index["weight_map"].update({"scale_shift_table": shard(folder, 2).name})
    ),
    r"does not name tensor 'scale_shift_table', which .*of-00003.safetensors holds": lambda folder: edit_index(
        folder, lambda index: index["weight_map"].pop("scale_shift_table")
    ),
    r"promises 17 bytes of tensors, its files hold \d+": lambda folder: edit_index(
        folder, lambda index: index["metadata"].update(total_size=17)
    ),
    "weight_map: '../../secret.safetensors' is not the name of a file beside it": lambda folder: edit_index(
        folder, lambda index: index["weight_map"].update({NORM: "../../secret.safetensors"})
    ),
    "model-00001.bin is a pickle": lambda folder: edit_index(
        folder, lambda index: index["weight_map"].update({NORM: "model-00001.bin"})
    ),
    "weight_map: expected an object": lambda folder: edit_index(folder, lambda index: index.update(weight_map=[])),
    "index.json: not readable JSON": lambda folder: (folder / INDEX).write_text("{"),
    "cannot tell which one is meant": lambda folder: (folder / INDEX).unlink(),
    "holds neither config.json nor": lambda folder: (folder / "config.json").unlink(),
    "config.json: not readable JSON": lambda folder: (folder / "config.json").write_text("sizes"),
    "config.json: expected an object": lambda folder: (folder / "config.json").write_text("[]"),
}


@pytest.mark.parametrize("message", WRONG_FILES)
def test_wrong_files_are_refused_by_name(tmp_path: Path, tensors: Mapping[str, Tensor], message: str) -> None:
    write_shards(tmp_path, tensors)
    assert_holds(load_transformer(tmp_path), tensors)
    WRONG_FILES[message](tmp_path)
    with pytest.raises(BundleError, match=message):
        load_transformer(tmp_path)


WRONG_CONFIGS = {
    "_class_name is 'UNet2DModel'": {"_class_name": "UNet2DModel"},
    "num_layers: expected an integer": {"num_layers": "2"},
    "patch_size: expected 3 values": {"patch_size": [2, 2]},
    "qk_norm is 'rms_norm', which this model does not do": {"qk_norm": "rms_norm"},
    "cross_attn_norm is False": {"cross_attn_norm": False},
    "window_attention is True": {"window_attention": True},
    "pos_embed_seq_len is 514": {"pos_embed_seq_len": 514},
    "eps: expected a finite number": {"eps": "small"},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_another_architecture_is_refused_by_its_key(tmp_path: Path, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS_CONFIG | WRONG_CONFIGS[message]))
    with pytest.raises(BundleError, match=message):
        read_transformer_config(tmp_path)


def test_a_width_that_the_heads_do_not_share_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL_CONFIG | {"dim": 25}))
    with pytest.raises(BundleError, match="dim: 25 does not divide by 2 heads"):
        read_transformer_config(tmp_path)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "wan.pth", "wan.CKPT"])
def test_a_pickle_is_named_and_never_opened(tmp_path: Path, name: str) -> None:
    opened = tmp_path / "opened"
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS_CONFIG))
    (tmp_path / name).write_bytes(f"cposix\nsystem\n(S'touch {opened}'\ntR.".encode())
    with pytest.raises(CheckpointError, match=f"{name}, a pickle, which is never opened"):
        load_transformer(tmp_path)
    assert not opened.exists()


def test_a_pickle_beside_the_weights_is_nobodys_business(tmp_path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_single(tmp_path, tensors)
    (tmp_path / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"cposix\n")
    assert_holds(load_transformer(tmp_path), tensors)


def test_an_empty_folder_and_none_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        find_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        find_tensors(tmp_path / "absent")


def test_too_little_memory_is_said_with_numbers(
    tmp_path: Path, tensors: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, tensors)
    monkeypatch.setattr(checkpoints, "free_host_bytes", lambda: 1000)
    with pytest.raises(RuntimeUnavailable, match=r"needs about 0\.0 GiB of memory"):
        load_transformer(tmp_path)


def test_a_digest_is_of_values_not_of_files(tmp_path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_shards(tmp_path, tensors)
    names = {from_original(name): name for name in original_names()}
    write_single(tmp_path / "o", {names[name]: tensor for name, tensor in tensors.items()}, ORIGINAL_CONFIG)
    folders, types = (tmp_path, tmp_path / "o"), (None, torch.bfloat16)
    digests = {digest_tensors(load_transformer(folder, kind).state_dict()) for folder in folders for kind in types}
    assert len(digests) == 1
    changed = dict(tensors) | {NORM: tensors[NORM] + 0.1}
    assert digest_tensors(changed) not in digests
    assert digest_tensors({name: tensor for name, tensor in tensors.items() if name != NORM}) not in digests


PEAK = """
import sys, torch
from pathlib import Path
from foreframe_models.checkpoint_files import find_tensors
from foreframe_models.checkpoints import load_transformer, read_transformer_config
from foreframe_models.wan import WanTransformer
from safetensors.torch import load_file

folder, way = Path(sys.argv[1]), sys.argv[2]
if way == "naive":
    model = WanTransformer(read_transformer_config(folder))
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    model.load_state_dict(tensors)
else:
    model = load_transformer(folder, {"half": torch.bfloat16, "same": None}[way])
total = sum(float(tensor.float().sum()) for tensor in model.state_dict().values())
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), total)
"""


def peak_bytes(folder: Path, way: str) -> int:
    """Load in a process of its own, touch every value, and return the most memory that it ever had."""
    command = [sys.executable, "-c", PEAK, str(folder), way]
    peak, total = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert float(total) != 0.0
    return int(peak)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_loading_takes_the_files_size_in_memory_and_little_more(tmp_path: Path) -> None:
    config = WanConfig(num_layers=4, num_attention_heads=8, ffn_dim=8192, text_dim=512, in_channels=4, out_channels=4)
    with torch.device("meta"):
        shapes = WanTransformer(config).state_dict()
    write_shards(tmp_path, {name: torch.full(tensor.shape, 0.5) for name, tensor in shapes.items()}, num_shards=4)
    sizes = {"num_attention_heads": 8, "attention_head_dim": 128, "ffn_dim": 8192, "num_layers": 4}
    sizes |= {"freq_dim": 256, "text_dim": 512}
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS_CONFIG | sizes))
    held = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    bound = int(1.15 * held) + 500 * 10**6
    assert peak_bytes(tmp_path, "same") <= bound
    assert peak_bytes(tmp_path, "half") <= bound
    assert peak_bytes(tmp_path, "naive") > bound  # the bound is one that a second copy would break
