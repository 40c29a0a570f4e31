"""The architecture survives the way through JSON, and anything else than one is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from foreframe_engines.bundle import builtin_bundle
from foreframe_engines.errors import BundleError
from foreframe_models.autoencoder import AutoencoderConfig
from foreframe_models.config_json import MODEL_FILE, ModelConfig, config_from_json, config_to_json
from foreframe_models.rollout import RolloutConfig, eve_tabletop_config
from foreframe_models.state_branch import full_rate_states

Edit = Callable[[dict], object]


FULL_RATE = RolloutConfig(state=replace(full_rate_states(), has_no_states_token=True))


@pytest.mark.parametrize(
    "rollout", [RolloutConfig(), eve_tabletop_config(), FULL_RATE], ids=["5b", "embedded", "full rate"]
)
def test_configurations_come_back_equal(rollout: RolloutConfig) -> None:
    config = ModelConfig(rollout, AutoencoderConfig(channels=4, widths=(8, 16, 24)))
    assert config_from_json(config_to_json(config)) == config


EDITS: dict[str, Edit] = {
    "likelihood: key 'state' is missing": lambda tree: tree.update(likelihood={}),
    "rollout: state: combination: expected one of additive, multiplicative": lambda tree: tree["rollout"][
        "state"
    ].update(combination="sum"),
    "rollout: state: paddings: expected int": lambda tree: tree["rollout"]["state"].update(paddings=["1", "1"]),
    "autoencoder: key 'depth' is unknown": lambda tree: tree["autoencoder"].update(depth=2),
    "rollout: context_latents: expected int": lambda tree: tree["rollout"].update(context_latents="4"),
    "rollout: future_latents: expected int": lambda tree: tree["rollout"].update(future_latents=True),
    "rollout: is_residual: expected bool": lambda tree: tree["rollout"].update(is_residual=1),
    "rollout: target: expected one of velocity, clean": lambda tree: tree["rollout"].update(target="noise"),
    "rollout: latent_size: expected 2 values": lambda tree: tree["rollout"].update(latent_size=[8, 8, 8]),
    "rollout: state: strides: expected a list": lambda tree: tree["rollout"]["state"].update(strides=2),
    "rollout: state: strides: expected int": lambda tree: tree["rollout"]["state"].update(strides=[2.5]),
    "rollout: transformer: expected an object": lambda tree: tree["rollout"].update(transformer=[]),
}


@pytest.mark.parametrize("message", EDITS)
def test_anything_else_is_refused_by_name(message: str) -> None:
    tree = json.loads(config_to_json(ModelConfig(eve_tabletop_config(), AutoencoderConfig())))
    EDITS[message](tree)
    with pytest.raises(BundleError, match=message):
        config_from_json(json.dumps(tree))


def test_a_whole_number_is_a_float_too() -> None:
    tree = json.loads(config_to_json(ModelConfig(RolloutConfig(), AutoencoderConfig())))
    tree["rollout"]["transformer"]["rope_theta"] = 10_000
    assert config_from_json(json.dumps(tree)) == ModelConfig(RolloutConfig(), AutoencoderConfig())


@pytest.mark.parametrize("field", ["combination", "kernel", "paddings", "has_no_states_token"])
def test_a_field_that_an_older_file_did_not_have_takes_its_default(field: str) -> None:
    config = ModelConfig(eve_tabletop_config(), AutoencoderConfig())
    tree = json.loads(config_to_json(config))
    del tree["rollout"]["state"][field]
    assert config_from_json(json.dumps(tree)) == config


def test_the_shipped_bundles_file_is_read() -> None:
    text = (builtin_bundle() / MODEL_FILE).read_text(encoding="utf-8")
    assert config_from_json(text).rollout == eve_tabletop_config()
