"""`python -m wire.prober PORT`: ask /healthz every 5 ms until standard input ends, then print the slowest, in ms."""

import http.client
import sys
import threading
import time

_EVERY_S = 0.005


def main(port: int) -> None:
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    worst_s = 0.0
    while not is_over.is_set():
        began_s = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        worst_s = max(worst_s, time.monotonic() - began_s)
        time.sleep(_EVERY_S)
    sys.stdout.write(f"{1000 * worst_s}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
