"""Alerts and dashboards ask for series, labels and values that the server has, and nothing else."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from foreframe_engines.testing import toy_contract
from foreframe_server import metrics as names
from foreframe_server.metrics import Metrics

_SELECTOR = re.compile(r"(foreframe_[a-z0-9_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|ignoring|on)\s*\(([^)]*)\)")
_TARGET_LABELS = {"job", "instance", "le"}
_MODEL_LABELS = {"model", "family", "revision", "determinism"}
_CLOSED = {
    "code": names.CODE_LABELS | {names.OTHER},
    "reason": names.CODE_LABELS | {names.OTHER},
    "outcome": names.DEADLINE_OUTCOMES,
    "tier": names.CACHE_TIERS,
    "verdict": names.VERDICTS,
    "event": names.SESSION_EVENTS,
    "stage": names.STAGES | names.CANCEL_STAGES,
}
_RESULTS = {"foreframe_cache_events_total": names.CACHE_EVENTS, "foreframe_recordings_total": names.RECORDING_RESULTS}


@pytest.fixture(scope="module")
def series():
    """Every series of the server, with its labels."""
    metrics = Metrics()
    metrics.describe_model(toy_contract(), "batch_invariant")
    known = {}
    for collector in set(metrics.registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for name in metrics.registry._collector_to_names[collector]:
            known[name] = labels
    known["foreframe_model_info"] = _MODEL_LABELS
    return known


def complaints(expression, series, recorded=frozenset()):
    """Say what an expression asks for that is not there."""
    wrong = []
    asked = set(_TARGET_LABELS)
    for name, matchers in _SELECTOR.findall(expression):
        if name not in series:
            wrong.append(f"no series {name}")
            continue
        asked |= series[name]
        for label, value in _MATCHER.findall(matchers):
            if label not in series[name] | _TARGET_LABELS:
                wrong.append(f"{name} has no label {label}")
            allowed = _RESULTS.get(name) if label == "result" else _CLOSED.get(label)
            if allowed is not None:
                wrong += [f"{label} is never {part}" for part in value.split("|") if part not in allowed]
    for labels in _GROUPING.findall(expression):
        wrong += [f"no label {label}" for label in re.findall(r"\w+", labels) if label not in asked]
    wrong += [f"no record {name}" for name in re.findall(r"foreframe:[a-z0-9_:]+", expression) if name not in recorded]
    return wrong


def rules_of(deploy):
    text = (deploy / "prometheus" / "rules" / "foreframe.yml").read_text()
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def expressions_of(path):
    board = json.loads(path.read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])[1]


def test_rules_ask_for_what_is_there(deploy, series):
    rules = rules_of(deploy)
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert [problem for rule in rules for problem in complaints(rule["expr"], series, recorded)] == []
    assert sum("alert" in rule for rule in rules) >= 9


def test_every_alert_says_how_urgent_it_is_and_what_it_means(deploy):
    for rule in rules_of(deploy):
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
            assert rule["annotations"]["summary"], rule["alert"]


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(foreframe_request_total[5m])", "no series foreframe_request_total"),
        ('foreframe_requests_total{status="500"}', "foreframe_requests_total has no label status"),
        ('foreframe_requests_total{code=~"ok|boom"}', "code is never boom"),
        ("sum by (robot) (foreframe_connections)", "no label robot"),
        ("foreframe:nothing:ratio > 1", "no record foreframe:nothing:ratio"),
    ],
)
def test_what_is_not_there_is_found(series, expression, complaint):
    assert complaints(expression, series) == [complaint]


def test_dashboards_ask_for_what_is_there(deploy, series):
    boards = sorted((deploy / "grafana" / "dashboards").glob("*.json"))
    assert len(boards) == 2
    for board in boards:
        expressions = list(expressions_of(board))
        assert len(expressions) >= 10
        assert [problem for expression in expressions for problem in complaints(expression, series)] == []


def test_every_series_of_the_server_is_on_a_dashboard(deploy, series):
    text = "".join(path.read_text() for path in (deploy / "grafana" / "dashboards").glob("*.json"))
    families = {re.sub(r"_(total|bucket|count|sum|created|info)$", "", name) for name in series}
    assert {family for family in families if family not in text} == set()


def test_panels_of_a_dashboard_do_not_overlap(deploy):
    for path in (deploy / "grafana" / "dashboards").glob("*.json"):
        board = json.loads(path.read_text())
        cells = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in board["panels"]
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_provisioning_names_the_data_source_that_dashboards_use(deploy):
    provisioning = deploy / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "foreframe.yml").read_text())["datasources"]
    providers = yaml.safe_load((provisioning / "dashboards" / "foreframe.yml").read_text())["providers"]
    assert {source["uid"] for source in sources} >= {"foreframe-prometheus"}
    assert providers[0]["options"]["path"] == "/var/lib/grafana/dashboards"
    for path in (deploy / "grafana" / "dashboards").glob("*.json"):
        (first, *_) = json.loads(path.read_text())["templating"]["list"]
        assert first["current"]["value"] == "foreframe-prometheus"


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; rules are only read here")

    def run(*arguments, cwd=None):
        return subprocess.run([found, *arguments], capture_output=True, text=True, cwd=cwd, check=False)

    return run


def test_promtool_takes_the_configuration(promtool, deploy):
    folder = deploy / "prometheus"
    for arguments in (
        ("rules", folder / "rules" / "foreframe.yml"),
        ("config", "--syntax-only", folder / "prometheus.yml"),
    ):
        done = promtool("check", *map(str, arguments))
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_on_a_bad_server_and_on_no_good_one(promtool, deploy, tmp_path):
    play = (deploy.parent / "tests" / "deploy" / "rules_at_work.yml").read_text()
    (tmp_path / "foreframe.yml").write_text((deploy / "prometheus" / "rules" / "foreframe.yml").read_text())
    (tmp_path / "play.yml").write_text(play)
    done = promtool("test", "rules", "play.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "play.yml").write_text(play.replace("0+1000x120", "0x120 0+1x120", 1).replace("1x120", "0x120", 1))
    assert promtool("test", "rules", "play.yml", cwd=tmp_path).returncode != 0
    played = {test["alertname"] for case in yaml.safe_load(play)["tests"] for test in case["alert_rule_test"]}
    assert played == {rule["alert"] for rule in rules_of(deploy) if "alert" in rule}
