"""A session as bytes: what the next step needs, the last answer and the start, signed. It knows no store.

    msgpack map · HMAC-SHA256 32

Of the history only the next context goes along. Arrays are openpi's maps, as on the wire; nothing is unpickled.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

import msgpack
import numpy as np

from foreframe_engines import EnsembleSpec, NoisePlan, Prediction, Reducer, Sampling, Strategy
from foreframe_server.calls import Answer, CacheResult, Degraded, Timings
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.codec.documents import read_document
from foreframe_server.codec.media import Media
from foreframe_server.errors import InvalidRequest
from foreframe_server.sessions import MadeStep, Session, ShadowCheck, StepAsk, StepSampling, Stretch

VERSION: Final = 2
_SIGNATURE_BYTES = hashlib.sha256().digest_size
_CONTEXT = b"foreframe session 1 "
_MAX_VALUES = 65_536

Fields = Mapping[str, object]


class CorruptSession(Exception):
    """Bytes are not this session of this model, or were not written by a holder of the secret."""


def encode_session_blob(session: Session, secret: bytes, fingerprint: str) -> bytes:
    """Write a session as signed bytes."""
    document = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "session_id": session.session_id,
        "tenant": session.tenant,
        "seed": session.seed,
        "ttl_s": session.ttl_s,
        "step_id": session.step_id,
        "num_frames": session.num_frames,
        "shadow": asdict(session.shadow),
        "start": _stretch_fields(session.start),
        "context": _stretch_fields(session.context),
        "last": None if session.last is None else _last_fields(session.last),
    }
    body = msgpack.packb(document, default=map_for_msgpack)
    return body + _sign(body, secret)


def decode_session_blob(session_id: str, blob: bytes, secret: bytes, fingerprint: str) -> Session:
    """Read a session back; its arrays are read-only. Raises CorruptSession."""
    body, signature = blob[:-_SIGNATURE_BYTES], blob[-_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _sign(body, secret)):
        raise CorruptSession("the signature does not match")
    try:
        document = read_document(body, Media.MSGPACK, max_values=_MAX_VALUES)
        if (document["version"], document["fingerprint"], document["session_id"]) != (VERSION, fingerprint, session_id):
            raise CorruptSession("the session is another one, or another model's")
        return _session(document)
    except (InvalidRequest, KeyError, TypeError, ValueError) as error:
        raise CorruptSession("the fields are not a session's") from error


def _sign(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT + body, "sha256")


def _session(document: Fields) -> Session:
    context = _stretch(document, "context")
    num_frames = _whole(document, "num_frames")
    shadow = _map(document, "shadow")
    return Session(
        session_id=_text(document, "session_id"),
        tenant=_text(document, "tenant"),
        seed=_whole(document, "seed"),
        ttl_s=_number(document, "ttl_s"),
        start=_stretch(document, "start"),
        seen=context,
        step_id=_whole(document, "step_id"),
        num_frames=num_frames,
        num_seen=num_frames,
        last=None if document["last"] is None else _last(_map(document, "last")),
        shadow=ShadowCheck(_whole(shadow, "count"), _number(shadow, "total_db"), _number(shadow, "total_baseline_db")),
    )


def _stretch_fields(stretch: Stretch) -> Fields:
    return {"step_id": stretch.step_id, "frames": stretch.frames, "states": stretch.states}


def _stretch(fields: Fields, name: str) -> Stretch:
    found = _map(fields, name)
    return Stretch(_whole(found, "step_id"), _array(found, "frames"), _array(found, "states"))


def _last_fields(last: MadeStep) -> Fields:
    answer, prediction, ask = last.answer, last.answer.prediction, last.ask
    return {
        "ask": {"states": ask.states, "sampling": asdict(ask.sampling), "ensemble": asdict(ask.ensemble)},
        "frames": prediction.frames,
        "members": prediction.members,
        "variance": prediction.variance,
        "spread_per_frame": [float(spread) for spread in prediction.spread_per_frame],
        "sampling": asdict(prediction.sampling),
        "correlation": prediction.correlation,
        "effective_members": prediction.effective_members,
        "standard_error": prediction.standard_error,
        "cache": answer.cache,
        "from_cache": answer.from_cache,
        "deadline_met": answer.deadline_met,
        "degraded": None if answer.degraded is None else asdict(answer.degraded),
        "determinism": answer.determinism,
    }


def _last(fields: Fields) -> MadeStep:
    """Read the last step back; what it took the server that made it is not told."""
    asked = _map(fields, "ask")
    sampling = _map(asked, "sampling")
    ask = StepAsk(
        _array(asked, "states"),
        sampling=StepSampling(
            strategy=Strategy(_text(sampling, "strategy")),
            steps=None if sampling["steps"] is None else _whole(sampling, "steps"),
            guidance=_optional_number(sampling, "guidance"),
            seed=None if sampling["seed"] is None else _whole(sampling, "seed"),
        ),
        ensemble=_ensemble(_map(asked, "ensemble")),
    )
    answer = Answer(
        prediction=_prediction(fields, ask.ensemble),
        cache=CacheResult(_text(fields, "cache")),
        from_cache=_whole(fields, "from_cache"),
        timings=Timings(),
        deadline_met=bool(fields["deadline_met"]),
        degraded=None if fields["degraded"] is None else _degraded(_map(fields, "degraded")),
        determinism=_text(fields, "determinism"),
    )
    return MadeStep(ask, answer)


def _degraded(fields: Fields) -> Degraded:
    return Degraded(_whole(fields, "members"), _whole(fields, "steps"), _text(fields, "reason"))


def _prediction(fields: Fields, ensemble: EnsembleSpec) -> Prediction:
    frames, drawn, spread = _array(fields, "frames"), _map(fields, "sampling"), fields["spread_per_frame"]
    if not isinstance(spread, list):
        raise TypeError("spread_per_frame is no list")
    return Prediction(
        frame_indices=tuple(range(1, len(frames) + 1)),
        frames=frames,
        members=_array(fields, "members"),
        variance=_array(fields, "variance"),
        spread_per_frame=tuple(spread),
        sampling=Sampling(
            strategy=Strategy(_text(drawn, "strategy")),
            steps=_whole(drawn, "steps"),
            seed=_whole(drawn, "seed"),
            guidance=_number(drawn, "guidance"),
        ),
        ensemble=ensemble,
        correlation=_optional_number(fields, "correlation"),
        effective_members=_optional_number(fields, "effective_members"),
        standard_error=_optional_number(fields, "standard_error"),
    )


def _ensemble(fields: Fields) -> EnsembleSpec:
    return EnsembleSpec(
        size=_whole(fields, "size"),
        reducer=Reducer(_text(fields, "reducer")),
        noise=NoisePlan(_text(fields, "noise")),
        tolerance=_optional_number(fields, "tolerance"),
    )


def _map(fields: Fields, name: str) -> Fields:
    value = fields[name]
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no map")
    return value


def _array(fields: Fields, name: str) -> np.ndarray:
    value = fields[name]
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is no array")
    return value


def _text(fields: Fields, name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _whole(fields: Fields, name: str) -> int:
    value = fields[name]
    if not isinstance(value, int):
        raise TypeError(f"{name} is no whole number")
    return value


def _number(fields: Fields, name: str) -> float:
    value = fields[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is no number")
    return float(value)


def _optional_number(fields: Fields, name: str) -> float | None:
    return None if fields[name] is None else _number(fields, name)
