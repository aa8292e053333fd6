"""The pages of the service's settings and of its metrics."""

from prometheus_client.metrics import MetricWrapperBase

from docs_build.tables import code, table, words_for
from service.settings import OTHER_VARIABLES, PREFIX, RELEASED_ARTIFACT, Settings
from service.telemetry.metrics import Metrics

_SETTINGS = """# Settings

All settings of the service are environment variables. A wrong value stops the start with a line
that names it, and so does an unknown variable `{prefix}...`, with the nearest known name. Variables
of other programs are accepted: {others}. [Operate](../operate.md) has advice on settings.

"""
_METRICS = """# Metrics

What `GET /metrics` shows in Prometheus' text format. `counter`s end in `_total`, `histogram`s have
`_bucket`, `_sum` and `_count`. With one worker there are also `process_*` and `python_*`.
[Monitor](../monitor.md) says how to read them; dashboard and alert rules are in `deploy/`.

"""


def settings_page() -> str:
    """Return the page of the settings, in Markdown."""
    properties = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        default = "not set" if field.default in (None, ()) else code(field.default)
        if field.default == RELEASED_ARTIFACT:
            default = f"the release `{RELEASED_ARTIFACT.name}`"
        values = words_for({**properties[name], "default": None})
        rows.append((code(PREFIX + name.upper()), values, default, field.description or ""))
    others = ", ".join(map(code, sorted(OTHER_VARIABLES)))
    introduction = _SETTINGS.format(prefix=PREFIX, others=others)
    return introduction + table(("variable", "values", "default", "meaning"), rows)


def metrics_page() -> str:
    """Return the page of the metrics, in Markdown."""
    rows = []
    for collector in vars(Metrics(())).values():
        if isinstance(collector, MetricWrapperBase):
            (family,) = collector.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(map(code, collector._labelnames))  # no public way to ask
            rows.append((code(name), family.type, labels, family.documentation))
    return _METRICS + table(("name", "type", "labels", "meaning"), sorted(rows))
