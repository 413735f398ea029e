"""The dashboard and the alerts use metrics that the server exports."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline.core.paths import ROOT
from pipeline.engines.base import Load
from pipeline.serving.metrics import Metrics

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/serving.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = DASHBOARD["panels"]
# Of PromQL, not of metrics: https://prometheus.io/docs/prometheus/latest/querying/
WORDS = set("sum max by rate histogram_quantile absent min_over_time".split())
PROMETHEUS_OWN = {"up": {"job"}, "ALERTS": {"alertstate"}}


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics that an expression names, each with the labels it asks them for."""
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))))
    bare = re.sub(r"by \([^)]*\)", "", expression)
    for name, asked in re.findall(r"([a-zA-Z_]\w*)(?:\{([^}]*)\})?", _without_values(bare)):
        if name not in WORDS:
            yield name, set(re.findall(r"(\w+)=", asked)) | grouped - {"le"}


def _without_values(expression: str) -> str:
    """Strings and durations would look like names."""
    return re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"', "", expression))


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The samples' names of a server that has answered and refused, with their labels."""
    metrics = Metrics("bank", lambda: Load(1, 2, 0.25), slots=4)
    metrics.finished("stop")
    metrics.failed(400)
    metrics.guardrail("bank", "leaks", "input", "passed", 0.001)
    families = text_string_to_metric_families(metrics.text().decode())
    return {s.name: set(s.labels) for family in families for s in family.samples}


EXPRESSIONS = [
    *((panel["title"], t["expr"]) for panel in PANELS for t in panel["targets"]),
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((a["name"], a["expr"]) for a in DASHBOARD["annotations"]["list"]),
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_metric_and_label_is_exported(
    exported: dict[str, set[str]], where: str, expression: str
) -> None:
    named = list(selectors(expression))
    assert named
    for metric, labels in named:
        known = PROMETHEUS_OWN.get(metric) or exported.get(metric)
        assert known, f"{where}: the server exports no {metric}"
        assert labels <= known, f"{where}: {metric} has no {labels - known}"


def test_the_reading_of_expressions_finds_what_is_there() -> None:
    found = dict(selectors('sum by (le, a) (rate(x_bucket{b=~"$c", d="up"}[5m])) / y > 0.5'))
    assert found == {"x_bucket": {"a", "b", "d"}, "y": {"a"}}


def test_every_figure_that_a_server_exports_is_shown(exported: dict[str, set[str]]) -> None:
    shown = {m for panel in PANELS for t in panel["targets"] for m, _ in selectors(t["expr"])}
    ours = [name for name in exported if not name.startswith("vllm:")]  # the same figures again
    wanted = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in ours}
    assert wanted - {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown} == set()


def test_every_panel_is_by_model_and_has_a_unit() -> None:
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            if "up{" not in target["expr"]:
                assert 'model_name=~"$model"' in target["expr"], panel["title"]
                assert "{{model_name}}" in target["legendFormat"], panel["title"]
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["multi"]) == ("model", True)


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for p in (panel["gridPos"] for panel in PANELS)
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_reads_the_source_that_is_provisioned() -> None:
    sources = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    used = {panel["datasource"]["uid"] for panel in PANELS}
    used |= {t["datasource"]["uid"] for panel in PANELS for t in panel["targets"]}
    assert used == {source["uid"] for source in sources}


def test_every_alert_has_an_action_and_a_test() -> None:
    tried = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text())["tests"]
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        cases = [c for t in tried for c in t["alert_rule_test"] if c["alertname"] == rule["alert"]]
        assert any(case["exp_alerts"] for case in cases), f"{rule['alert']} is never raised"
