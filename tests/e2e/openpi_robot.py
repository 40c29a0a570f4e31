"""A robot with openpi's client as it is published. Runs in that client's own environment, beside the tests.

`openpi_robot.py ADDRESS FOLDER SCENARIO` reads what to send from FOLDER/sent.npz and writes what came to
FOLDER/came.npz, and what is no array to FOLDER/told.json. A line on standard output says that a scenario waits for one
on standard input.
"""

import json
import sys
from pathlib import Path

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy
from websockets.exceptions import ConnectionClosedError

FIXED = {"sampling": {"seed": 7, "steps": 2}}


def connect(address, path=None, **options):
    """Connect as openpi's examples do, by name and port; a path is only taken in an address of its own."""
    if path is not None:
        return websocket_client_policy.WebsocketClientPolicy(f"ws://{address}{path}", **options)
    host, port = address.rsplit(":", 1)
    return websocket_client_policy.WebsocketClientPolicy(host, int(port), **options)


def observe(sent, number, **fields):
    return {
        "observation/image": sent["frames"][number], "observation/state": sent["states"][number],
        "actions": sent["actions"], "prompt": "push the block", **FIXED, **fields,
    }  # fmt: skip


def wait_for_the_test(note):
    sys.stdout.write(f"{note}\n")
    sys.stdout.flush()
    sys.stdin.readline()


def refusal_of(policy, observation):
    try:
        policy.infer(observation)
    except RuntimeError as error:
        return str(error)
    return None


def told(reply):
    return {name: value for name, value in reply.items() if not isinstance(value, np.ndarray)}


def drive(address, sent):
    """Infer tick by tick, reset, and infer again."""
    policy = connect(address, api_key="id.secret")
    replies = [policy.infer(observe(sent, number)) for number in range(len(sent["frames"]))]
    policy._ws.send(policy._packer.pack({"endpoint": "reset"}))  # the client's own reset tells the server nothing
    status = websocket_client_policy.msgpack_numpy.unpackb(policy._ws.recv())
    again = policy.infer(observe(sent, 0))
    frames = np.stack([reply["frames"] for reply in [*replies, again]])
    facts = [told(reply) for reply in replies]
    return {"frames": frames}, {"metadata": policy.get_server_metadata(), "replies": facts, "status": status}


def broker(address, sent):
    """Take the future frame by frame, as a robot takes a chunk of actions."""
    horizon = len(sent["actions"])
    policy = action_chunk_broker.ActionChunkBroker(connect(address), horizon)
    clip = {"observation/image": sent["frames"], "observation/state": sent["states"]}
    options = {"ensemble": {"size": 2}, "return": {"variance": "map"}}
    frames = [policy.infer(observe(sent, 0, **clip, **options))["frames"] for _ in range(horizon)]
    return {"frames": np.stack(frames)}, {}


def paths(address, sent):
    """Connect to each path that other servers have given this protocol."""
    policies = [connect(address, path) for path in ("/", "/openpi/policy", "/v1/realtime/robot/openpi")]
    frames = [policy.infer(observe(sent, 0))["frames"] for policy in policies]
    return {"frames": np.stack(frames)}, {"metadata": [policy.get_server_metadata() for policy in policies]}


def refused(address, sent):
    """Send what cannot be served, go on, then send what is no message."""
    policy = connect(address)
    text = refusal_of(policy, observe(sent, 0, actions=sent["actions"][:, :1]))
    large = image_tools.resize_with_pad(sent["frames"][0], 16, 16)
    sized = refusal_of(policy, {**observe(sent, 0), "observation/image": large})
    fitting = image_tools.resize_with_pad(large, *sent["frames"].shape[1:3])
    reply = policy.infer({**observe(sent, 0), "observation/image": image_tools.convert_to_uint8(fitting)})
    fatal = refusal_of(policy, [])
    try:
        policy.infer(observe(sent, 0))
        code = None
    except ConnectionClosedError as closed:
        code = closed.rcvd.code
    return {"frames": reply["frames"]}, {"refusal": text, "size": sized, "fatal": fatal, "close": code}


def late(address, sent):
    """Give a request up, as a robot does that stops waiting, and ask for the next tick."""
    policy = connect(address)
    policy._ws.send(policy._packer.pack(observe(sent, 0, request_id="given-up")))
    wait_for_the_test("sent")
    policy._ws.send(policy._packer.pack(observe(sent, 1, request_id="newest")))
    wait_for_the_test("sent again")
    reply = websocket_client_policy.msgpack_numpy.unpackb(policy._ws.recv())
    after = policy.infer(observe(sent, 2, request_id="after"))
    return {"frames": reply["frames"]}, {"ids": [reply["request_id"], after["request_id"]]}


def main(address, folder, scenario):
    with np.load(Path(folder, "sent.npz")) as sent:
        arrays, facts = globals()[scenario](address, dict(sent))
    np.savez(Path(folder, "came.npz"), **arrays)
    Path(folder, "told.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
