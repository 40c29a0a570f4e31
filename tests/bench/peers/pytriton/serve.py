"""Triton by PyTriton: KServe v2 with binary tensors, its dynamic batcher, controllers' requests first."""

import numpy as np
from peers.hosting.hosted import Place, open_hosted
from peers.hosting.wire import FRAMES_SHAPE, REPLY_SHAPE, STATES_SHAPE, WorldRequest
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

PRIORITY_LEVELS, BULK = 2, 2
hosted = open_hosted()


@batch
def predict(frames, states, seed, members):
    columns = zip(frames, states, seed[:, 0], members[:, 0], strict=True)
    return [np.stack(hosted.predict([WorldRequest(f, s, int(draw), int(count)) for f, s, draw, count in columns]))]


if __name__ == "__main__":
    place = Place.read()
    batcher = DynamicBatcher(
        max_queue_delay_microseconds=round(1e6 * place.wait_s),
        priority_levels=PRIORITY_LEVELS,
        default_priority_level=BULK,
    )
    config = TritonConfig(http_address="127.0.0.1", http_port=place.port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="world",
            infer_func=predict,
            inputs=[
                Tensor(name="frames", dtype=np.uint8, shape=FRAMES_SHAPE),
                Tensor(name="states", dtype=np.float32, shape=STATES_SHAPE),
                Tensor(name="seed", dtype=np.uint64, shape=(1,)),
                Tensor(name="members", dtype=np.int32, shape=(1,)),
            ],
            outputs=[Tensor(name="mean", dtype=np.uint8, shape=REPLY_SHAPE)],
            config=ModelConfig(max_batch_size=place.max_batch, batcher=batcher),
            strict=True,
        )
        triton.serve()
