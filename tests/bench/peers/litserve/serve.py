"""LitServe: an API process and a worker process, base64 in JSON because it reads no raw body, its own batching."""

import base64

import litserve
from peers.hosting.hosted import Place, open_hosted

TIMEOUT_S = 120


class Model(litserve.LitAPI):
    def setup(self, device):
        self.hosted = open_hosted()

    def decode_request(self, request):
        return self.hosted.unpack(base64.b64decode(request["body"]))

    def batch(self, inputs):
        return list(inputs)

    def predict(self, x):
        # With batches of one, LitServe hands over the question itself.
        return self.hosted.predict(x) if isinstance(x, list) else self.hosted.predict([x])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"frames": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    place = Place.read()
    api = Model(max_batch_size=place.max_batch, batch_timeout=place.wait_s)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=TIMEOUT_S)
    server.run(host="127.0.0.1", port=place.port, num_api_servers=1, log_level="warning", generate_client_file=False)
