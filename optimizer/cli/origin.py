"""Whether data and code here are those of a study: results could not be compared otherwise."""

from collections.abc import Callable, Mapping

from sqlalchemy import Engine

from optimizer.config.study_file import StudyConfig, parse
from optimizer.errors import UsageError
from storage import studies
from storage.studies import Study

CODE = "code"
"""What a study keeps of it: which it is, by the name that its config has."""


def check_fingerprint(study: Study, source: str, fingerprint: str) -> None:
    """Check that the data here, or the code, are those of the study; UsageError if not."""
    if study.data_fingerprint != fingerprint:
        script = study.config["data"].get("entry") is not None
        what, remedy = ("data here", "")
        if script:
            what = "files of the code here"
            remedy = (
                "; any *.py below the folder counts: put back what was changed or added, name the "
                "study's folder with --code FOLDER, or begin a study of another name"
            )
        raise UsageError(
            f"the {what} ({source}, fingerprint {fingerprint[:12]}) are not those of study "
            f"{study.name} ({study.provenance['source']}, fingerprint "
            f"{study.data_fingerprint[:12]}); results could not be compared{remedy}"
        )


def check_existing(
    engine: Engine, config: StudyConfig, code: Callable[[StudyConfig], Mapping[str, str]]
) -> None:
    """Check that the code of a config is that of its study, if there is one; UsageError.

    code: which code a config's names stand for here. Of another config `create` tells.
    """
    study = studies.find(engine, config.name)
    if study is None:
        return
    stored = parse(study.config, origin=f"of study {study.name}")
    if (stored.data, stored.proxy) == (config.data, config.proxy):
        check_code(study, code(stored))


def check_code(study: Study, here: Mapping[str, str]) -> None:
    """Check that code of the user's, and libraries, are here as the study had them; UsageError.

    Before any of it is called. What a study keeps nothing of is refused: somebody else named it.
    """
    kept = study.provenance.get(CODE, {})
    for name, code in here.items():
        wanted = kept.get(name)
        if wanted is None:
            raise UsageError(
                f"study {study.name} names {name} and has kept no fingerprint of it; its config "
                f"was altered, do not train it"
            )
        if code != wanted:
            raise UsageError(
                f"{name} is {code[:20]} here, and in study {study.name} it is {wanted[:20]}; "
                f"results could not be compared: install that version, or name the folder of that "
                f"code with --code FOLDER or DENSITUNE_CODE"
            )
