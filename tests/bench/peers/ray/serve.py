"""Ray Serve: raw bodies at a FastAPI ingress, one replica, its own dynamic batching."""

import os

import ray
from fastapi import FastAPI, Request, Response
from peers.hosting.hosted import Place, open_hosted
from ray import serve

PLACE = Place.read()
STORE_BYTES = 100_000_000
app = FastAPI()


@serve.deployment(max_ongoing_requests=256)
@serve.ingress(app)
class Model:
    def __init__(self):
        self.hosted = open_hosted()

    @serve.batch(max_batch_size=PLACE.max_batch, batch_wait_timeout_s=PLACE.wait_s)
    async def predict(self, asked):
        return self.hosted.predict(asked)

    @app.post("/predict")
    async def answer(self, request: Request) -> Response:
        frames = await self.predict(self.hosted.unpack(await request.body()))
        return Response(frames.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(("PEER_", "PYTHONPATH", "OMP"))}
    ray.init(
        address="local",  # never a cluster that runs here already
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        runtime_env={"env_vars": passed_on},
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PLACE.port})
    serve.run(Model.bind(), blocking=True)
