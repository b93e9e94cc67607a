"""Models, data sets, licences and the hub, against a hub on this machine, and never on the network."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from mtkv.ops.doctor import assets
from mtkv.provenance.files import write_json

NAME = "meta-llama/Llama-3.2-1B"
LLAMA = {"teachers": {"models": {"gpt2": {"source": "hub", "name": NAME}}}}
REAL = {
    "data": {"mixture": "multi_reasoning_cot_direct", "folder": "data", "sources": ["gsm8k"]},
    "datasets": ["gsm8k", "gpqa"],
}


@pytest.fixture
def real(clinic):
    """An overlay with real data in a folder that is empty."""
    base = yaml.safe_load((assets.Path(__file__).parents[2] / "config/config.yaml").read_text(encoding="utf-8"))
    by_task = [
        name
        for name, arm in base["arms"].items()
        if "by_task" in str(arm) or arm.get("extends") in ("oracle", "merged_kv")
    ]
    return REAL | {"claims": dict.fromkeys(base["claims"]), "arms": dict.fromkeys(by_task)}


@contextmanager
def answering(code):
    """A hub that answers everything with one status, and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def put(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_pocket_study_needs_nothing(clinic):
    for name in ("models and data", "licences", "hub"):
        assert [level for level, _, _ in clinic.findings(name)] == ["ok"], name


def test_a_model_that_is_not_fetched_and_then_is(clinic):
    ((level, message, fix),) = clinic.findings("models and data", LLAMA)
    assert (level, NAME in message, "snakemake assets" in fix) == ("error", True, True)
    folder = clinic.folder / "assets/models/meta-llama--Llama-3.2-1B--main"
    write_json(folder / "config.json", {})
    write_json(folder.with_name(f"{folder.name}.json"), {})
    assert clinic.findings("models and data", LLAMA) == [("ok", "all 1 of the hub are here", "")]
    assert clinic.findings("licences", LLAMA)[0][0] == "ok"


def test_a_model_folder_that_is_still_to_be_put_into_assets(clinic):
    overlay = {"teachers": {"models": {"gpt2": {"source": "path", "name": "assets/models/mine"}}}}
    found = clinic.findings("models and data", overlay)
    assert found[0][:2] == ("error", "teachers.models.gpt2: there is no model at assets/models/mine")
    put(clinic.folder / "assets/models/mine/config.json")
    assert [level for level, _, _ in clinic.findings("models and data", overlay)] == ["ok"]


def test_missing_sources_stop_and_missing_benchmarks_leave_cells_empty(clinic, real):
    found = {level: message for level, message, _ in clinic.findings("models and data", real)}
    assert found == {
        "error": "not here: openai/gsm8k",
        "warning": "benchmarks that are not here: openai/gsm8k, Idavidrein/gpqa; their cells of the report stay empty",
    }
    for path in ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "gpqa/gpqa_main.csv"):
        put(clinic.folder / "data" / path)
    assert clinic.findings("models and data", real) == [("ok", "all 3 of the hub are here", "")]


def test_a_split_that_training_lacks_is_told_once(clinic, real):
    for path in ("gsm8k/test.jsonl", "gpqa/gpqa_main.csv"):
        put(clinic.folder / "data" / path)
    assert [found[:2] for found in clinic.findings("models and data", real)] == [("error", "not here: openai/gsm8k")]


def test_a_gated_benchmark_without_a_token_is_a_warning(clinic, real, monkeypatch):
    ((level, message, fix),) = clinic.findings("licences", real)
    assert (level, "Idavidrein/gpqa" in message) == ("warning", True)
    assert "https://huggingface.co/datasets/Idavidrein/gpqa" in fix
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert clinic.findings("licences", real) == [("ok", "Idavidrein/gpqa is gated; there is a token", "")]


def test_the_token_is_found_where_the_hubs_library_looks(clinic, monkeypatch):
    assert assets.token() is None
    put(clinic.folder / "hf/token", "hf_file\n")
    assert assets.token() == "hf_file"
    put(clinic.folder / "other", "hf_other")
    monkeypatch.setenv("HF_TOKEN_PATH", str(clinic.folder / "other"))
    assert assets.token() == "hf_other"
    monkeypatch.setenv("HF_TOKEN", " hf_env ")
    assert assets.token() == "hf_env"


@pytest.mark.parametrize(("code", "expected"), [(200, "ok"), (401, "error"), (403, "error"), (404, "ok"), (503, "ok")])
def test_the_hub_says_whether_the_licence_is_accepted(clinic, monkeypatch, code, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with answering(code) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        ((level, message, fix),) = clinic.findings("licences", LLAMA)
    assert level == expected
    assert asked == [(f"/api/models/{NAME}/auth-check", "Bearer hf_secret")]
    assert "hf_secret" not in message + fix


@pytest.mark.parametrize(("code", "expected"), [(200, "ok"), (404, "ok"), (502, "warning")])
def test_a_mirror_that_answers(clinic, monkeypatch, code, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with answering(code) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url + "/")
        ((level, message, _),) = clinic.findings("hub", LLAMA)
    assert (level, url in message) == (expected, True)
    assert asked == [("/", None)]


def test_a_hub_that_hangs_or_refuses_costs_seconds(clinic, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(assets, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert assets.answer("/", None, timeout=0.2) is None
        monkeypatch.setattr(assets, "answer", lambda path, bearer: None)
        ((level, _, fix),) = clinic.findings("hub", LLAMA)
    assert (level, "HF_ENDPOINT" in fix) == ("warning", True)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", "not an address")
    assert assets.answer("/", None) is None


def test_offline_nothing_is_asked(clinic, monkeypatch, real):
    def forbidden(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(assets, "answer", forbidden)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for overlay in (real, LLAMA):
        assert clinic.findings("licences", overlay)
        assert [level for level, _, _ in clinic.findings("hub", overlay)] == ["note"]
