"""One data folder under several names: in containers, copied, moved, shared. Nothing is doubled."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.servers import Join, ask, in_use, postmaster
from support.waiting import wait_for

from storage import postmaster as servers
from storage import programs
from storage.errors import StorageError
from storage.occupancy import occupied
from storage.server import embedded_url

MANY_NAMES = ("unshare", "-m", "-i", "-p", "-u", "-f", "--mount-proc", "--kill-child")
NUMBER = Path("/proc/sys/kernel/ns_last_pid")
"""The process id that was given last in the container of whoever looks."""

IN_FULL_LENGTH = "x" * 120


def container(script: str) -> tuple[str, ...]:
    """The command that runs another one in a container of its own, after a script."""
    if subprocess.run([*MANY_NAMES, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make namespaces (unshare)")
    return (*MANY_NAMES, "sh", "-ec", f'hostname elsewhere; {script}; exec "$@"', "sh")


@pytest.fixture
def own(made: Path) -> Iterator[Path]:
    """A home with a database, for this test alone; not in /tmp, which a test covers."""
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/var/tmp") as name:
        home = Path(name) / "home"
        copy(made, home)
        yield home


def copy(home: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", home, to], check=True)


def starts(home: Path) -> int:
    return (home / "postgresql" / "server.log").read_text().count("starting PostgreSQL")


def tables(home: Path) -> set[object]:
    query = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    return {name for (name,) in ask(home, query)}


def test_a_copy_of_a_home_in_use_is_a_database_of_its_own(own: Path, join: Join) -> None:
    user = join(own)
    user.read()
    server = postmaster(own)
    ask(own, "CREATE TABLE shared ()")
    copied = own.with_name("copy")
    copy(own, copied)
    other = join(copied)
    other.read()
    assert postmaster(copied) not in (None, server)
    assert tables(copied) == {"shared"}
    ask(copied, "DROP TABLE shared")
    other.leave()
    assert postmaster(copied) is None
    assert postmaster(own) == server
    assert tables(own) == {"shared"}
    assert starts(own) == starts(copied) - 1  # the copied log goes on
    user.leave()
    assert postmaster(own) is None


def test_a_copy_that_is_put_in_the_place_of_a_moved_home_is_left_alone(
    own: Path, join: Join
) -> None:
    user = join(own)
    user.read()
    server = postmaster(own)
    backup, moved = own.with_name("backup"), own.with_name("moved")
    copy(own, backup)
    own.rename(moved)
    backup.rename(own)
    ask(moved, "CREATE TABLE later ()")
    other = join(own)
    other.read()
    ask(own, "CREATE TABLE restored ()")
    ask(moved, "CHECKPOINT")  # writes the file that tells where a database is to begin
    user.leave()  # knows the home by its old name, under which another server runs
    assert (postmaster(moved), tables(moved)) == (server, {"later"})
    assert tables(own) == {"restored"}
    other.leave()
    for home, expected in (own, "restored"), (moved, "later"):
        again = join(home)
        again.read()
        assert tables(home) == {expected}
        again.leave()
        assert postmaster(home) is None


def test_a_moved_home_is_joined_and_nothing_ends(own: Path, join: Join) -> None:
    user = join(own)
    user.read()
    server = postmaster(own)
    moved = own.with_name("moved")
    own.rename(moved)
    other = join(moved)
    other.read()
    other.leave()
    assert postmaster(moved) == server
    user.do("assert 'was moved or replaced' in refusal()")
    assert not own.exists()
    user.leave()
    last = join(moved)
    last.read()
    last.leave()
    assert postmaster(moved) is None


@pytest.mark.parametrize("same_path", [True, False])
def test_a_second_container_joins_the_server_of_the_first(
    own: Path, join: Join, same_path: bool
) -> None:
    names = [own, own] if same_path else [own.with_name("a"), own.with_name("b")]
    for name in names:
        name.mkdir(exist_ok=True)
    before = starts(own)
    within = [container(f"mount --bind {own} {name}") for name in names]
    first = join(names[0], within[0])
    first.read()
    second = join(names[1], within[1])
    second.read()
    assert starts(own) == before + 1
    ask(own, "CREATE TABLE kept ()")
    # The first container ends, and with it all its processes: the server too.
    first.leave()
    wait_for(lambda: not occupied(own / "postgresql"), 30)
    second.do("embedded_url(home)")
    assert starts(own) == before + 2
    assert tables(own) == {"kept"}
    second.leave()
    assert postmaster(own) is None


def test_the_last_user_in_another_container_stops_the_server_and_nobody_else(
    own: Path, join: Join
) -> None:
    if not NUMBER.exists():
        pytest.skip("this kernel does not let a process choose the number of the next")
    first = join(own)
    first.read()
    server = postmaster(own)
    assert server is not None
    first.kill()
    last = join(own, container("true"))
    last.read()
    last.do(f"Path('{NUMBER}').write_text('{server - 1}')")
    last.do("bystander = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)")
    last.do(f"assert bystander.pid == {server}")
    last.do("release()")
    last.do("assert bystander.poll() is None; bystander.kill(); bystander.wait()")
    assert not occupied(own / "postgresql")
    last.leave()


def test_a_home_with_a_long_path_is_joined_from_another_tmp(own: Path, join: Join) -> None:
    home = own.with_name(IN_FULL_LENGTH)
    own.rename(home)
    before = starts(home)
    user = join(home)
    user.read()
    other = join(home, container("mount -t tmpfs tmpfs /tmp"))
    assert other.read().startswith("postgresql")
    other.do("import psycopg2; from sqlalchemy import make_url")
    other.do("host = make_url(embedded_url(home)).query['host']")
    other.do("psycopg2.connect(host=host, user='postgres', dbname='postgres').close()")
    other.leave()
    user.do("from storage import postmaster; assert postmaster.join(home / 'postgresql')")
    assert starts(home) == before + 1
    user.leave()
    assert not occupied(home / "postgresql")


def test_a_server_whose_socket_is_gone_is_refused_and_stays(
    own: Path, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = join(own)
    user.read()
    (own / "postgresql" / ".s.PGSQL.5432").unlink()
    monkeypatch.setattr(servers, "SILENCE_SECONDS", 0.0)
    with pytest.raises(StorageError, match=r"runs and cannot be reached: .*; end the") as raised:
        embedded_url(own)
    assert "\n" not in str(raised.value)
    assert occupied(own / "postgresql")
    assert (own / "postgresql" / "postmaster.pid").exists()
    user.kill()
    os.kill(int((own / "postgresql" / "postmaster.pid").read_text().split()[0]), 2)
    wait_for(lambda: not occupied(own / "postgresql"), 30)


def test_a_server_that_somebody_else_started_is_refused_and_stays(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = own / "postgresql"
    with tempfile.TemporaryDirectory(prefix="dt-") as sockets:
        os.chmod(sockets, 0o777)
        options = f'-h "" -k {sockets}'
        by_hand = partial(
            programs.run,
            "pg_ctl", "-w", "-D", str(data), "-l", "server.log", "-o", options,
            owner=programs.owner_of(data), seconds=60, folder=data,
        )  # fmt: skip
        for closed in (own.parent, own):
            closed.chmod(0o755)
        assert by_hand("start").returncode == 0
        monkeypatch.setattr(servers, "SILENCE_SECONDS", 0.0)
        with pytest.raises(StorageError, match="runs and cannot be reached"):
            embedded_url(own)
        assert (data / "postmaster.pid").exists()
        assert by_hand("stop").returncode == 0


def test_files_shared_by_hard_links_are_refused(own: Path, join: Join) -> None:
    linked = own.with_name("linked")
    subprocess.run(["cp", "-al", own, linked], check=True)
    for home in (own, linked):
        with pytest.raises(StorageError, match=r"are hard links .*; make a copy .*cp -a"):
            embedded_url(home)
    shutil.rmtree(linked)
    user = join(own)  # not this process, which uses the session's server and would release that too
    assert user.read()
    user.leave()
    assert postmaster(own) is None


def test_homes_that_share_a_folder_by_a_link_share_their_users(own: Path, join: Join) -> None:
    other = own.with_name("other")
    other.mkdir()
    (other / "postgresql").symlink_to(own / "postgresql")
    user, guest = join(own), join(other)
    user.read()
    guest.read()
    server = postmaster(own)
    guest.leave()
    assert postmaster(own) == server
    assert in_use(own)
    user.leave()
    assert postmaster(own) is None


def test_folders_above_the_data_stay_closed(own: Path, join: Join) -> None:
    own.parent.chmod(0o700)
    own.chmod(0o700)
    user = join(own)
    user.read()
    assert postmaster(own) is not None
    assert {own.parent.stat().st_mode & 0o777, own.stat().st_mode & 0o777} == {0o700}
    user.leave()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root meets this")
def test_data_of_root_are_refused_with_what_to_do(own: Path) -> None:
    subprocess.run(["chown", "-R", "0:0", own], check=True)
    with pytest.raises(StorageError, match=r"belongs to root.*: chown -R densitune .*"):
        embedded_url(own)


def test_a_home_begun_in_a_closed_folder_is_made_without_opening_it(
    folder: Path, join: Join
) -> None:
    folder.chmod(0o700)
    user = join(folder / "home")
    user.read()
    assert folder.stat().st_mode & 0o777 == 0o700
    user.leave()
