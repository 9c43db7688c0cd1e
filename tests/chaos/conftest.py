"""A PostgreSQL over TCP that tests may stop and break, and a study that nothing has disturbed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cluster import Cluster
from sqlalchemy import Engine
from support import audit, crew
from support.audit import Outcome
from support.crew import Crew

from storage import database


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # Not under pytest's own folder, which every run closes to PostgreSQL's user again.
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        made = Cluster(Path(folder))
        yield made
        made.stop("immediate")


@pytest.fixture(scope="session")
def engine(cluster: Cluster) -> Iterator[Engine]:
    made = database.connect(cluster.url)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def calm(cluster: Cluster, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The study of `crew.config`, trained by a worker that nobody kills."""
    folder = tmp_path_factory.mktemp("calm")
    with Crew(crew.config(folder, "calm"), cluster.url, folder / "home") as undisturbed:
        undisturbed.hire()
        undisturbed.finish()
    assert undisturbed.fallen == []
    found = audit.outcome(engine, "calm")
    audit.check_clean(found, crew.TRIALS)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """DENSITUNE_HOME of a test's processes: they share its spool and its checkpoints."""
    return tmp_path / "home"
