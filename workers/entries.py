"""Code of the user's own, as `module:function`: where it lies on this machine, and its fingerprint.

A study names an entry and keeps a fingerprint; code never comes from the database. It is looked for
in a folder (`--code`, DENSITUNE_CODE, else the current one) and then among what is installed.
Nothing of it is run to find it or to take its fingerprint.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from optimizer.errors import UsageError

VARIABLE = "DENSITUNE_CODE"
MOST_FILES, MOST_BYTES = 10_000, 2**26
"""What code may come to: beyond that, the folder has something else in it."""
INSTALLED = ("site-packages", "dist-packages")


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

    @property
    def name(self) -> str:
        """Return what a study's file calls it."""
        return f"{self.module}:{self.function}"

    @property
    def source(self) -> str:
        """Return what a study says of it."""
        return f"code {self.name}"


def folder(given: Path | None) -> Path:
    """Return where code is looked for first: what was given, DENSITUNE_CODE, or where we are.

    UsageError if that is no folder.
    """
    chosen = (given or Path(os.environ.get(VARIABLE) or ".")).expanduser().resolve()
    if not chosen.is_dir():
        raise UsageError(f"{chosen} is no folder of code; give one with --code or {VARIABLE}")
    return chosen


def find(entry: str, folder: Path) -> Entry:
    """Find `module:function`, without running anything; UsageError if the module is not there.

    The fingerprint is that of the module's package, all of it; or, of a plain module, of all files
    beside and below it, because it may import them. One that is installed stands alone.
    """
    module, _, function = entry.partition(":")
    top, *inner = module.split(".")
    spec = _top(top, folder)
    if spec is None:
        raise UsageError(
            f"{entry}: there is no module {top} in {folder}, nor is one installed; name the folder "
            f"that has it with --code FOLDER or {VARIABLE}"
        )
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    file = _module_file([Path(spec.origin)] if spec.origin else [], places, inner)
    if file is None:
        raise UsageError(f"{entry}: {top} has no module {module} in Python; look at the entry")
    if places:
        sources = sorted(_below(places[0]))
        root = places[0].parent
    else:
        root = file.parent
        sources = [file] if root.name in INSTALLED else sorted(_below(root))
    return Entry(module, function, root, file, _fingerprint(entry, root, sources))


def check(entry: Entry, fingerprint: str) -> None:
    """Check that code is that of a study; UsageError if not."""
    if entry.fingerprint != fingerprint:
        raise UsageError(
            f"the code of {entry.name} here ({entry.folder}, fingerprint "
            f"{entry.fingerprint[:12]}) is not the study's (fingerprint {fingerprint[:12]}); "
            f"results could not be compared; name the study's with --code FOLDER or {VARIABLE}"
        )


def load(entry: Entry) -> Callable[..., Any]:
    """Import an entry into this process; UsageError if that fails, whatever its code raises.

    Its folder comes last on Python's path: what has a name of ours is refused, not mixed up.
    """
    if str(entry.folder) not in sys.path:
        sys.path.append(str(entry.folder))
    try:
        module = importlib.import_module(entry.module)
    except Exception as error:  # anything may happen in there
        raise UsageError(
            f"{entry.name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, entry.file):
        raise UsageError(
            f"{entry.name} would be {entry.file}, but module {entry.module} is {found} to this "
            f"process; give yours another name"
        )
    function: Callable[..., Any] | None = getattr(module, entry.function, None)
    if not callable(function):
        raise UsageError(f"{entry.file} has no function {entry.function}; look at the entry")
    return function


def _top(name: str, folder: Path) -> ModuleSpec | None:
    """Return where a module or package without a dot lies: here first, else as installed."""
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(name, [str(folder)])
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return _installed(name)
    return spec


def _installed(name: str) -> ModuleSpec | None:
    """Ask all of Python's finders but those that know what is imported already."""
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, None) if find_spec else None
        if spec is not None:
            return spec
    return None


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


def _below(root: Path) -> Iterator[Path]:
    """Return the *.py files of a folder: not what is hidden, installed or cached in it."""
    for here, folders, files in os.walk(root):
        at = Path(here)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__pycache__", *INSTALLED)
            and not (at / name / "pyvenv.cfg").exists()
        ]
        yield from (at / name for name in files if name.endswith(".py") and name[0] != ".")


def _fingerprint(entry: str, root: Path, sources: list[Path]) -> str:
    if len(sources) > MOST_FILES or sum(path.stat().st_size for path in sources) > MOST_BYTES:
        raise UsageError(
            f"{entry}: beside it lie {len(sources)} Python files, more than a fingerprint is taken "
            f"of ({MOST_FILES} files, {MOST_BYTES >> 20} MiB); move it into a package of its own"
        )
    digest = hashlib.sha256()
    for path in sources:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{entry}: {path} cannot be read: {error.strerror}") from error
        digest.update(path.relative_to(root).as_posix().encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
