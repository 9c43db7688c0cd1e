"""The embedded server: shared, found again after a crash, gone with its last user."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import make_url
from support.servers import Join, in_use, postmaster

from storage import programs
from storage.errors import StorageError
from storage.server import embedded_url


def test_folders_that_are_opened_for_the_servers_user_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(prefix="dt-") as closed:  # below what is open to all
        programs_folder = Path(closed) / "environment" / "bin"
        programs_folder.mkdir(parents=True)
        (Path(closed) / "environment").chmod(0o755)
        monkeypatch.setattr(programs, "_folder", lambda: programs_folder)
        other = os.getuid() + 1, os.getgid() + 1
        for lines in (1, 0):
            caplog.clear()
            programs.let_pass(other)
            assert Path(closed).stat().st_mode & 0o777 == 0o701
            assert len(caplog.messages) == lines
            assert all(f"chmod o-x {closed}," in line for line in caplog.messages)


def test_last_of_two_processes_stops_the_server(home: Path, join: Join) -> None:
    one, other = join(home), join(home)
    assert one.read() == other.read()
    server = postmaster(home)
    assert server is not None
    one.leave()
    assert postmaster(home) == server
    other.leave()
    assert postmaster(home) is None


def test_server_survives_killed_users_and_is_found_by_the_next(home: Path, join: Join) -> None:
    user = join(home)
    user.read()
    server = postmaster(home)
    user.kill()
    assert not in_use(home)  # so nobody has inherited its lock, the server neither
    assert postmaster(home) == server
    following = join(home)
    following.read()
    assert postmaster(home) == server
    following.leave()
    assert postmaster(home) is None


def test_killed_server_is_started_again_with_its_data(home: Path, join: Join) -> None:
    user = join(home)
    url = make_url(user.read())
    where = {"host": str(url.query["host"]), "user": url.username, "dbname": url.database}
    connection = psycopg2.connect(**where)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE remembered AS SELECT 7 AS x")
    killed = postmaster(home)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    user.do("embedded_url(Path(sys.argv[1]))")
    assert postmaster(home) not in (None, killed)
    connection.close()
    connection = psycopg2.connect(**where)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT x FROM remembered")
        assert cursor.fetchall() == [(7,)]
        cursor.execute("DROP TABLE remembered")
    connection.close()
    user.leave()
    assert postmaster(home) is None


def test_whoever_needs_a_killed_server_starts_it_again(home: Path, join: Join) -> None:
    users = [join(home), join(home)]
    for user in users:
        user.read()
        user.do("from functools import partial; from sqlalchemy import text")
        user.do("from storage import database, retry, server")
        user.do("engine = database.connect(embedded_url(home), partial(server.revive, home))")
    killed = postmaster(home)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    for user in users:
        # A session of the killed server may still answer for a moment, and end within a statement.
        user.do("retry.persist(lambda: engine.connect().scalar(text('SELECT 1')), 60)")
    assert postmaster(home) not in (None, killed)
    for user in users:
        user.leave()
    assert postmaster(home) is None


def test_process_id_of_a_dead_server_may_belong_to_another_process(home: Path, join: Join) -> None:
    user = join(home)
    user.read()
    server = postmaster(home)
    assert server is not None
    remnants = [home / "postgresql" / name for name in ("postmaster.pid", ".s.PGSQL.5432.lock")]
    before = [path.read_text() for path in remnants]
    user.leave()
    owner = (home / "postgresql").stat().st_uid
    bystander = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        for path, text in zip(remnants, before, strict=True):
            path.write_text(text.replace(str(server), str(bystander.pid)))
        following = join(home)
        following.read()
        assert postmaster(home) not in (None, bystander.pid)
        following.leave()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("remnant", [b"", b"\0" * 64, b"99999999\n"])
def test_remnant_of_an_interrupted_start_is_overcome(
    home: Path, join: Join, remnant: bytes
) -> None:
    (home / "postgresql" / "postmaster.pid").write_bytes(remnant)
    user = join(home)
    user.read()
    assert postmaster(home) is not None
    user.leave()


def test_children_neither_keep_nor_release_the_lock(home: Path, join: Join) -> None:
    user = join(home)
    user.read()
    server = postmaster(home)
    user.do("pid = os.fork() or (release(), os._exit(0)); os.waitpid(pid, 0)")
    assert in_use(home)
    assert postmaster(home) == server
    user.do("child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)")
    user.do("Path(sys.argv[1], 'child').write_text(str(child.pid))")
    user.kill()
    assert not in_use(home)
    os.kill(int((home / "child").read_text()), signal.SIGKILL)


def test_many_first_users_start_one_server(folder: Path, join: Join) -> None:
    users = [join(folder) for _ in range(5)]
    urls = {user.read() for user in users}
    assert len(urls) == 1
    server = postmaster(folder)
    assert server is not None
    log = (folder / "postgresql" / "server.log").read_text()
    assert log.count("starting PostgreSQL") == 1
    for user in users:
        user.leave()
    assert postmaster(folder) is None


def test_interrupted_first_start_and_long_path(folder: Path, join: Join) -> None:
    home = folder / ("long" * 30)
    (home / "postgresql.new" / "base").mkdir(parents=True)  # initdb was killed
    user = join(home)
    assert make_url(user.read()).query["host"] != str(home / "postgresql")
    user.do("from storage.database import connect; connect(embedded_url(Path(sys.argv[1])))")
    assert (home / "postgresql" / ".s.PGSQL.5432").exists()
    user.leave()
    assert not (home / "postgresql" / ".s.PGSQL.5432").exists()


def test_unusable_home_is_one_line(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(
        StorageError, match=r"cannot use the data folder .*; set DENSITUNE_HOME"
    ) as raised:
        embedded_url(folder / "file" / "home")
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)


def test_data_of_another_version_is_refused(folder: Path) -> None:
    (folder / "postgresql").mkdir()
    (folder / "postgresql" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StorageError, match=r"not a data folder of PostgreSQL 18 .*found: 16"):
        embedded_url(folder)
    assert not in_use(folder)


def test_server_on_another_host_is_not_doubled(folder: Path) -> None:
    (folder / "postgresql").mkdir()
    (folder / "postgresql" / "PG_VERSION").write_text("18\n")
    (folder / "postgresql" / "postmaster.pid").write_text("99999999\n/elsewhere\n")
    (folder / "postgresql.host").write_text("node17 another-boot")
    with pytest.raises(StorageError, match=r"in use on host node17; .*--storage"):
        embedded_url(folder)
    assert (folder / "postgresql" / "postmaster.pid").exists()


def test_failing_start_quotes_the_log(home: Path) -> None:
    settings = home / "postgresql" / "postgresql.auto.conf"
    before = settings.read_text()
    settings.write_text("shared_buffers = plenty\n")
    with pytest.raises(StorageError, match=r"FATAL: .*contains errors; its log is .*server.log"):
        embedded_url(home)
    settings.write_text(before)
    assert not in_use(home)


def test_a_server_that_hangs_is_not_doubled(home: Path, join: Join) -> None:
    user = join(home)
    user.read()
    server = postmaster(home)
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    following = join(home)
    time.sleep(1.0)
    os.kill(server, signal.SIGCONT)
    following.read()
    assert postmaster(home) == server
    following.leave()
    user.leave()
