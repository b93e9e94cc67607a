"""A prediction that is killed or asked to leave goes on where it stood, and leaves the bytes of an undisturbed one."""

import json
import multiprocessing
import os
import signal
import zlib
from types import SimpleNamespace

import pytest

from mtkv.checkpointing.lock import LockedError
from mtkv.checkpointing.store import Checkpoint, checkpoint_folder
from mtkv.evaluate import lm_eval_model as evaluation_model
from mtkv.evaluate.generation import GreedyDecoder
from mtkv.evaluate.journal import Journal, in_chunks, read_journal
from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.provenance.files import DiskFullError, read_json
from mtkv.stages.predict import ModelSource, predict

SAID, SCORED = "pocket_gsm8k", "pocket_gpqa"
IDENTITY = {"stage": "predictions"}
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def study(tmp_path_factory, data_folder, model_folders, study_tools):
    """`study(root)` answers two datasets with a checkpoint in `root` (None: without); `study.passes` are what the model did."""
    loaded = load_folder(model_folders["llama"])
    study = SimpleNamespace(passes=0, model=loaded[0])

    def count(module, arguments):
        study.passes += 1

    loaded[0].model.register_forward_pre_hook(count)

    def run(root, **changes):
        folder = root or tmp_path_factory.mktemp("undisturbed")
        outputs = {name: folder / f"{name}.parquet" for name in (SAID, SCORED)}
        source = ModelSource(model_folders["llama"], lambda _: loaded)
        arguments = (source, data_folder, study_tools.config(batch_size=3), outputs)
        study.passes = 0
        if root is None:
            facts = predict(*arguments, **changes)
        else:
            with Checkpoint(root, IDENTITY, {}) as checkpoint:
                facts = predict(*arguments, checkpoint=checkpoint, **changes)
        return facts, {name: path.read_bytes() for name, path in outputs.items()}

    study.run, study.items = run, study_tools.items
    study.facts, study.reference = run(None)
    study.undisturbed = study.passes
    return study


@pytest.fixture(params=["own loop", "lm-eval's loop"])
def loop(request, monkeypatch):
    """Both ways of answering."""
    if request.param != "own loop":
        monkeypatch.setattr(evaluation_model, "can_share", lambda *_: False)
        monkeypatch.setattr(evaluation_model, "CHUNK", 1)
    return request.param


def in_child(study, root, passes, number):
    """Predict in a forked process that gets the signal `number` when the model begins pass `passes`; its exit code."""

    def work():
        def send(module, arguments):
            if study.passes == passes:
                os.kill(os.getpid(), number)

        study.model.model.register_forward_pre_hook(send)
        study.run(root)

    child = FORK.Process(target=work)
    child.start()
    child.join(120)
    return child.exitcode


def kept(root):
    folder = checkpoint_folder(root, IDENTITY)
    return {path.name: len(read_journal(path)) for path in folder.glob("*.jsonl")} if folder.exists() else {}


def test_killed_again_and_again_the_answers_are_those_of_an_undisturbed_prediction(study, tmp_path, loop):
    reference = study.run(None)[1]
    undisturbed, known, kills = study.passes, [], 0
    assert (reference == study.reference) or loop != "own loop"
    while in_child(study, tmp_path, 1 + undisturbed // 3, signal.SIGKILL) == -signal.SIGKILL:
        kills += 1
        known.append(sum(kept(tmp_path).values()))
        assert kills < 20, "nothing is gained"  # at least one answer fits into a third of the passes
    assert kills >= 2
    assert known == sorted(known)
    folder = checkpoint_folder(tmp_path, IDENTITY)
    assert read_json(folder / "finished.json")["resumed_at"] == [number for number in known if number]
    assert {name: (tmp_path / f"{name}.parquet").read_bytes() for name in reference} == reference
    assert kept(tmp_path) == {}


def test_usr1_leaves_with_75_between_two_batches_and_nothing_is_asked_twice(study, tmp_path):
    assert in_child(study, tmp_path, study.undisturbed - 1, signal.SIGUSR1) == 75
    (scored,) = (
        count for name, count in kept(tmp_path).items() if name.startswith(study.facts["digests"][SCORED][:16])
    )
    assert sum(kept(tmp_path).values()) == study.items + scored
    progress = read_json(checkpoint_folder(tmp_path, IDENTITY) / "progress.json")
    assert (progress["total"], progress["unit"]) == (2 * study.items, "questions")
    facts, found = study.run(tmp_path)
    assert study.passes <= 1  # what the last batch reads
    assert found == study.reference
    assert facts["resumed_at"] == [study.items + scored]
    for name in (SAID, SCORED):
        for fact in ("items", "generated_tokens", "passes_per_question"):
            assert facts["datasets"][name][fact] == study.facts["datasets"][name][fact]


def test_answers_of_a_job_that_is_done_are_found_in_the_cache(study, tmp_path):
    study.run(tmp_path, cache=tmp_path / "cache")
    facts, found = study.run(tmp_path, cache=tmp_path / "cache")
    assert facts["reused"] == [SAID, SCORED]
    assert found == study.reference
    assert (checkpoint_folder(tmp_path, IDENTITY) / "finished.json").exists()


def test_answers_of_other_code_are_not_taken(study, tmp_path):
    assert in_child(study, tmp_path, study.undisturbed - 1, signal.SIGKILL) == -signal.SIGKILL
    assert study.run(tmp_path, code="other")[0]["resumed_at"] == []
    assert study.passes == study.undisturbed


def test_a_second_prediction_is_refused(study, tmp_path):
    with Checkpoint(tmp_path, IDENTITY, {}), pytest.raises(LockedError):
        study.run(tmp_path)


def test_cut_and_flipped_lines_are_passed_over_and_new_ones_stand_on_their_own(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        for place, answer in enumerate(([1, 2], [[-1.5, True]], "北京 🙂\n")):
            journal.put("said", place, [place], answer)
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        with Journal(path) as journal:
            journal.put("said", 9, "q", "new")
        with Journal(path) as journal:
            known = [journal.get("said", place, [place]) for place in range(3)]
            assert journal.get("said", 9, "q") == "new"
            assert journal.get("said", 9, "another question") is None
            assert journal.get("scores", 9, "q") is None
        complete = content[:cut].count(b"}\n") + content[: cut + 1].count(b"]\n")
        assert known == [[1, 2], [[-1.5, True]], "北京 🙂\n"][:complete] + [None] * (3 - complete)
    flipped = bytearray(content)
    flipped[content.index(b"1,2")] ^= 1
    path.write_bytes(flipped)
    assert len(read_journal(path)) == 2


def test_a_line_is_what_the_docstring_says(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.put("said", 0, [5], [1])
    line = (tmp_path / "j").read_text().strip()
    crc, _, text = line.partition(" ")
    assert int(crc, 16) == zlib.crc32(text.encode())
    assert json.loads(text)[1] == [1]


def test_a_full_disk_is_an_error(tmp_path):
    path = tmp_path / "j"
    path.symlink_to("/dev/full")
    journal = Journal()
    journal._path = path
    with pytest.raises(DiskFullError, match="no space left"), journal:
        pass


def test_chunks_give_back_counters_of_what_was_known():
    answers = {}

    class Known(Journal):
        def get(self, kind, place, question):
            return answers.get((kind, place, tuple(question)))

        def put(self, kind, place, question, answer, questions=1):
            answers[kind, place, tuple(question)] = answer

    model = SimpleNamespace(journal=Known(), generated_tokens=0, question_passes=0)

    def work(places):
        model.generated_tokens += 10 * len(places)
        model.question_passes += len(places)
        asked.append(list(places))
        return [f"answer {place}" for place in places]

    asked = []
    first = in_chunks(model, "texts", ["a", "b", "c", "d", "e"], 2, work)
    assert asked == [[0, 1], [2, 3], [4]]
    counters = (model.generated_tokens, model.question_passes)
    assert counters == (50, 5)
    assert in_chunks(model, "texts", ["a", "b", "x", "d", "e"], 2, work) == first
    assert asked[3:] == [[2, 3]]
    assert (model.generated_tokens, model.question_passes) == (100, 10)


def test_whatever_is_known_the_answers_are_the_same(model_folders):
    """Every subset of the answers, with batches that are refilled and a shared beginning."""
    model, tokenizer = load_folder(model_folders["llama"])
    wrapped = EvaluationModel(model, tokenizer, 2)
    beginning = list(range(5, 65))
    prompts = [beginning + [70 + number] * (1 + number % 3) for number in range(6)]

    def choose(logits, answers):
        return logits.argmax(-1).tolist()

    def run(known):
        class Some(Journal):
            def get(self, kind, place, question):
                return list(known[place]) if place in known else None

            def put(self, kind, place, question, answer, questions=1):
                said[place] = list(answer)

        said = {}
        decoder = GreedyDecoder(model, wrapped._forward, choose, lambda tokens: tokens[-1] % 5 == 0, 8)
        found = decoder.generate(prompts, 2, True, Some())
        assert said.keys() == set(range(6)) - known.keys()
        assert all(found[place] == answer for place, answer in said.items())
        return found

    reference = run({})
    assert len({len(answer) for answer in reference}) > 1, "answers end at different times"
    for subset in range(0, 64, 3):
        assert run({place: reference[place] for place in range(6) if subset >> place & 1}) == reference
