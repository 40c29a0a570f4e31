"""Routes without injection still let nobody in whom their policy refuses."""

import pytest
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import OPEN, PolicyMissing
from foreframe_server.routes.direct import DirectRoute
from foreframe_server.routes.predictions import router as predictions


async def answer(request: Request) -> Response:
    return Response(request.method)


async def take(request: Request, number: int) -> Response:
    return Response(f"{request.method} {number}")


def build_router(*dependencies, endpoint=answer):
    router = APIRouter(dependencies=list(dependencies), route_class=DirectRoute)
    router.add_api_route("/", endpoint)
    return router


def test_a_route_with_one_policy_is_made():
    assert len(build_router(OPEN).routes) == 1


@pytest.mark.parametrize("dependencies", [[], [OPEN, OPEN], [OPEN, Depends(lambda: None)], [Depends(lambda: None)]])
def test_a_route_without_exactly_its_policy_is_refused(dependencies):
    with pytest.raises(PolicyMissing):
        build_router(*dependencies)


def test_an_endpoint_that_needs_more_than_its_request_is_refused():
    with pytest.raises(TypeError):
        build_router(OPEN, endpoint=take)


def test_predictions_are_direct():
    assert all(isinstance(route, DirectRoute) for route in predictions.routes)
