"""Code of the user's own, as `module:function`: where it lies on this machine, and its fingerprint.

A study names an entry and keeps a fingerprint; code never comes from the database, and is never
chosen by it. It is looked for in one place, which this machine's user names (`--code`,
DENSITUNE_CODE, else the current folder): a folder, or one package that is installed. Nothing of it
is run to find it or to take its fingerprint.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from optimizer.errors import UsageError

VARIABLE = "DENSITUNE_CODE"
MOST_FILES, MOST_BYTES = 10_000, 2**26
"""What code may come to: beyond that, the folder has something else in it."""
INSTALLED = ("site-packages", "dist-packages")
OURS = ("densitune", "optimizer", "storage", "workers")
HOUSE = Path(__file__).resolve().parent.parent
Place = Path | str
"""Where code is looked for: a folder, or the name of an installed package."""


@dataclass(frozen=True)
class Entry:
    """A function of the user's own, and what it was found to be here."""

    module: str
    function: str
    folder: Path
    """What has to be on Python's path for the module to be imported."""
    file: Path
    """The module's own."""
    fingerprint: str
    """SHA-256 over the names and contents of the code's *.py files."""
    place: Place
    """Where it was looked for."""
    sources: tuple[Path, ...] = field(repr=False)
    """The files that the fingerprint is of."""

    @property
    def name(self) -> str:
        """Return what a study's file calls it."""
        return f"{self.module}:{self.function}"

    @property
    def source(self) -> str:
        """Return what a study says of it."""
        return f"code {self.name}"


def place(given: str | None = None) -> Place:
    """Return where code is looked for: what was given, DENSITUNE_CODE, or the folder we are in.

    A folder is one by its full path. UsageError if there is neither such a folder nor such a
    package, or if the package is Python's, ours or a dependency of ours.
    """
    named = given or os.environ.get(VARIABLE) or "."
    chosen = Path(named).expanduser().resolve()
    if chosen.is_dir():
        return chosen
    if not named.isidentifier() or _installed(named) is None:
        raise UsageError(
            f"{chosen} is no folder of code, and {named} no installed package; give one of them "
            f"with --code or {VARIABLE}"
        )
    if named in sys.stdlib_module_names or named in OURS or named in _dependencies():
        raise UsageError(
            f"--code {named} is no code of yours: it comes with Python or densitune; give a folder "
            f"or a package of your own"
        )
    return named


def find(entry: str, place: Place) -> Entry:
    """Find `module:function` there, without running anything; UsageError if it is not there.

    The fingerprint is that of all code in the folder, because any of it may be imported; or that of
    an installed package or module alone.
    """
    module, _, function = entry.partition(":")
    top, *inner = module.split(".")
    spec = _top(top, place)
    if spec is None:
        raise UsageError(
            f"{entry}: there is no module {top} in {place}, where this machine looks for code; "
            f"name its folder, or the installed package that has it, with --code or {VARIABLE}"
        )
    places = [Path(each) for each in spec.submodule_search_locations or ()]
    file = _module_file([Path(spec.origin)] if spec.origin else [], places, inner)
    if file is None:
        raise UsageError(f"{entry}: {top} has no module {module} in Python; look at the entry")
    root = place if isinstance(place, Path) else (places[0] if places else file).parent
    code = root if isinstance(place, Path) else places[0] if places else None
    sources = (file,) if code is None else _below(entry, code)
    if not _has(sources, file) or _comes_with_python(file):
        raise UsageError(
            f"{entry}: {file} is not of the user's code in {place}: what is hidden, installed or "
            f"Python's own is none; look at the entry"
        )
    return Entry(module, function, root, file, _fingerprint(entry, root, sources), place, sources)


def check(entry: Entry, kept: str) -> None:
    """Check that code is that of a study; UsageError if not."""
    if entry.fingerprint != kept:
        raise UsageError(
            f"the code of {entry.name} here ({entry.folder}, fingerprint "
            f"{entry.fingerprint[:12]}) is not the study's (fingerprint {kept[:12]}); "
            f"results could not be compared; any *.py of it counts: put back what was changed or "
            f"added, or name the study's with --code FOLDER or {VARIABLE}"
        )


def load(entry: Entry) -> Callable[..., Any]:
    """Import an entry into this process; UsageError if that fails, whatever its code raises.

    Its folder comes last on Python's path: what has another module's name is refused before it is
    imported, and so is, in the end, what the code has itself imported from elsewhere.
    """
    if str(entry.folder) not in sys.path:
        sys.path.append(str(entry.folder))
    _check_seen(entry)
    try:
        module = importlib.import_module(entry.module)
    except Exception as error:  # anything may happen in there
        raise UsageError(
            f"{entry.name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, entry.file):
        raise _mixed_up(entry, found)
    function: Callable[..., Any] | None = getattr(module, entry.function, None)
    if not callable(function):
        raise UsageError(f"{entry.file} has no function {entry.function}; look at the entry")
    home = getattr(function, "__module__", None)
    written = getattr(sys.modules.get(str(home)), "__file__", None)
    if written is None or not _has(entry.sources, Path(written)):
        raise UsageError(
            f"{entry.name} is not written in {entry.file} but in {written or home}, which is not "
            f"of your code; name a function that is (it may call the other)"
        )
    return function


def _check_seen(entry: Entry) -> None:
    """Check that Python would take an entry's module, or its package, from where we found it."""
    top = entry.module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # such as __main__
        spec = None
    expected = _top(top, entry.place)
    if spec is None or expected is None or _whereabouts(spec) != _whereabouts(expected):
        raise _mixed_up(entry, None if spec is None else _whereabouts(spec))


def _whereabouts(spec: ModuleSpec) -> str:
    """Return the file of a module, or the folder that is searched first of a package without."""
    first = next(iter(spec.submodule_search_locations or ()), "")
    return os.path.realpath(spec.origin if spec.has_location and spec.origin else first)


def _mixed_up(entry: Entry, found: str | None) -> UsageError:
    return UsageError(
        f"{entry.name} would be {entry.file}, but module {entry.module} is {found} to this "
        f"process; give yours another name"
    )


def _top(name: str, place: Place) -> ModuleSpec | None:
    """Return where a module or package without a dot lies in a place; None if it does not."""
    importlib.invalidate_caches()
    if isinstance(place, str):
        return _installed(name) if name == place else None
    spec = PathFinder.find_spec(name, [str(place)])
    return spec if spec and (spec.origin or spec.submodule_search_locations) else None


def _installed(name: str) -> ModuleSpec | None:
    """Ask all of Python's finders but those that know what is imported already."""
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, None) if find_spec else None
        if spec is not None:
            return spec
    return None


def _dependencies() -> set[str]:
    """Return the names of packages that are installed because densitune needs or may use them."""
    waiting, found = ["densitune"], set()
    while waiting:
        project = waiting.pop().lower().replace("_", "-")
        if project in found:
            continue
        found.add(project)
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra that is not installed
            waiting += [
                re.split(r"[^\w.-]", line, maxsplit=1)[0]
                for line in importlib.metadata.requires(project) or []
                if project == "densitune" or "extra ==" not in line
            ]
    return {
        package
        for package, projects in importlib.metadata.packages_distributions().items()
        if found & {project.lower().replace("_", "-") for project in projects}
    }


def _comes_with_python(file: Path) -> bool:
    """Tell whether a file is of the standard library or of densitune itself."""
    real = file.resolve()
    if any(name in real.parts for name in INSTALLED):
        return False
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return real.is_relative_to(library) or any(real.is_relative_to(HOUSE / own) for own in OURS)


def _module_file(own: list[Path], places: list[Path], inner: list[str]) -> Path | None:
    """Return the file of a module within its top package; None if it is not written in Python."""
    if inner:
        path = Path(*inner)
        own = [
            place / file
            for place in places
            for file in (path.with_suffix(".py"), path / "__init__.py")
        ]
    return next((file for file in own if file.suffix == ".py" and file.is_file()), None)


def _below(entry: str, root: Path) -> tuple[Path, ...]:
    """Return the *.py files of a folder in order; UsageError if they are too many for an entry."""
    sources: list[Path] = []
    size = 0
    for path in _files(root):
        sources.append(path)
        size += path.stat().st_size
        if len(sources) > MOST_FILES or size > MOST_BYTES:
            raise UsageError(
                f"{entry}: {root} has more Python files than a fingerprint is taken of "
                f"({MOST_FILES} files, {MOST_BYTES >> 20} MiB); name a smaller folder with --code"
            )
    return tuple(sorted(sources))


def _fingerprint(entry: str, root: Path, sources: tuple[Path, ...]) -> str:
    """Return the SHA-256 of files below a root; UsageError if one cannot be read."""
    digest = hashlib.sha256()
    for path in sources:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{entry}: {path} cannot be read: {error.strerror}") from error
        digest.update(path.relative_to(root).as_posix().encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _has(sources: tuple[Path, ...], file: Path) -> bool:
    """Tell whether a file is one of some, by whatever way."""
    real = os.path.realpath(file)
    return any(os.path.realpath(path) == real for path in sources)


def _files(root: Path) -> Iterator[Path]:
    """Yield the *.py files of a folder: not what is hidden, installed or cached in it.

    Links are followed; each folder is looked into once. A pipe or a link to nothing is no file.
    """
    seen: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True):
        at, real = Path(here), os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(  # which of two ways leads there first must not depend on the disk
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__pycache__", *INSTALLED)
            and not (at / name / "pyvenv.cfg").exists()
        )
        for name in files:
            if name.endswith(".py") and name[0] != "." and (at / name).is_file():
                yield at / name
