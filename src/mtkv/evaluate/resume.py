"""One job's journals of answers in its checkpoint, one for each dataset."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from mtkv.evaluate.journal import Journal, read_journal
from mtkv.provenance.checkpoints import Checkpoint
from mtkv.provenance.preemption import Preemption


class Resume:
    """Context manager around the answering of `questions` (their number by dataset) with `digests` (of all that decides the answers).

    Without a checkpoint nothing is kept and nothing known. Asked to leave (USR1), the process ends between two batches (SavedExit).
    """

    def __init__(self, checkpoint: Checkpoint | None, questions: Mapping[str, int], digests: Mapping[str, str]) -> None:
        self._checkpoint, self._questions, self._digests = checkpoint, questions, digests
        self._preemption = Preemption()
        self._done, self._total = 0, sum(questions.values())

    def __enter__(self) -> Self:
        if self._checkpoint is not None:
            known = sum(len(read_journal(self._path(name))) for name in self._questions)
            if known:
                self._checkpoint.note_resume(known)
            self._preemption.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._checkpoint is not None:
            self._preemption.__exit__(kind, error, trace)

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
            if self._preemption.asked:
                checkpoint.check()
                self._preemption.leave(f"answers to {self._done} of {self._total} questions")

        with Journal(self._path(dataset), told, pause) as journal:
            yield journal
        self._done = before + self._questions[dataset]

    def _path(self, dataset: str) -> Path:
        assert self._checkpoint is not None
        return self._checkpoint.folder / f"{self._digests[dataset][:16]}.jsonl"
