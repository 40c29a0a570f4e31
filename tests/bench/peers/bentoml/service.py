"""BentoML: raw bodies at a mounted app, which asks a service whose calls BentoML batches adaptively."""

import bentoml
import numpy as np
from peers.hosting.hosted import Place, open_hosted
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TIMEOUT_S = 120
PLACE = Place.read()


async def predict(request: Request) -> Response:
    body = np.frombuffer(await request.body(), np.uint8)
    (frames,) = await bentoml.get_current_service().model.to_async.predict(body[None])
    return Response(frames.tobytes(), media_type="application/octet-stream")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
class Model:
    def __init__(self):
        self.hosted = open_hosted()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=PLACE.max_batch, max_latency_ms=1000 * TIMEOUT_S)
    def predict(self, bodies: np.ndarray) -> np.ndarray:
        return np.stack(self.hosted.predict([self.hosted.unpack(body.tobytes()) for body in bodies]))


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
@bentoml.asgi_app(app)
class Front:
    model = bentoml.depends(Model)
