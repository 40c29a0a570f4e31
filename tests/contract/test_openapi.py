"""The OpenAPI document in the repository is the one the code makes, and says what the wire page promises."""

import json
import re

import pytest

from foreframe_server.app import OPENAPI_PATH, create_app, write_openapi
from foreframe_server.likelihood_schemas import LikelihoodReply, LikelihoodRequest, TopKReply
from foreframe_server.schemas import PredictionReply, PredictionRequest
from foreframe_server.settings import Settings


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


def test_the_document_in_the_repository_is_current(tmp_path):
    fresh = tmp_path / "openapi.json"
    write_openapi(fresh)

    assert OPENAPI_PATH.read_text() == fresh.read_text(), "run: python -m foreframe_server.app openapi"


def test_every_reference_leads_somewhere(document):
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))

    assert names <= set(document["components"]["schemas"])
    assert {
        "PredictionRequest", "PredictionReply", "LikelihoodRequest", "LikelihoodReply", "ObservationRequest",
        "ObservationReply", "Problem",
    } <= names  # fmt: skip


def test_the_framework_s_own_error_page_is_not_promised(document):
    assert "HTTPValidationError" not in json.dumps(document)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/predictions",
        "/v1/likelihoods",
        "/v1/observations",
        "/v1/observations/{id}",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/sessions/{id}/steps",
        "/v1/sessions/{id}/observations",
        "/v1/sessions/{id}/forks",
        "/v1/sessions/{id}/rollback",
        "/v1/sessions/{id}/reset",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/state-schemas",
        "/v1/state-schemas/{name}",
        "/v1/state-schemas/{name}/check",
        "/healthz",
        "/readyz",
        "/metrics",
        "/version",
        "/v1/limits",
    ],
)
def test_the_wire_s_paths_are_there(document, path):
    assert path in document["paths"]


def test_a_prediction_request_has_the_wire_s_fields():
    assert {field.alias or name for name, field in PredictionRequest.model_fields.items()} == {
        "model", "observation", "observation_id", "future", "frames", "ensemble", "sampling", "deadline_ms",
        "on_deadline", "stream_id", "priority", "return", "cache", "client_time", "metadata",
    }  # fmt: skip


def test_a_prediction_reply_has_the_wire_s_fields():
    assert {
        "id", "model", "revision", "frames", "uncertainty", "ensemble", "degraded", "deadline_met", "seed",
        "determinism", "cache", "timings_ms", "warnings",
    } <= set(PredictionReply.model_fields)  # fmt: skip


def test_a_likelihood_request_has_the_wire_s_fields():
    assert set(LikelihoodRequest.model_fields) == {
        "model", "observation", "observation_id", "target", "scenario", "support", "top_k", "top_k_definition", "map",
        "deadline_ms", "priority", "client_time", "metadata",
    }  # fmt: skip


def test_a_likelihood_reply_has_the_wire_s_fields():
    assert {
        "nats_total", "bits_total", "nats_per_token", "bits_per_token", "bits_per_frame", "bits_per_pixel", "tokens",
        "topk_cross_entropy", "surprise_per_frame", "map", "timings_ms", "deadline_met", "warnings",
    } <= set(LikelihoodReply.model_fields)  # fmt: skip
    assert {"k", "definition", "value", "escape_nats"} <= set(TopKReply.model_fields)


def test_the_websocket_s_messages_are_described(document):
    named = set(re.findall(r"Realtime\w+", document["info"]["description"]))
    kinds = document["components"]["schemas"]["MessageKind"]["enum"]

    assert named == {"RealtimeRequest", "RealtimeReply"}
    assert named <= set(document["components"]["schemas"])
    assert kinds == ["predict", "score", "likelihood", "observe", "step", "reset", "cancel", "ping"]


@pytest.mark.parametrize("path", ["/v1/likelihoods", "/v1/observations"])
def test_documents_go_in_and_come_back(document, path):
    operation = document["paths"][path]["post"]

    assert set(operation["requestBody"]["content"]) == {
        "application/json",
        "application/msgpack",
        "multipart/form-data",
    }
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "application/msgpack"}
    assert set(operation["responses"]["4XX"]["content"]) == {"application/problem+json"}


def test_bits_are_said_to_be_of_ids(document):
    likelihood = document["components"]["schemas"]["LikelihoodReply"]

    assert "not of pixels" in likelihood["description"]
    assert "Bits of the ids" in likelihood["properties"]["bits_per_pixel"]["description"]


def test_predictions_take_and_give_what_the_wire_says(document):
    operation = document["paths"]["/v1/predictions"]["post"]

    assert set(operation["requestBody"]["content"]) == {
        "application/json",
        "application/msgpack",
        "multipart/form-data",
    }
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json", "application/msgpack", "video/mp4", "image/png", "image/webp", "text/event-stream",
    }  # fmt: skip
    assert set(operation["responses"]["4XX"]["content"]) == {"application/problem+json"}


def test_every_event_of_a_stream_is_described(document):
    operation = document["paths"]["/v1/predictions"]["post"]
    words = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]["description"]
    named = set(re.findall(r"\((\w+)\)", words))

    assert named == {"AcceptedEvent", "EstimateEvent", "UpdateEvent", "PredictionReply", "Problem"}
    assert named <= set(document["components"]["schemas"])
