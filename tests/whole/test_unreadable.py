"""What an older schema let in and Python cannot read ends in one line, and can be deleted."""

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from support import searches
from support.queued import enter, unruled
from support.shell import Here

from optimizer.phases.proposer import Proposer
from storage import ledger, studies
from storage.errors import UnreadableError
from storage.ledger import Entry

DAMAGES = {
    "digits": "UPDATE densitune.measurements SET extra = ('{\"a\": ' || repeat('9', 5000) || '}')"
    "::jsonb",
    "levels": "UPDATE densitune.measurements SET extra = (repeat('{\"a\": ', 3000) || '1' || "
    "repeat('}', 3000))::jsonb",
    "shape": "UPDATE densitune.measurements SET extra = '[1]'",
    "value": "UPDATE densitune.measurements SET value = 'NaN'",
    "seconds": "UPDATE densitune.measurements SET seconds = 'NaN'",
    "versions": "UPDATE densitune.workers SET versions = ('{\"a\": ' || repeat('9', 5000) || '}')"
    "::jsonb",
    "densities": 'UPDATE densitune.trials SET densities = \'{"3": ["a"]}\'',
    "verdict": "UPDATE densitune.studies SET verdicts = '[{\"trial\": 1}]' WHERE name = 'damaged'",
    "tested": "UPDATE densitune.studies SET holdout = '[1]' WHERE name = 'damaged'",
    "times": "UPDATE densitune.workers SET seen_at = '0044-03-15 BC'",
}


@pytest.fixture(params=DAMAGES)
def damaged(database: Engine, request: pytest.FixtureRequest) -> Proposer:
    """A study that has been damaged, beside another one; its proposer."""
    searches.create(database, searches.make_config("whole"))
    given = searches.make_config("damaged")
    study_id = searches.create(database, given)
    proposer = Proposer(database, study_id, given)
    proposer.advance()
    study = studies.find(database, "damaged")
    assert study is not None
    worker = enter(database, study)
    ledger.record(database, worker, [Entry(job_id=1, rung=4, value=1, extra={}, seconds=1)], [1])
    with unruled(database) as connection:
        connection.execute(
            text("""
                ALTER TABLE densitune.measurements DROP CONSTRAINT ck_measurements_extra;
                ALTER TABLE densitune.measurements DROP CONSTRAINT ck_measurements_value;
                ALTER TABLE densitune.measurements DROP CONSTRAINT ck_measurements_seconds;
                ALTER TABLE densitune.workers DROP CONSTRAINT ck_workers_versions;
                ALTER TABLE densitune.workers DROP CONSTRAINT ck_workers_times;
            """)
        )
        connection.exec_driver_sql(DAMAGES[request.param])
    return proposer


def test_an_unreadable_study_is_named_in_one_line_hides_no_other_and_can_be_deleted(
    database: Engine,
    database_url: str,
    damaged: Proposer,
    here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DENSITUNE_HOME", str(tmp_path))
    line = "densitune: study damaged: a stored value cannot be read: .* densitune delete damaged"
    code, said = here.refused(tmp_path, database_url, "status", "damaged")
    assert code == 3
    assert re.fullmatch(line, said)
    listed = here.run(tmp_path, database_url, "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [entry["study"] for entry in json.loads(listed.stdout)] == ["whole", "damaged"]
    examined = here.run(tmp_path, database_url, "doctor")
    assert (examined.returncode, examined.stderr) == ("cannot be read" in examined.stdout, "")
    stopped = here.run(tmp_path, database_url, "stop", "damaged")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    deleted = here.run(tmp_path, database_url, "delete", "damaged", answer="y")
    assert deleted.returncode == 0
    assert "damaged with 1 measurements?" in deleted.stdout
    assert studies.find(database, "damaged") is None
    assert studies.find(database, "whole") is not None


@pytest.mark.parametrize("damaged", ["digits", "levels", "value"], indirect=True)
def test_a_proposer_that_meets_an_unreadable_measurement_names_the_study(
    database: Engine, damaged: Proposer
) -> None:
    with database.begin() as connection:
        query = "SELECT id FROM densitune.jobs WHERE state = 'waiting' ORDER BY id"
        others = [job for job in connection.scalars(text(query)) if job % 2 == 0]
    for job in others:
        ledger.record(database, 1, [Entry(job_id=job, rung=4, value=1, extra={}, seconds=1)], [job])
    with pytest.raises(UnreadableError, match=r"^study damaged: a stored value cannot be read"):
        damaged.advance()
