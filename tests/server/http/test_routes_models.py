import httpx
import pytest

from foreframe_server.app import create_app
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio


async def test_a_contract_says_what_the_model_takes(client):
    models = (await client.get("/v1/models")).json()["models"]
    one = (await client.get("/v1/models/toy")).json()

    assert models == [one]
    assert one["id"] == "toy"
    assert one["cameras"] == [{"name": "head", "height": 8, "width": 8}]
    assert (one["context_frames"], one["horizon"], one["state_schema"]) == (4, 8, "toy-joints")


async def test_a_contract_says_how_frames_become_tokens(token_client, client):
    tokens = (await token_client.get("/v1/models/toy")).json()["tokens"]

    assert tokens == {
        "levels": [3, 2], "vocabulary": 6, "rows": 2, "columns": 2, "window_frames": 1, "window_grids": 1,
        "max_grids": 16, "max_candidates": 64, "is_calibrated": False,
    }  # fmt: skip
    assert (await client.get("/v1/models/toy")).json()["tokens"] is None


async def test_a_schema_says_names_units_and_statistics(client):
    schemas = (await client.get("/v1/state-schemas")).json()["state_schemas"]
    one = (await client.get("/v1/state-schemas/toy-joints")).json()

    assert schemas[0] == one
    assert (one["dim"], one["names"][0], one["units"][0], one["std"][0]) == (3, "joint_0", "rad", 1.0)
    assert [schema["is_loaded"] for schema in schemas] == [True] + [False] * (len(schemas) - 1)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("1x-eve-25", 25), ("aloha-14", 14), ("droid-8", 8), ("so101-6", 6), ("unitree-g1-29", 29), ("generic-7", 7)],
)
async def test_known_robots_have_schemas_without_a_model(client, name, dim):
    listed = {schema["name"]: schema for schema in (await client.get("/v1/state-schemas")).json()["state_schemas"]}
    one = (await client.get(f"/v1/state-schemas/{name}")).json()

    assert (one["name"], one["dim"], one["is_loaded"]) == (name, dim, False)
    columns = ("names", "units", "unit_sources", "minimum", "maximum", "semantics")
    assert {len(one[column]) for column in columns} == {dim}
    assert one["source"]
    assert listed.get(name, one) == one


async def test_the_list_says_that_any_width_has_a_schema(client):
    assert (await client.get("/v1/state-schemas")).json()["patterns"] == ["generic-N"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/other", "/v1/state-schemas/other", "/v1/state-schemas/generic-0", "/v1/state-schemas/generic-1025",
        "/v1/state-schemas/generic-N",
    ],
)  # fmt: skip
async def test_an_unknown_name_is_unknown_model(client, path):
    reply = await client.get(path)

    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_model")


async def test_a_dry_run_warns_and_refuses_as_a_prediction_would(client):
    url = "/v1/state-schemas/toy-joints/check"

    good = await client.post(url, json={"values": [[0, 0, 0], [0, 8, 0]]})
    narrow = await client.post(url, json={"values": [[0, 0]]})
    unknown = await client.post("/v1/state-schemas/other/check", json={"values": [[0, 0]]})

    assert (good.json()["rows"], good.json()["first_row"]) == (2, [0, 0, 0])
    assert [warning["code"] for warning in good.json()["warnings"]] == ["state_out_of_range"]
    assert narrow.json()["code"] == "state_dim_mismatch"
    assert unknown.json()["code"] == "unknown_model"


async def test_before_the_model_is_open_nothing_is_known(anyio_backend):
    app = create_app(Settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        replies = [await client.get(path) for path in ("/v1/models", "/v1/state-schemas", "/readyz")]
        replies.append(await client.post("/v1/predictions", json={}))

    assert [reply.json()["code"] for reply in replies] == ["not_ready"] * 4
    assert all(reply.headers["retry-after"] == "1" for reply in replies)
