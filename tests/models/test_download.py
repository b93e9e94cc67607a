"""Fetching models from a hub that runs in the test, and the study's offline life afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, Repository, files_of, serve
from huggingface_hub import constants
from safetensors.torch import load_file

from mtkv.config.models import ModelConfig
from mtkv.models import download as fetching
from mtkv.models.download import AssetsError, fetch, fetch_models, wanted_files
from mtkv.models.load import load_model, load_tokenizer, model_layers
from mtkv.models.paths import content_digest, hub_folder
from mtkv.provenance.files import DiskFullError


@pytest.fixture
def source(tmp_path, model_folder):
    return model_folder("llama", tmp_path / "source")


@pytest.fixture
def hub(source, tmp_path, monkeypatch):
    """A hub with one open and one gated model; this machine's assets and cache are empty."""
    extra = {"README.md": b"about", "pytorch_model.bin": b"the same again", "onnx/model.onnx": b"x" * 9}
    with serve(
        a__small=Repository(files_of(source) | extra),
        meta__gated=Repository(files_of(source), gated=True),
        b__other=Repository(files_of(source)),
    ) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("MTKV_ASSETS", str(tmp_path / "assets"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as the Makefile sets it
        yield hub


def model(name="a/small", **changes):
    return ModelConfig.model_validate({"source": "hub", "name": name} | changes)


def test_a_fetched_model_loads_offline_and_its_digest_is_the_commit(hub, source):
    config = model(revision="v1")
    assert content_digest(config) == "missing"
    with pytest.raises(FileNotFoundError, match=r"'a/small' at revision 'v1' is not on this machine.*snakemake assets"):
        load_tokenizer(config)
    folder = fetch(config)
    hub.repositories.clear()
    assert constants.HF_HUB_OFFLINE
    assert content_digest(config) == COMMIT
    assert model_layers(config) == 3
    assert load_tokenizer(config).is_fast
    weights, original = load_model(config).state_dict(), load_file(source / "model.safetensors")
    assert all(torch.equal(weights[name], original[name]) for name in original)
    assert {path.name for path in folder.iterdir()} == {*files_of(source), "README.md"}
    card = json.loads(folder.with_name(f"{folder.name}.json").read_text())
    assert (card["commit"], card["revision"], card["endpoint"]) == (COMMIT, "v1", hub.url)
    assert card["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert card["bytes"] == sum(card["files"].values())


def test_what_is_there_is_not_asked_for_again(hub):
    fetch(model())
    asked = len(hub.asked)
    fetch(model())
    assert len(hub.asked) == asked
    fetch(model(revision="v1"))  # another revision is another folder
    assert len(hub.asked) > asked


def test_a_student_cut_from_a_teacher_that_is_not_here_yet_is_fetched_with_it(hub, tmp_path):
    cut = {"source": "pruned", "name": "cut", "teacher": model(), "layers": [0, 2]}
    student = ModelConfig.model_validate(cut)
    assert content_digest(student) == "missing"
    fetch_models({"student": student, "teacher": model()}, tmp_path / "manifest.json")
    hub.repositories.clear()
    assert load_model(student).config.num_hidden_layers == 2
    assert content_digest(student) not in ("missing", content_digest(model()))


def test_one_gated_one_missing_and_one_wrong_revision_cost_no_other(hub, source, tmp_path):
    models = {
        "student": model("meta/gated"),
        "one": model(),
        "two": model("no/such"),
        "three": model("b/other", revision="v9"),
        "four": ModelConfig(source="path", name=str(source)),
        "five": ModelConfig(name="gpt2"),
    }
    manifest = tmp_path / "manifest.json"
    with pytest.raises(AssetsError) as caught:
        fetch_models(models, manifest)
    student, two, three, end = str(caught.value).split("\n\n")
    assert "https://huggingface.co/meta/gated" in student
    assert "licence" in student
    assert "hf auth login" in student
    assert two.startswith("two: no/such is not on")
    assert three == "three: b/other has no revision 'v9'; there are: main, v1"
    assert end.startswith("3 of 6 models are there and stay (one, four, five)")
    assert not manifest.exists()
    assert load_tokenizer(models["one"]).is_fast
    fetch_models({name: models[name] for name in ("one", "four", "five")}, manifest)
    written = json.loads(manifest.read_text())
    assert {name: entry["digest"] for name, entry in written.items()} == {
        name: content_digest(models[name]) for name in written
    }
    assert written["four"]["bytes"] == sum(path.stat().st_size for path in source.iterdir())


def test_an_interrupted_download_is_no_model_and_goes_on_later(hub, source, monkeypatch):
    monkeypatch.setattr(constants, "DEFAULT_ETAG_TIMEOUT", 1)
    real, calls = fetching.snapshot_download, []

    def half(*arguments, allow_patterns, local_dir, **keywords):
        calls.append(allow_patterns)
        some = [name for name in allow_patterns if not name.endswith(".safetensors")]
        return real(*arguments, allow_patterns=some, local_dir=local_dir, **keywords)

    monkeypatch.setattr(fetching, "snapshot_download", half)
    with pytest.raises(ConnectionError, match=r"stopped early: model\.safetensors not complete"):
        fetch(model())
    assert calls
    assert content_digest(model()) == "missing"
    assert not hub_folder(model()).exists()
    monkeypatch.setattr(fetching, "snapshot_download", real)
    before = len(hub.downloads())
    fetch(model())
    again = [path.rpartition("/")[2] for path in hub.downloads()[before:]]
    assert again == ["model.safetensors"]


def test_no_hub_at_all_is_one_sentence(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match=r"a/small could not be fetched from http://127\.0\.0\.1:9.*HF_ENDPOINT.*source: path"
    ):
        fetch(model())


def test_too_small_a_disk_is_said_before_the_download(hub, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"[\d,]+ bytes are needed, 1,000 bytes are free.*a--small"):
        fetch(model())
    assert hub.downloads() == []


def test_a_model_in_hugging_faces_own_cache_is_used(hub, source, tmp_path):
    cache = tmp_path / "cache" / "models--a--small"
    shutil.copytree(source, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    assert content_digest(model()) == COMMIT
    assert content_digest(model(revision=COMMIT)) == COMMIT
    assert content_digest(model(revision="v1")) == "missing"
    assert load_tokenizer(model()).name_or_path == str(cache / "snapshots" / COMMIT)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"],
            ["config.json", "model.safetensors"],
        ),
        (["config.json", "pytorch_model.bin", "flax_model.msgpack"], ["config.json", "pytorch_model.bin"]),
        (["model-00001-of-00002.safetensors", "consolidated.safetensors"], ["model-00001-of-00002.safetensors"]),
        (["original/params.json", "onnx/model.safetensors", "tokenizer.model"], ["tokenizer.model"]),
        (["additional_chat_templates/tools.jinja", "chat_template.jinja", "merges.txt", "x.gguf"], None),
    ],
)
def test_weights_come_in_one_format(files, wanted):
    assert list(wanted_files(dict.fromkeys(files, 1))) == (wanted or files[:3])


def test_folder_names_are_safe(monkeypatch):
    monkeypatch.setenv("MTKV_ASSETS", "x")
    assert hub_folder(model("Org/Name.1", revision="refs/pr/3")) == Path("x/models/Org--Name.1--refs--pr--3")
