"""The application that `serve run` starts: the same app as on one machine, and replicas that run its models."""

from collections.abc import Callable

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from foreframe_server.app import create_app
from foreframe_server.log import configure_logging
from foreframe_server.ray.devices import RemoteDevices
from foreframe_server.ray.handle_link import HandleLink
from foreframe_server.ray.placing import PlacingRouter
from foreframe_server.ray.replica import EngineReplica
from foreframe_server.ray.safety import require_token
from foreframe_server.settings import read_settings

DOOR, ENGINES = "door", "engines"
"""What the deployments are called."""

_MAX_ONGOING = 1024
"""Replicas refuse by the work that waits, not by counting calls."""


class Arguments(BaseModel):
    """What an application is started with, beside the settings of its processes' environments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opener: str = Field(
        default="foreframe_server.opening:open_bundle", description="Dotted name of what opens a model on a replica."
    )
    max_replicas: int = Field(default=8, ge=1, le=256, description="Replicas that are asked at most.")
    max_models: int = Field(default=2, ge=1, description="Models that one replica keeps open.")


def build(arguments: Arguments) -> Application:
    """Build the application. Raises SettingsError where the cluster or the settings are not safe to serve with."""
    require_token()
    create_app(read_settings())  # a wrong setting is told here, and not by replicas that fail again and again
    engines = serve.deployment(
        name=ENGINES,
        max_ongoing_requests=_MAX_ONGOING,
        logging_config=LoggingConfig(enable_access_log=False),  # it would tell of every look at how models stand
        request_router_config=RequestRouterConfig(request_router_class=PlacingRouter),  # type: ignore[arg-type]  # annotated as a dict
    )(EngineReplica)
    door = serve.deployment(name=DOOR, max_ongoing_requests=_MAX_ONGOING)(
        serve.ingress(_door(arguments.max_replicas))()
    )
    return door.bind(engines.bind(arguments.opener, arguments.max_models))


def _door(max_replicas: int) -> Callable[[], FastAPI]:
    def open_door() -> FastAPI:
        require_token()
        configure_logging(is_json=True)
        handle: DeploymentHandle[object] = serve.get_deployment_handle(ENGINES, serve.get_replica_context().app_name)
        devices = RemoteDevices(HandleLink(handle), max_replicas)
        return create_app(read_settings(), open_devices=devices)

    return open_door
