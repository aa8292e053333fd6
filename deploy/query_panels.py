"""Query Prometheus for every expression of the dashboard, and fail if one has no number.

    python3 deploy/query_panels.py 127.0.0.1:9090 bbb_martins

It needs Python alone. A rate needs two scrapes with requests between them, so queries are repeated
for a while.
"""

import argparse
import http.client
import json
import math
import sys
import time
import urllib.parse
from pathlib import Path

DASHBOARD = Path(__file__).parent / "grafana" / "dashboards" / "gmerging.json"


def panel_expressions(task: str) -> dict[str, str]:
    """Return every expression of the dashboard by panel, with Grafana's variables filled in.

    Args:
        task: value of the variable `task`.
    """
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": (
            target["expr"].replace("$__rate_interval", "1m").replace("$task", task)
        )
        for panel in panels
        for target in panel.get("targets", [])
    }


def has_number(address: str, expression: str) -> bool:
    """Return whether an instant query has a result that is a finite number (0/0 is none).

    Args:
        address: Prometheus' `host:port`.
        expression: PromQL expression.

    Raises:
        SystemExit: Prometheus refuses the expression.
    """
    # http.client and not urllib, which would use the proxy of the environment.
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    answer = json.load(connection.getresponse())
    if answer["status"] != "success":
        raise SystemExit(f"Prometheus does not understand {expression}: {answer['error']}")
    return any(math.isfinite(float(result["value"][1])) for result in answer["data"]["result"])


def main() -> None:
    """Repeat the queries until every expression has a number, or the time is up."""
    parser = argparse.ArgumentParser(
        description="Ask Prometheus for everything that the dashboard shows."
    )
    parser.add_argument("address", help="of Prometheus: host:port")
    parser.add_argument("task", help="to show routing weights for")
    parser.add_argument("--seconds", type=float, default=60, help="how long to wait for data")
    options = parser.parse_args()
    expressions = missing = panel_expressions(options.task)
    deadline = time.monotonic() + options.seconds
    while missing := {
        panel: expression
        for panel, expression in missing.items()
        if not has_number(options.address, expression)
    }:
        if time.monotonic() > deadline:
            sys.exit("\n".join(f"no data for {panel}: {q}" for panel, q in missing.items()))
        time.sleep(1)
    sys.stdout.write(f"all {len(expressions)} expressions of the dashboard have data\n")


if __name__ == "__main__":
    main()
