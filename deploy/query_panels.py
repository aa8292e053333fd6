"""Ask Prometheus for everything that the dashboard shows, and fail unless there is a number for all
of it.

    python3 deploy/query_panels.py 127.0.0.1:9090 bbbp

Needs nothing but Python. Rates need two scrapes with something between them, so it asks for a
while.
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
    """Every expression of the dashboard by its panel, with values for Grafana's variables."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": (
            target["expr"].replace("$__rate_interval", "1m").replace("$task", task)
        )
        for panel in panels
        for target in panel.get("targets", [])
    }


def has_number(address: str, expression: str) -> bool:
    """Whether an instant query has at least one result that is a number (0/0 is none)."""
    # rather than urllib: it knows no proxy settings
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    answer = json.load(connection.getresponse())
    if answer["status"] != "success":
        raise SystemExit(f"Prometheus does not understand {expression}: {answer['error']}")
    return any(math.isfinite(float(result["value"][1])) for result in answer["data"]["result"])


def main() -> None:
    """Ask until all has an answer, or the time is over."""
    parser = argparse.ArgumentParser(
        description="Ask Prometheus for everything that the dashboard shows."
    )
    parser.add_argument("address", help="of Prometheus: host:port")
    parser.add_argument("task", help="to show routing weights for")
    parser.add_argument("--seconds", type=float, default=60, help="how long to wait for data")
    chosen = parser.parse_args()
    everything = missing = panel_expressions(chosen.task)
    deadline = time.monotonic() + chosen.seconds
    while missing := {
        name: each for name, each in missing.items() if not has_number(chosen.address, each)
    }:
        if time.monotonic() > deadline:
            sys.exit("\n".join(f"no data for {name}: {each}" for name, each in missing.items()))
        time.sleep(1)
    sys.stdout.write(f"all {len(everything)} expressions of the dashboard have data\n")


if __name__ == "__main__":
    main()
