"""A Ray cluster of two nodes on this machine, for modules that have skipped without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Yield a Ray cluster of two nodes on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={**_NODE, "include_dashboard": False},
    )
    made.add_node(**_NODE)
    yield made
    made.shutdown()  # type: ignore[no-untyped-call, unused-ignore]
