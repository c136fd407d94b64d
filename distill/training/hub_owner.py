"""Whether a repository of the Hub is that of a run, by an id which the run keeps."""

import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from distill.checkpoint.layout import METRICS_FILE, RUN_ID_FILE
from distill.errors import InputError
from distill.files import replace_text
from distill.models.hub.card import CARD_FILE, has_text
from distill.models.hub.commit import Head, Target, files_at, look_at
from distill.models.hub.faults import write_fault
from distill.training.hub_resume import HUB_ID

_ATTRIBUTES_FILE = ".gitattributes"  # the Hub puts it into a new repository


class HubOwner:
    """The id of a run and of this session, which each push writes into the repository."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._id = _run_id(output)
        self._session = uuid.uuid4().hex
        self._has_pushed = False
        self._earlier_session: str | None = None  # that published last, until this one has

    @property
    def content(self) -> bytes:
        """The content of HUB_ID."""
        return f"{self._id}\n{self._session}\n".encode()

    def pushed(self) -> None:
        """Note a push that succeeded: after it no other session may push."""
        self._has_pushed, self._earlier_session = True, None

    def look(self, target: Target) -> tuple[Head, list[str]]:
        """Return the head of the repository, on which the next commit is made, and its files.

        Raises:
            InputError: it cannot be written, or its files are not of this run.
        """
        head = look_at(target)
        paths = files_at(target, head)
        others = [path for path in paths if path != _ATTRIBUTES_FILE]
        # The Hub's page for a new repository writes a card of metadata alone.
        if not others or (
            others == [CARD_FILE] and not has_text(_content(target, head, CARD_FILE))
        ):
            return head, paths
        if HUB_ID in paths:
            run_id, _, session = _content(target, head, HUB_ID).strip().partition("\n")
            if run_id == self._id:
                if self._earlier_session is None and not self._has_pushed:
                    self._earlier_session = session
                if session not in (self._session, self._earlier_session):
                    raise InputError(
                        f"{target.repo}: another process publishes this run there since: end one of"
                        " the two"
                    )
                return head, paths
        elif METRICS_FILE in paths and self._has_begun_with(_content(target, head, METRICS_FILE)):
            return head, paths  # an earlier version published it
        raise InputError(
            f"{target.repo}: holds files of something else ({', '.join(others[:3])}), so nothing is"
            " published there: set log.publish.repo to another repository, or, to continue the run"
            f" that it holds, start on an empty folder with resume=hf://{target.repo}"
        )

    def _has_begun_with(self, metrics: str) -> bool:
        """Return whether a log begins as the one of this run, in which times are recorded."""
        file = self._output / METRICS_FILE
        with suppress(OSError, UnicodeDecodeError), file.open(encoding="utf-8") as lines:
            first = next(lines, "")
            return first.strip() != "" and metrics.startswith(first)
        return False


def _run_id(output: Path) -> str:
    """Return the id of the run in a folder, which is drawn once."""
    file = output / RUN_ID_FILE
    with suppress(OSError, UnicodeDecodeError):
        if found := file.read_text(encoding="utf-8").split():
            return found[0]
    run_id = uuid.uuid4().hex
    with suppress(OSError):  # a full disk: the next write of the run says so
        replace_text(file, f"{run_id}\n")
    return run_id


def _content(target: Target, head: Head, name: str) -> str:
    """Return the text of a file in the repository, past the cache."""
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = hf_hub_download(target.repo, name, revision=head.commit, local_dir=folder)
        except Exception as error:  # of huggingface_hub and its HTTP library
            raise write_fault(error, target.repo) from error
        return Path(path).read_text(encoding="utf-8", errors="replace")
