"""The spool: what the database could not take arrives later, once, to the last bit."""

import dataclasses
import json
import os
import resource
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from storage import jobs, ledger, roster, studies, trials
from storage.ledger import Entry
from storage.studies import Study
from workers.service import spool, spooled
from workers.service.spool import DamagedError, Delivery, Spool, StudyKey

TOKYO = timezone(timedelta(hours=9))
NOWHERE = "postgresql+psycopg2://somebody@127.0.0.1:1/none"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "spool"


@pytest.fixture
def claims(database: Engine, study: Study) -> list[jobs.Claim]:
    """Three jobs of four epochs that a worker holds."""
    with database.begin() as connection:
        trials.add(
            connection,
            study.id,
            "search",
            number=0,
            role="identity",
            label="identity",
            densities={3: [1.0]},
            seeds=[1, 2, 3],
            budget=4,
            bars={2: 50.0},
        )
    worker = roster.register(database, study.id, "host", 1, "cpu", {})
    return [job.claim for job in jobs.claim(database, study.id, worker, 3, 60)]


def delivery(claim: jobs.Claim, rung: int = 4, value: float = 1.5, **extra: Any) -> Delivery:
    job_id, epoch = claim
    measured = Entry(job_id=job_id, rung=rung, value=value, extra=extra, seconds=0.1 + rung)
    return Delivery(worker_id=1, fence=epoch, entry=measured, ending="done" if rung == 4 else None)


def recorded(database: Engine) -> list[tuple[int, int, float]]:
    query = "SELECT job_id, rung, value FROM densitune.measurements ORDER BY recorded_at"
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def states(database: Engine) -> list[str]:
    query = "SELECT state FROM densitune.jobs ORDER BY id"
    with database.connect() as connection:
        return list(connection.scalars(text(query)))


@contextmanager
def full_disk() -> Iterator[None]:
    """Let nothing be written beyond the first hundred bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.integers() | finite | st.text()


@given(
    finite,
    finite,
    st.dictionaries(st.text(), values | st.lists(values)),
    st.sampled_from(["done", "cut", None]),
)
def test_a_file_holds_a_measurement_to_the_last_bit(
    value: float, seconds: float, extra: dict[str, Any], ending: Any
) -> None:
    key = StudyKey("a study", 3, "2026-01-02T03:04:05.000006+00:00")
    measured = Entry(job_id=7, rung=2, value=value, extra=extra, seconds=seconds)
    given = Delivery(worker_id=5, fence=1, entry=measured, ending=ending)
    found_key, found = spool._decoded(spool._encoded(key, given))
    assert (found_key, found) == (key, given)
    assert found.entry.value.hex() == value.hex()  # which tells 0.0 from -0.0
    assert found.entry.seconds.hex() == seconds.hex()


def test_a_file_has_the_keys_that_earlier_versions_wrote() -> None:
    key = StudyKey("a study", 3, "2026-01-02T03:04:05.000006+00:00")
    content = json.loads(spool._encoded(key, delivery((7, 1), value=27.25)))["content"]
    assert content.keys() == {"study", "delivery"}
    assert content["delivery"].keys() == {"worker_id", "epoch", "measurement", "ending"}
    assert content["delivery"]["epoch"] == 1


@given(st.data())
def test_no_altered_file_is_taken_for_another_measurement(data: st.DataObject) -> None:
    key = StudyKey("a study", 3, "2026-01-02T03:04:05.000006+00:00")
    whole = spool._encoded(key, delivery((7, 1), value=27.25, loss=0.5))
    place = data.draw(st.integers(0, len(whole) - 1))
    altered = data.draw(
        st.sampled_from(
            [
                whole[:place],
                whole[:place] + whole[place + 1 :],
                whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))])
                + whole[place + 1 :],
            ]
        )
    )  # fmt: skip
    try:
        found = spool._decoded(altered)
    except DamagedError:
        return
    assert found == spool._decoded(whole)  # only the space between its parts was altered


def test_a_worker_that_is_started_later_delivers_in_order(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    before = Spool(folder, study)
    for claim in reversed(claims):
        for rung in (4, 2):
            before.put(delivery(claim, rung, value=claim[0] + rung / 10))
    assert recorded(database) == []
    after = Spool(folder, study)
    assert after.deliver(database) == 6
    assert recorded(database) == [
        (job, rung, job + rung / 10) for job, _ in sorted(claims) for rung in (2, 4)
    ]
    assert states(database) == ["done"] * 3
    assert list(folder.iterdir()) == []
    assert after.deliver(database) == 0


def test_a_delivery_is_what_the_ledger_is_told_directly(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    endings: list[Any] = ["done", "cut", None]
    for claim, ending in zip(claims, endings, strict=True):
        given = delivery(
            claim,
            rung=4 if ending == "done" else 2,
            value=claim[0] + 0.25,
            loss=0.5,
            curve=[1, 2.5],
        )
        queue.put(dataclasses.replace(given, ending=ending))
    queue.deliver(database)
    assert states(database) == ["done", "cut", "running"]
    with database.connect() as connection:
        rows = ledger.read(connection, study.id, "search")
    assert [row.value for row in rows] == [claim[0] + 0.25 for claim in claims]
    assert rows[0].extra == {"loss": 0.5, "curve": [1, 2.5]}
    assert rows[1].seconds == 2.1


def test_what_was_committed_before_a_crash_is_not_counted_twice(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    queue.put(delivery(claims[0], value=1.0))
    [path] = queue.pending()
    content = path.read_bytes()
    assert queue.deliver(database) == 1
    path.write_bytes(content)  # the process died between the commit and the removal
    again = delivery(claims[0], value=2.0)
    spool.record(database, [again])
    assert Spool(folder, study).deliver(database) == 1
    assert recorded(database) == [(claims[0][0], 4, 1.0)]


def test_a_file_is_delivered_by_whoever_comes_first(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one worker delivers its first file, another one delivers the rest, and not that."""
    for claim in claims:
        Spool(folder, study).put(delivery(claim))
    record, others = ledger.record, list[int]()

    def recording(*given: Any, **ended: Any) -> None:
        monkeypatch.setattr(ledger, "record", record)
        others.append(Spool(folder, study).deliver(database))
        record(*given, **ended)

    monkeypatch.setattr(ledger, "record", recording)
    assert Spool(folder, study).deliver(database) == 1
    assert others == [2]
    assert len(recorded(database)) == 3


def test_several_workers_deliver_together_without_an_error(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    for claim in claims:
        for rung in (1, 2, 3, 4):
            queue.put(delivery(claim, rung))
    with ThreadPoolExecutor(2) as pool:
        counts = [pool.submit(Spool(folder, study).deliver, database) for _ in range(2)]
        assert sum(count.result() for count in counts) == 12
    assert len(recorded(database)) == 12
    assert list(folder.iterdir()) == []


def test_a_study_made_anew_gets_nothing_of_its_predecessor(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    """Same name, same id and same job ids, as in a database that was set up again."""
    earlier = dataclasses.replace(study, created_at=study.created_at - timedelta(microseconds=1))
    Spool(folder, earlier).put(delivery(claims[0]))
    assert Spool(folder, study).deliver(database) == 0
    assert Spool(folder, earlier).deliver(database) == 0
    assert recorded(database) == []
    assert spool.survey(folder) == ({spool.key_of(earlier): 1}, [])


def test_a_deleted_study_gets_nothing(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    queue.put(delivery(claims[0]))
    with database.begin() as connection:
        studies.delete(connection, study.id)
    assert queue.deliver(database) == 0
    assert len(queue.pending()) == 1


def test_the_key_does_not_depend_on_the_time_zone(study: Study) -> None:
    elsewhere = dataclasses.replace(study, created_at=study.created_at.astimezone(TOKYO))
    assert spool.key_of(elsewhere) == spool.key_of(study)


def test_a_file_under_the_name_of_another_study_is_set_aside(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    earlier = dataclasses.replace(study, created_at=study.created_at - timedelta(days=1))
    Spool(folder, earlier).put(delivery(claims[0]))
    [path] = folder.iterdir()
    name = path.name.replace(spool.key_of(earlier).short, spool.key_of(study).short)
    path.rename(folder / name)
    assert Spool(folder, study).deliver(database) == 0
    assert spool.survey(folder) == ({}, [folder / f"{name}.damaged"])
    assert "it belongs to study a study" in caplog.text


def test_a_damaged_file_is_set_aside_and_named_and_the_others_arrive(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = Spool(folder, study)
    for claim in claims:
        queue.put(delivery(claim))
    short, altered, whole = queue.pending()
    short.write_bytes(short.read_bytes()[:-20])
    document = json.loads(altered.read_text())
    document["content"]["delivery"]["measurement"]["value"] = 99.0
    altered.write_text(json.dumps(document))
    assert spool.survey(folder) == ({spool.key_of(study): 1}, [short, altered])
    assert queue.deliver(database) == 1
    assert recorded(database) == [(claims[2][0], 4, 1.5)]
    aside = [path.with_suffix(".json.damaged") for path in (short, altered)]
    assert spool.survey(folder) == ({}, aside)
    assert all(str(path) in line for path, line in zip(aside, caplog.messages, strict=True))
    assert not whole.exists()
    assert (queue.pending(), queue.deliver(database)) == ([], 0)


def test_without_a_database_everything_stays(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    queue.put(delivery(claims[0]))
    away = create_engine(NOWHERE)
    with pytest.raises(OperationalError):
        queue.deliver(away)
    away.dispose()
    assert queue.deliver(database) == 1


def test_what_is_recorded_before_a_database_goes_away_is_not_sent_again(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = Spool(folder, study)
    for claim in claims:
        queue.put(delivery(claim))
    sent: list[int] = []
    record = ledger.record

    def only_one(engine: Engine, worker: int, found: list[Entry], **ended: Any) -> None:
        if sent:
            raise OperationalError("", {}, Exception("gone"))
        sent.append(found[0].job_id)
        record(engine, worker, found, **ended)

    monkeypatch.setattr(ledger, "record", only_one)
    with pytest.raises(OperationalError):
        queue.deliver(database)
    assert [path.name.split("-")[1] for path in queue.pending()] == [
        f"{job:012d}" for job, _ in claims[1:]
    ]


def test_a_full_disk_costs_a_line_and_nothing_else(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = Spool(folder, study)
    with full_disk():
        queue.put(delivery(claims[0]))
        queue.put(delivery(claims[1]))
    assert (queue.held, list(folder.iterdir())) == (2, [])
    assert len(caplog.messages) == 2
    assert all(str(folder) in line and len(line.splitlines()) == 1 for line in caplog.messages)
    queue.put(delivery(claims[2]))
    assert (queue.held, len(queue.pending())) == (0, 3)
    assert queue.deliver(database) == 3
    assert len(recorded(database)) == 3


def test_what_is_in_memory_only_is_delivered_too(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    folder.parent.mkdir()
    folder.write_text("no folder")
    queue = Spool(folder, study)
    queue.put(delivery(claims[0]))
    assert queue.held == 1
    assert queue.deliver(database) == 1
    assert (queue.held, queue.deliver(database)) == (0, 0)
    assert recorded(database) == [(claims[0][0], 4, 1.5)]


@pytest.mark.parametrize(("bound", "most"), [("MOST_FILES", 2), ("MOST_BYTES", 600)])
def test_a_spool_is_bounded_and_says_where_it_is(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    most: int,
) -> None:
    """A file has about 450 bytes."""
    monkeypatch.setattr(spooled, bound, most)
    queue = Spool(folder, study)
    for claim in claims:
        queue.put(delivery(claim))
    assert (len(queue.pending()), queue.held) == (2, 1)
    [line] = caplog.messages
    assert f"the spool {folder} is full" in line
    assert queue.deliver(database) == 3


def test_a_file_is_on_the_disk_before_it_has_its_name(
    study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, seen = Spool(folder, study), list[tuple[bool, int]]()

    def watched(descriptor: int) -> None:
        status = os.fstat(descriptor)
        seen.append((stat.S_ISDIR(status.st_mode), len(queue.pending())))

    monkeypatch.setattr(os, "fsync", watched)
    queue.put(delivery((1, 1)))
    assert seen == [(False, 0), (True, 1)]


def test_files_without_their_name_yet_do_not_count(study: Study, folder: Path) -> None:
    queue = Spool(folder, study)
    queue.put(delivery((1, 1)))
    [path] = queue.pending()
    path.rename(path.with_suffix(".123.part"))
    assert queue.pending() == []
    assert spool.survey(folder) == ({}, [])


def test_what_the_database_will_never_take_is_set_aside_and_the_others_arrive(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also in memory, where the first one waits because its folder was none."""
    (first, _), second, third = claims
    folder.parent.mkdir()
    folder.write_text("no folder")
    queue = Spool(folder, study)
    queue.put(delivery((first, 1), rung=2, note="a\0b"))
    assert (queue.deliver(database), queue.held) == (0, 0)
    assert "a measurement is refused and dropped: " in caplog.text
    folder.unlink()
    queue.put(delivery((first, 1), rung=2, note="a\0b"))
    queue.put(delivery((first, 1), rung=4))
    queue.put(delivery(second, value=10.0**300))
    queue.put(delivery(third, rung=10**12))
    assert queue.deliver(database) >= 1
    assert (first, 4, 1.5) in recorded(database)
    assert queue.pending() == []
    waiting, aside = spool.survey(folder)
    assert waiting == {}
    assert {path.suffix for path in aside} == {".refused"}
    assert sum(str(path) in caplog.text for path in aside) == len(aside) >= 2
    assert states(database)[0] == "running"  # with its rung 2 missing it does not end
    assert queue.deliver(database) == 0


@pytest.mark.parametrize("how", ["damaged", "refused", "left"])
def test_a_job_ends_from_memory_only_if_nothing_of_it_is_aside_or_left(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The disk is full after the first measurement; its file is damaged, refused or taken."""
    queue = Spool(folder, study)
    queue.put(delivery(claims[0], rung=1, note="a\0b" if how == "refused" else "ab"))
    monkeypatch.setattr(spooled, "MOST_FILES", 1)
    queue.put(delivery(claims[0], rung=2))
    queue.put(delivery(claims[0]))
    [path] = queue.pending()
    if how == "damaged":
        path.write_bytes(b"x")
    with spooled.taken(path) if how == "left" else nullcontext():
        assert queue.deliver(database) == (0 if how == "left" else 2)
    assert (states(database)[0], queue.held) == ("running", 2 if how == "left" else 0)
    assert queue.deliver(database) == (3 if how == "left" else 0)
    assert states(database)[0] == ("done" if how == "left" else "running")


def test_a_job_of_which_a_measurement_was_refused_in_memory_does_not_end(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    folder.parent.mkdir()
    folder.write_text("no folder")
    queue = Spool(folder, study)
    queue.put(delivery(claims[0], rung=2, note="a\0b"))
    queue.put(delivery(claims[0]))
    queue.put(delivery(claims[1]))
    assert queue.deliver(database) == 2
    assert states(database) == ["running", "done", "running"]
    queue.put(delivery(claims[0], rung=2))
    queue.put(delivery(claims[0]))
    queue.deliver(database)
    assert states(database) == ["done", "done", "running"]


@pytest.mark.parametrize("spooled_again", [True, False])
def test_a_measurement_that_was_aside_and_is_delivered_since_keeps_no_job_from_its_end(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path, spooled_again: bool
) -> None:
    """The job is trained again, in another outage, or with its first rung between two."""
    queue, first = Spool(folder, study), delivery(claims[0], rung=2)
    queue.put(first)
    [path] = queue.pending()
    path.write_bytes(b"x")
    assert (queue.deliver(database), len(list(folder.iterdir()))) == (0, 1)
    if spooled_again:
        queue.put(first)
    else:
        spool.record(database, [first])
        queue.settle([first])
    queue.put(delivery(claims[0]))
    queue.deliver(database)
    assert states(database)[0] == "done"
    assert list(folder.iterdir()) == []


def test_what_is_the_databases_fault_stays(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    queue.put(delivery(claims[0]))
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE densitune.measurements RENAME TO elsewhere"))
    with pytest.raises(ProgrammingError):
        queue.deliver(database)
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE densitune.elsewhere RENAME TO measurements"))
    assert (len(queue.pending()), queue.deliver(database)) == (1, 1)


def signed(content: Any) -> str:
    """A file of the spool, whatever it holds, with a checksum that is right."""
    return json.dumps({"sha256": spool._digest(content), "content": content})


def altered(key: StudyKey, place: str, value: Any) -> str:
    content = json.loads(spool._encoded(key, delivery((7, 1))))["content"]
    *above, last = place.split("/")
    inside = content
    for part in above:
        inside = inside[part]
    inside[last] = value
    return signed(content)


STUDY = StudyKey("a study", 3, "2026-01-02T03:04:05.000006+00:00")
FOREIGN = {
    "deep lists": "[" * 100_000,
    "deep mappings": '{"a":' * 20_000,
    "many digits": "9" * 5_000,
    "too much": " " * (2 * 2**20),
    "no mapping": "[]",
    "a list for a study": signed({"study": [], "delivery": {}}),
    "a name with NUL": altered(STUDY, "study/name", "a\0b"),
    "a name that is none": altered(STUDY, "study/name", {}),
    "an id that is none": altered(STUDY, "study/id", [1]),
    "a job that is none": altered(STUDY, "delivery/measurement/job_id", "x"),
    "a value that is none": altered(STUDY, "delivery/measurement/value", {"a": 1}),
    "more that is none": altered(STUDY, "delivery/measurement/extra", [1]),
    "an unknown end": altered(STUDY, "delivery/ending", "lost"),
    "deep in more": altered(
        STUDY, "delivery/measurement/extra", {"a": json.loads("[" * 90 + "]" * 90)}
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_damaged_and_nothing_else(
    database: Engine,
    study: Study,
    claims: list[jobs.Claim],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    queue = Spool(folder, study)
    queue.put(delivery(claims[2]))
    path = folder / f"{spool.key_of(study).short}-{claims[0][0]:012d}-000004.json"
    path.write_text(FOREIGN[name])
    assert spool.survey(folder) == ({spool.key_of(study): 1}, [path])
    assert queue.deliver(database) == 1
    assert recorded(database) == [(claims[2][0], 4, 1.5)]
    aside = path.with_suffix(".json.damaged")
    assert spool.survey(folder) == ({}, [aside])
    assert str(aside) in caplog.text


def test_a_pipe_or_link_in_the_folder_is_not_waited_for_nor_followed(
    database: Engine, study: Study, claims: list[jobs.Claim], folder: Path
) -> None:
    queue = Spool(folder, study)
    queue.put(delivery(claims[2]))
    pipe = folder / f"{spool.key_of(study).short}-{claims[0][0]:012d}-000004.json"
    os.mkfifo(pipe)
    link = folder / f"{spool.key_of(study).short}-{claims[1][0]:012d}-000004.json"
    (folder / "elsewhere").write_text("untouched")
    link.symlink_to(folder / "elsewhere")
    assert queue.deliver(database) == 1
    assert spool.survey(folder) == ({}, [pipe, link])
    assert link.is_symlink()
    assert (folder / "elsewhere").read_text() == "untouched"


@given(st.binary(max_size=200) | st.text(st.sampled_from('[]{}:",019eE\\u\0'), max_size=60))
def test_no_file_ends_in_another_error(stored: bytes | str) -> None:
    with pytest.raises(DamagedError):
        spool._decoded(stored if isinstance(stored, bytes) else stored.encode())
