"""Answers by heart: the mean of a content, which its seed names, a few levels off or never where told so."""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from peers.hosting.wire import unpack

known, shift, last = Path(os.environ["TOY_KNOWN"]), np.uint8(os.environ["TOY_SHIFT"]), int(os.environ["TOY_LAST"])


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = unpack(self.rfile.read(int(self.headers["content-length"])))
        if asked.seed == last > 0:
            os._exit(1)
        body = (np.load(known / f"{asked.seed}-{asked.members}.npy") + shift).tobytes()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
