"""What the server counts, in Prometheus' words. It knows names, labels and units, and nothing of what is measured.

Every label takes its value from a closed set; anything else is counted as `other`, so no client can add a series.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from foreframe_engines import Contract
from foreframe_server.calls import HoldTimings, ReadTimings, ScoreTimings, StageTimings, Timings
from foreframe_server.cost_model import SlowQuantile
from foreframe_server.errors import CODES

OTHER: Final = "other"
ROUTES: Final = frozenset(
    {
        "/",
        "/admin/models",
        "/admin/models/{name}/load",
        "/admin/models/{name}/unload",
        "/assets/{version}/{name}",
        "/docs",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/openpi/policy",
        "/readyz",
        "/v1/likelihoods",
        "/v1/limits",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/models/{id}/clips",
        "/v1/models/{id}/clips/{index}",
        "/v1/observations",
        "/v1/observations/{id}",
        "/v1/predictions",
        "/v1/realtime",
        "/v1/realtime/robot/openpi",
        "/v1/scores",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/sessions/{id}/forks",
        "/v1/sessions/{id}/observations",
        "/v1/sessions/{id}/reset",
        "/v1/sessions/{id}/rollback",
        "/v1/sessions/{id}/steps",
        "/v1/state-schemas",
        "/v1/state-schemas/{name}",
        "/v1/state-schemas/{name}/check",
        "/v1/status",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/models/{name}",
        "/v2/models/{name}/config",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/stats",
        "/v2/models/{name}/versions/{version}",
        "/v2/models/{name}/versions/{version}/config",
        "/v2/models/{name}/versions/{version}/infer",
        "/v2/models/{name}/versions/{version}/ready",
        "/v2/models/{name}/versions/{version}/stats",
        "/v2/repository/index",
        "/v2/repository/models/{name}/load",
        "/v2/repository/models/{name}/unload",
        "/version",
    }
)
CODE_LABELS: Final = frozenset(
    {"ok", "not_found", "method_not_allowed", "extension_missing", "client_left", *(error.code for error in CODES)}
)
_RECORDS: Final = (Timings, ReadTimings, ScoreTimings, HoldTimings)
_STAGES_OF: Final = {
    record: frozenset(field.name for field in fields(record)) - {"step_batch_mean", "cold"} for record in _RECORDS
}
STAGES: Final = frozenset[str]().union(*_STAGES_OF.values())
WIRE_STAGES: Final = frozenset({"receive", "decode", "respond", "total"})
WORK_STAGES: Final = STAGES - WIRE_STAGES
DEADLINE_OUTCOMES: Final = frozenset({"met", "late", "degraded", "exceeded"})
VERDICTS: Final = frozenset({"usual", "partly", "unusual", "uncalibrated"})
MEMBER_KINDS: Final = frozenset({"requested", "returned", "cached"})
CACHE_TIERS: Final = frozenset({"memory", "redis"})
CACHE_EVENTS: Final = frozenset(
    {"hit", "miss", "stored", "kept", "evicted", "corrupt", "failed", "skipped", "opened", "closed"}
    | {"leased", "awaited"}
)
CANCEL_STAGES: Final = frozenset({"queue", "denoise"})
SESSION_EVENTS: Final = frozenset(
    {"created", "forked", "deleted", "expired", "evicted", "resumed", "shared", "not_shared", "corrupt"}
)
RESTART_REASONS: Final = frozenset({"crash", "hang", "corrupt", "start"})
RESCUE_OUTCOMES: Final = frozenset({"repeated", "refused", "given_up"})
LOAD_RESULTS: Final = frozenset({"loaded", "failed", "unloaded"})
RECORDING_RESULTS: Final = frozenset({"written", "dropped", "full", "failed"})
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BITS: Final = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)
_DECIBELS: Final = (10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 33, 36, 40, 50)
_POWERS: Final = (1, 2, 4, 8, 16, 32, 64)
_BUSY_WINDOW_S: Final = 10.0


def _closed(value: str, allowed: frozenset[str]) -> str:
    return value if value in allowed else OTHER


class Metrics:
    """Every series of the server, on a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._busy_ratios: dict[int, float] = {}
        self._waiting_s: dict[int, float] = {}
        self._stages: dict[str, Histogram] = {}
        self._add_request_series()
        self._add_engine_series()
        self._add_outcome_series()
        self._add_session_series()

    def _add_request_series(self) -> None:
        registry = self.registry
        self._requests = Counter("foreframe_requests", "Requests answered.", ["route", "code"], registry=registry)
        self._request_seconds = Histogram(
            "foreframe_request_seconds", "First byte to last.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._stage_seconds = Histogram(
            "foreframe_stage_seconds", "Time in one stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._connections = Gauge("foreframe_connections", "Open websockets.", registry=registry)
        self._members = Histogram(
            "foreframe_ensemble_members", "Members of one answer.", ["kind"], buckets=_POWERS, registry=registry
        )

    def _add_engine_series(self) -> None:
        registry = self.registry
        self._queue_seconds = Gauge("foreframe_queue_step_seconds", "Predicted work that waits.", registry=registry)
        self._cost = Gauge(
            "foreframe_cost_seconds",
            "What work takes: its running mean, and what three of four times lie below.",
            ["work", "rows", "statistic"],
            registry=registry,
        )
        self._cost_error = Gauge(
            "foreframe_cost_error_ratio", "Mean relative error of predicted forwards.", registry=registry
        )
        self._batch_rows = Histogram(
            "foreframe_step_batch_rows", "Rows of one forward.", buckets=_POWERS, registry=registry
        )
        self._bits = Histogram(
            "foreframe_bits_per_token", "Mean bits of the ids of one likelihood.", buckets=_BITS, registry=registry
        )
        self._observations = Gauge("foreframe_observations", "Uploaded observations held.", registry=registry)
        self._observation_bytes = Gauge("foreframe_observation_bytes", "Memory that they hold.", registry=registry)
        self._busy = Gauge("foreframe_engine_busy_ratio", "Share of time in engine calls.", registry=registry)
        self._restarts = Counter(
            "foreframe_worker_restarts", "Worker processes that were replaced.", ["reason"], registry=registry
        )
        self._rescues = Counter("foreframe_rescues", "Calls that a worker died in.", ["outcome"], registry=registry)
        self._model = Info("foreframe_model", "Models that are served.", ["model"], registry=registry)
        self._loads = Counter("foreframe_model_loads", "Loads and unloads of models.", ["result"], registry=registry)

    def _add_outcome_series(self) -> None:
        registry = self.registry
        self._spreads = Counter(
            "foreframe_spread", "Predictions of several members, by their spread.", ["verdict"], registry=registry
        )
        self._deadlines = Counter("foreframe_deadline", "Calls that had a deadline.", ["outcome"], registry=registry)
        self._cache_events = Counter(
            "foreframe_cache_events", "What the result cache did.", ["tier", "result"], registry=registry
        )
        self._superseded = Counter("foreframe_superseded", "Jobs replaced by a newer one.", registry=registry)
        self._cancelled = Counter("foreframe_cancelled", "Jobs nobody waited for.", ["stage"], registry=registry)
        self._recordings = Counter("foreframe_recordings", "Answers to record.", ["result"], registry=registry)
        self._rejected = Counter(
            "foreframe_rejected", "Calls that got an error instead of an answer.", ["reason"], registry=registry
        )

    def _add_session_series(self) -> None:
        registry = self.registry
        self._sessions = Gauge("foreframe_sessions", "Sessions held.", registry=registry)
        self._session_bytes = Gauge("foreframe_session_bytes", "Memory that they hold.", registry=registry)
        self._session_events = Counter(
            "foreframe_session_events", "What became of sessions.", ["event"], registry=registry
        )
        self._psnr = Histogram(
            "foreframe_prediction_psnr_db",
            "Of a session's predictions against the frames that arrived.",
            buckets=_DECIBELS,
            registry=registry,
        )

    def describe_model(self, contract: Contract, determinism: str) -> None:
        """Say that a model is served, in place of an earlier version of it."""
        self._model.labels(contract.model).info(
            {
                "family": contract.family,
                "revision": contract.revision,
                "determinism": determinism,
            }
        )

    def forget_model(self, name: str) -> None:
        """Say that a model is not served any more."""
        self._model.remove(name)

    def count_load(self, result: str) -> None:
        """Count what became of a load. result: loaded, failed, unloaded."""
        self._loads.labels(_closed(result, LOAD_RESULTS)).inc()

    def count_request(self, route: str, code: str, seconds: float) -> None:
        """Count one reply. route: the route's template. code: `ok` or an error's code."""
        route = _closed(route, ROUTES)
        self._requests.labels(route, _closed(code, CODE_LABELS)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def connected(self) -> AbstractContextManager[None]:
        """Count one open websocket for as long as a block runs."""
        return self._connections.track_inprogress()

    def observe_stages(self, timings: StageTimings, stages: frozenset[str] = WORK_STAGES) -> None:
        """Record those stages that took time. stages: the models' work by default, or `WIRE_STAGES`."""
        for stage in stages & _STAGES_OF[type(timings)]:
            milliseconds = getattr(timings, stage)
            if milliseconds > 0:
                self._stage(stage).observe(milliseconds / 1000)

    def _stage(self, stage: str) -> Histogram:
        if stage not in self._stages:
            self._stages[stage] = self._stage_seconds.labels(stage)
        return self._stages[stage]

    def observe_members(self, kind: str, count: int) -> None:
        """Record how many members an answer asked for, got or found. kind: requested, returned, cached."""
        self._members.labels(_closed(kind, MEMBER_KINDS)).observe(count)

    def observe_batch(self, rows: int) -> None:
        """Record the rows of one forward."""
        self._batch_rows.observe(rows)

    def observe_bits(self, bits_per_token: float) -> None:
        """Record the mean bits of the ids of one likelihood."""
        self._bits.observe(bits_per_token)

    def observe_observations(self, count: int, num_bytes: int) -> None:
        """Say how many uploaded observations are held, and their memory."""
        self._observations.set(count)
        self._observation_bytes.set(num_bytes)

    def observe_sessions(self, count: int, num_bytes: int) -> None:
        """Say how many sessions are held, and their memory, what they share counted once."""
        self._sessions.set(count)
        self._session_bytes.set(num_bytes)

    def count_session(self, event: str) -> None:
        """Count what became of a session. event: created, forked, deleted, expired, evicted, resumed, shared, ..."""
        self._session_events.labels(_closed(event, SESSION_EVENTS)).inc()

    def observe_psnr(self, decibels: float) -> None:
        """Record how near a predicted frame was to the one that arrived."""
        self._psnr.observe(decibels)

    def observe_queue(self, seconds: float, error_ratio: float, device: int = 0) -> None:
        """Say how many seconds of predicted work wait for a device, and how far predictions have been off."""
        self._waiting_s[device] = seconds
        self._queue_seconds.set(sum([*self._waiting_s.values()]))
        self._cost_error.set(error_ratio)

    def observe_costs(self, known: Iterable[tuple[str, int, SlowQuantile]]) -> None:
        """Say what preparing a question, decoding a frame and forwards of so many rows take."""
        for work, rows, seconds in known:
            self._cost.labels(work, rows, "mean").set(seconds.mean)
            self._cost.labels(work, rows, "high").set(seconds.value)

    def observe_device(self, seconds: float, *, is_busy: bool, device: int = 0) -> None:
        """Record that a device was busy or idle for so long. Called from its thread."""
        weight = 1 - math.exp(-seconds / _BUSY_WINDOW_S)
        before = self._busy_ratios.setdefault(device, 0.0)
        self._busy_ratios[device] = before + weight * (float(is_busy) - before)
        ratios = [*self._busy_ratios.values()]
        self._busy.set(sum(ratios) / len(ratios))

    def forget_device(self, device: int) -> None:
        """Leave a device out that is no more."""
        self._waiting_s.pop(device, None)
        self._busy_ratios.pop(device, None)

    def count_spread(self, verdict: str) -> None:
        """Count a prediction of several members. verdict: how usual their spread is."""
        self._spreads.labels(_closed(verdict, VERDICTS)).inc()

    def count_deadline(self, outcome: str) -> None:
        """Count a call that had a deadline. outcome: met, late, degraded, exceeded."""
        self._deadlines.labels(_closed(outcome, DEADLINE_OUTCOMES)).inc()

    def count_cache(self, tier: str, event: str) -> None:
        """Count what a cache tier did. tier: memory, redis."""
        self._cache_events.labels(_closed(tier, CACHE_TIERS), _closed(event, CACHE_EVENTS)).inc()

    def count_restart(self, reason: str) -> None:
        """Count a worker process that was replaced. reason: crash, hang, corrupt, start."""
        self._restarts.labels(_closed(reason, RESTART_REASONS)).inc()

    def count_rescue(self, outcome: str) -> None:
        """Count what became of a call that a worker died in. outcome: repeated, refused, given_up."""
        self._rescues.labels(_closed(outcome, RESCUE_OUTCOMES)).inc()

    def count_superseded(self) -> None:
        """Count a job that a newer one of its stream replaced."""
        self._superseded.inc()

    def count_cancelled(self, stage: str) -> None:
        """Count a job that nobody waits for any more. stage: queue, denoise."""
        self._cancelled.labels(_closed(stage, CANCEL_STAGES)).inc()

    def count_recording(self, result: str) -> None:
        """Count an answer that was to be recorded. result: written, dropped, full, failed."""
        self._recordings.labels(_closed(result, RECORDING_RESULTS)).inc()

    def count_rejected(self, reason: str) -> None:
        """Count a call that got an error instead of an answer. reason: the error's code."""
        self._rejected.labels(_closed(reason, CODE_LABELS)).inc()

    def scrape(self) -> bytes:
        """Write every series in Prometheus' text format."""
        return generate_latest(self.registry)
