"""A Ray cluster of two nodes of which one is lost; for a Python that has Ray.

Prints the address, removes a node when it is sent a line, and ends with its input. Ports are given:
a node waits only some seconds for an agent that looks for its own, too few on a busy machine.
"""

import json
import socket
import sys
from typing import Any

AGENTS = (
    "dashboard_agent_listen_port",
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
)


def ports(count: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


def settings() -> dict[str, Any]:
    """Return the settings of a small node."""
    agents = dict(zip(AGENTS, ports(len(AGENTS)), strict=True))
    return {"num_cpus": 1, "object_store_memory": 80_000_000, **agents}


def main() -> None:
    from ray.cluster_utils import Cluster  # type: ignore[import-not-found, unused-ignore]

    head = {**settings(), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(**settings())
    print(json.dumps(cluster.address), flush=True)
    if sys.stdin.readline():
        cluster.remove_node(other, allow_graceful=False)
        sys.stdin.readline()
    cluster.shutdown()


if __name__ == "__main__":
    main()
