"""FastAPI alone, as most people start: raw bodies, one thread for the model, first come first served, no batches."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response
from peers.hosting.hosted import Place, open_hosted

app = FastAPI()
hosted = open_hosted()
device = ThreadPoolExecutor(1)


@app.post("/predict")
async def predict(request: Request) -> Response:
    asked = hosted.unpack(await request.body())
    (frames,) = await asyncio.get_running_loop().run_in_executor(device, hosted.predict, [asked])
    return Response(frames.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=Place.read().port, log_level="warning", access_log=False)
