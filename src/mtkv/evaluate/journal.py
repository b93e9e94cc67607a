"""Answers of one dataset on disk as they are found, so that a prediction that ends early goes on where it stood.

A line of the file is the CRC-32 of an answer's JSON, a blank and the JSON `[key, answer]`. A line that a death cut short is passed over.
`Journal` is one file; `Resume` keeps those of a job in its checkpoint, one for each dataset.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from mtkv.checkpointing.preemption import Preemption
from mtkv.checkpointing.store import INTERVAL, Checkpoint
from mtkv.provenance.digest import digest_of
from mtkv.provenance.files import disk_full, is_disk_full


class Journal:
    """Context manager: `get` knows the answers of earlier attempts, `put` adds one. Without `path` nothing is known and nothing kept.

    `pause` is called where the work may stop, between batches, after the number of questions answered since the last time went to
    `told`. What is put survives the process at once and the machine after `INTERVAL` seconds.
    """

    def __init__(
        self,
        path: Path | None = None,
        told: Callable[[int], object] = lambda questions: None,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self._path, self._told, self._pause = path, told, pause
        self._known = read_journal(path) if path is not None else {}
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._known)

    def __enter__(self) -> Self:
        if self._path is not None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._write(b"\n")  # behind what a death may have left; an empty line is passed over
            self._synced = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def get(self, kind: str, place: int, question: Any) -> Any:
        """The answer to a question, None when it is not known. `place`: its number among those of a kind; JSON in, JSON out."""
        return self._known.get(_key(kind, place, question)) if self._known else None

    def put(self, kind: str, place: int, question: Any, answer: Any, questions: int = 1) -> None:
        """Keep an answer (not None). Raises DiskFullError when there is no room: the answers before stay."""
        if self._file is not None:
            text = json.dumps([_key(kind, place, question), answer], ensure_ascii=False, separators=(",", ":")).encode()
            self._write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._told(questions)

    def pause(self) -> None:
        """The work may stop here."""
        if self._file is not None and time.monotonic() - self._synced > INTERVAL:
            os.fsync(self._file)
            self._synced = time.monotonic()
        self._pause()

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        assert self._path is not None
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self._path, len(line)) from error
            raise


def read_journal(path: Path) -> dict[str, Any]:
    """Answers by key; damaged lines are passed over."""
    if not path.exists():
        return {}
    known = {}
    for line in path.read_bytes().split(b"\n"):
        crc, _, text = line.partition(b" ")
        if text and crc == b"%08x" % zlib.crc32(text):
            key, answer = json.loads(text)
            known[key] = answer
    return known


class Counting(Protocol):
    """A model that keeps a journal and counts what it does."""

    journal: Journal
    generated_tokens: int
    question_passes: int


def in_chunks(
    model: Counting, kind: str, texts: Sequence[Any], size: int, work: Callable[[Sequence[int]], list[Any]]
) -> list[Any]:
    """`work` on the places of `texts`, `size` at a time, for loops that say nothing before their end; what is known is not asked.

    The model's counters are what they would be if everything had been asked.
    """
    found: list[Any] = []
    for start in range(0, len(texts), size):
        part = list(texts[start : start + size])
        kept = model.journal.get(kind, start, part)
        if kept is None:
            tokens, passes = model.generated_tokens, model.question_passes
            answers = work(range(start, start + len(part)))
            kept = [answers, model.generated_tokens - tokens, model.question_passes - passes]
            model.journal.put(kind, start, part, kept, len(part))
            model.journal.pause()
        else:
            model.generated_tokens += kept[1]
            model.question_passes += kept[2]
        found += kept[0]
    return found


def _key(kind: str, place: int, question: Any) -> str:
    return f"{kind}:{place}:{digest_of(question)}"


class Resume(Preemption):
    """Context manager around the answering of `questions` (their number by dataset) with `digests` (of all that decides the answers).

    Without a checkpoint nothing is kept and nothing known. Asked to leave (USR1), the process ends between two batches (SavedExit).
    """

    def __init__(self, checkpoint: Checkpoint | None, questions: Mapping[str, int], digests: Mapping[str, str]) -> None:
        super().__init__(wanted=checkpoint is not None)
        self._checkpoint, self._questions, self._digests = checkpoint, questions, digests
        self._done, self._total = 0, sum(questions.values())

    def __enter__(self) -> Self:
        if self._checkpoint is not None:
            known = sum(len(read_journal(self._path(name))) for name in self._questions)
            if known:
                self._checkpoint.note_resume(known)
        super().__enter__()
        return self

    @contextmanager
    def journal(self, dataset: str) -> Iterator[Journal]:
        """The journal of one dataset; raises DiskFullError inside when there is no room for an answer: those before stay."""
        if self._checkpoint is None:
            yield Journal()
            return
        checkpoint, before = self._checkpoint, self._done
        self._done += len(read_journal(self._path(dataset)))

        def told(questions: int) -> None:
            self._done += questions
            checkpoint.progress(min(self._done, self._total), self._total, "questions", dataset=dataset)

        def pause() -> None:
            if self.asked:
                checkpoint.check()
                self.leave(f"answers to {self._done} of {self._total} questions")

        with Journal(self._path(dataset), told, pause) as journal:
            yield journal
        self._done = before + self._questions[dataset]

    def _path(self, dataset: str) -> Path:
        assert self._checkpoint is not None
        return self._checkpoint.folder / f"{self._digests[dataset][:16]}.jsonl"
