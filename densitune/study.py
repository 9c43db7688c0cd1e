"""Studies from Python, through the command `densitune`, which runs in processes of its own.

So nothing of the service is imported here: its names and packages meet no others, a notebook stays
as light as it was, and what a study does is the same from here as from a shell.
"""

import atexit
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pandas

    from densitune.preset import Preset

_LOOK_SECONDS = 0.1
"""Between two looks at a command that runs."""
_LEAVE_SECONDS = 60.0
"""From telling a launch to leave until it is killed; it gives its workers half as long."""
_NEEDED = (
    "densitune.Study needs the packages of the service; install densitune with its dependencies, "
    "without --no-deps"
)


class StudyError(Exception):
    """What the command `densitune` could not do, in its own words: one line."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.exit_code = exit_code
        """1 the study cannot go on, 2 bad usage or config, 3 storage unreachable."""


class Study:
    """A study: one config, from calibration to verdict.

    Every method asks the command line, which takes a second or more, and raises StudyError with
    the line that it ends with.
    storage: URL of a PostgreSQL server; without it DENSITUNE_STORAGE, or else the embedded one.
    """

    def __init__(self, name: str, *, storage: str | None = None) -> None:
        self.name = name
        self._storage = storage
        self._launched: _Command | None = None

    def __repr__(self) -> str:
        return f"Study({self.name!r})"

    @classmethod
    def launch(
        cls,
        config: str | PathLike[str] | Mapping[str, Any],
        *,
        workers: int | None = None,
        device: str = "auto",
        until: str | None = None,
        force: bool = False,
        again: bool = False,
        code: str | PathLike[str] | None = None,
        presets: str | PathLike[str] = "presets",
        storage: str | None = None,
    ) -> Self:
        """Start a study, or continue it, in the background; return once it is stored.

        config: a YAML file, or what would stand in one; folders in a mapping are relative to the
        working directory. The rest is as in `densitune launch --help`; the preset is written into
        the folder `presets`. The study goes on without anybody waiting, and stops when this Python
        ends; launched again, it continues. Interrupting `wait` does not stop it, `stop` does.
        """
        given = None
        if isinstance(config, Mapping):
            given = json.dumps(config, default=os.fspath, ensure_ascii=False)
        with tempfile.TemporaryDirectory(prefix="densitune-") as folder:
            announced = Path(folder) / "name"
            options = ["--announce", str(announced), "--device", device, "--presets", str(presets)]
            options += [] if workers is None else ["--workers", str(workers)]
            options += [] if until is None else ["--until", until]
            options += [] if code is None else ["--code", str(code)]
            options += ["--force"] * force + ["--again"] * again
            source = str(config) if given is None else "-"
            launched = _Command(["launch", *options, "--", source], storage, given)
            try:
                while not announced.exists():
                    if not launched.runs():
                        launched.check()  # whoever ends well has announced the study
                    time.sleep(_LOOK_SECONDS)
            except BaseException:
                launched.end()
                raise
            study = cls(announced.read_text(encoding="utf-8"), storage=storage)
        study._launched = launched
        return study

    @classmethod
    def open(cls, name: str, *, storage: str | None = None) -> Self:
        """Return a study that there is, wherever it was launched."""
        study = cls(name, storage=storage)
        study.status()
        return study

    def wait(self, *, quiet: bool = False) -> Self:
        """Wait until the study is finished or stopped, and print how far it is, unless `quiet`.

        StudyError if it cannot go on. A KeyboardInterrupt ends the waiting, not the study.
        """
        launched, self._launched = self._launched, None
        watched = launched or _Command(["status", "--watch", "--", self.name], self._storage)
        try:
            for line in watched.lines():
                if not quiet:
                    print(line)
            watched.check()
        finally:
            if launched is not None and launched.runs():  # only the waiting was interrupted
                self._launched = launched
            else:
                watched.end()
        if launched is None and (failure := self.status()["failure"]):
            raise StudyError(f"study {self.name} has stopped: {failure}", exit_code=1)
        return self

    def stop(self) -> None:
        """Stop the study; its workers hand back their jobs, and launched again it continues."""
        self._ask("stop", "--", self.name)
        if self._launched is not None:
            for _ in self._launched.lines():
                pass
            self._launched.end()
            self._launched = None

    def status(self) -> dict[str, Any]:
        """Return how far the study is and what it found: what `status --json` prints."""
        found: dict[str, Any] = json.loads(self._ask("status", "--json", "--", self.name))
        return found

    @property
    def verdict(self) -> str:
        """Return what is known of the density: `better`, ... (docs/evidence.md).

        `unconfirmed` until the study is decided.
        """
        return str(self.status()["verdict"])

    @property
    def preset(self) -> "Preset":
        """Return the best density so far, as it is exported; its `document` is the whole file."""
        from densitune.preset import load_preset

        with tempfile.TemporaryDirectory(prefix="densitune-") as folder:
            self._ask("export", "--output", folder, "--", self.name)
            return load_preset(Path(folder) / f"{self.name}.json")

    def table(self) -> list[dict[str, Any]]:
        """Return all measurements, one row each (docs/method.md has the columns)."""
        with tempfile.TemporaryDirectory(prefix="densitune-") as folder:
            self._ask("export", "--format", "json", "--output", folder, "--", self.name)
            text = (Path(folder) / f"{self.name}.json").read_text(encoding="utf-8")
            rows: list[dict[str, Any]] = json.loads(text)
            return rows

    def frame(self) -> "pandas.DataFrame":
        """Return `table` as a DataFrame; ImportError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "Study.frame needs pandas, which is not installed; run pip install pandas, or take "
                "Study.table()"
            ) from error
        return pandas.DataFrame(self.table())

    def report(self, path: str | PathLike[str] | None = None) -> Path:
        """Write all that the study found as one HTML file, NAME.html; return its path."""
        file = Path(path or f"{self.name}.html")
        self._ask("report", "--output", str(file), "--", self.name)
        return file

    def _ask(self, *arguments: str) -> str:
        """Return what a command prints."""
        asked = _Command(arguments, self._storage)
        try:
            printed = "\n".join(asked.lines())
            asked.check()
        finally:
            asked.end()
        return printed


class _Command:
    """A command in a session of its own: Ctrl-C is for whoever waits for it.

    It writes to files, so that it never waits for a reader, and ends with this Python at the
    latest.
    """

    def __init__(
        self, arguments: Sequence[str], storage: str | None, given: str | None = None
    ) -> None:
        # What is printed is for programs and pages; Jupyter has it look like a terminal's.
        told = {**os.environ, "TTY_COMPATIBLE": "0"}
        if storage is not None:  # a command line is visible to everybody on the machine
            told["DENSITUNE_STORAGE"] = storage
        self._name = f"densitune {arguments[0]}"
        self._read = 0  # bytes of the output
        with ExitStack() as files:
            self._output, self._errors, config = (
                files.enter_context(tempfile.TemporaryFile()) for _ in range(3)
            )
            config.write((given or "").encode())
            config.seek(0)
            self._process = subprocess.Popen(
                [_program(), *arguments],
                env=told,
                stdin=config,
                stdout=self._output,
                stderr=self._errors,
                start_new_session=True,
            )
            self._files = files.pop_all()
        atexit.register(self.end)

    def runs(self) -> bool:
        """Return whether it still runs."""
        return self._process.poll() is None

    def lines(self) -> Iterator[str]:
        """Yield the lines that it prints, from where the last call stopped, until it ends."""
        pending, runs = b"", True
        while runs:
            runs = self.runs()  # before what is read, which is all there is if it has ended
            while new := os.pread(self._output.fileno(), 2**16, self._read):
                self._read += len(new)
                *whole, pending = (pending + new).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if runs:
                time.sleep(_LOOK_SECONDS)
        if pending:
            yield pending.decode(errors="replace")

    def check(self) -> None:
        """Check how it ended; StudyError with its last line of complaint if not well."""
        code = self._process.wait()
        if code == 0:
            return
        said = os.pread(self._errors.fileno(), 2**20, 0).decode(errors="replace").split("\n")
        line = next((line for line in reversed(said) if line.strip()), "")
        if code < 0:
            line = f"{self._name} was ended by signal {-code}"
        if line.startswith(("ModuleNotFoundError", "ImportError")):
            line = f"{_NEEDED} ({line})"
        raise StudyError(line.removeprefix("densitune: "), code)

    def end(self) -> None:
        """End it if it runs, with time to hand back what it holds; again is harmless."""
        atexit.unregister(self.end)
        if self.runs():
            self._process.terminate()
            try:
                self._process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._files.close()


def _program() -> str:
    """Return the command of this Python's installation, or else the one on the path."""
    found = shutil.which("densitune", path=sysconfig.get_path("scripts"))
    found = found or shutil.which("densitune")
    if found is None:
        raise StudyError(f"{_NEEDED} (there is no command densitune)", exit_code=2)
    return found
