"""mosec: a front in Rust and a worker process, raw bodies, its own dynamic batching."""

import sys

from mosec import Server, Worker
from peers.hosting.hosted import Place, open_hosted

TIMEOUT_MS = 120_000


class Model(Worker):
    def __init__(self):
        self.hosted = open_hosted()

    def deserialize(self, data):
        return self.hosted.unpack(data)

    def forward(self, data):
        # With batches of one, mosec hands over the question itself.
        return self.hosted.predict(data) if isinstance(data, list) else self.hosted.predict([data])[0]

    def serialize(self, data):
        return data.tobytes()


if __name__ == "__main__":
    place = Place.read()
    sys.argv += ["--address", "127.0.0.1", "--port", str(place.port), "--timeout", str(TIMEOUT_MS)]
    sys.argv += ["--log-level", "warning"]
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=place.max_batch, max_wait_time=round(1000 * place.wait_s))
    server.run()
