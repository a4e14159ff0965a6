"""A real Slurm cluster for the tests of this folder, and small real runs on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import needs
import pytest
from slurm_cluster import Cluster

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
NODES = 5


@pytest.fixture(scope="session")
def cluster(shared: Path) -> Iterator[Cluster]:
    """Five nodes, with processes, disks and networks of their own. Skipped without root and Debian's packages."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    why = f"needs {', '.join(missing)}; as root, launch/test.sh installs them" if missing else ""
    why = why or ("" if os.geteuid() == 0 else "needs root, for network namespaces")
    if why:
        needs.missing(why)
    cluster = Cluster(NODES, shared=shared)
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test all nodes are up again, and no process of a job is left on any of them."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").settle()
