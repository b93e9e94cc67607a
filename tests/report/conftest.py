"""A made-up study on disk and its report, shared by the tests of this folder."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mtkv.config.study import Study, load_study, read_study
from mtkv.report.results import Results, read_results

HERE = Path(__file__).parent
CONFIG = HERE.parent / "classic_study.yaml"
MISSING = (("similarity", "pocket_bbh"),)
FAILED = (("fixed_shuffled", 43, "pocket_gpqa"),)
# Ablations of the arm `fixed`, as an overlay would write them.
ABLATIONS = {
    "keys": {"loss": {"lambda_v": 0, "gamma": 0}},
    "values": {"loss": {"lambda_k": 0, "gamma": 0}},
    "first": {"loss": {"layers": "first", "gamma": 0}},
    "first_keys": {"loss": {"layers": "first", "lambda_v": 0, "gamma": 0}},
    "layers_0_1": {"loss": {"layers": [0, 1], "gamma": 0}},
    "cropped": {"select": {"method": "keep_last", "budget": 8}},
    "per_layer": {"fusion": {"strategy": "learnable", "per_layer": True}},
}


def load_tree_module() -> ModuleType:
    """tests/report/study_tree.py as a module (the tests are no package)."""
    spec = importlib.util.spec_from_file_location("study_tree", HERE / "study_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def study() -> Study:
    return read_study(CONFIG)


@pytest.fixture(scope="session")
def tree_module() -> ModuleType:
    return load_tree_module()


@pytest.fixture(scope="session")
def write_tree(tree_module: ModuleType) -> Callable[..., None]:
    return tree_module.write_study_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, study: Study, write_tree: Callable[..., None]) -> Path:
    """results/<study> with one missing cell."""
    root = tmp_path_factory.mktemp("results") / study.study
    write_tree(root, study, missing=MISSING)
    return root


@pytest.fixture(scope="session")
def rendered(tree: Path, study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The report's folder and the facts the stage returned."""
    from mtkv.stages.report import render

    output = tmp_path_factory.mktemp("report")
    return output, render(study, tree, output / "index.html")


@pytest.fixture(scope="session")
def full_study(study: Study) -> Study:
    """The pocket study with ablations of `fixed`."""
    config = study.model_dump(mode="json")
    for name, kv in ABLATIONS.items():
        parent = config["arms"]["fixed"]
        settings = {section: {**parent["kv"][section], **values} for section, values in kv.items()}
        if "fusion" in settings:
            settings["fusion"]["weights"] = None
        config["arms"][name] = {**parent, "extends": "fixed", "kv": {**parent["kv"], **settings}}
    return load_study(config)


@pytest.fixture(scope="session")
def full_tree(tmp_path_factory: pytest.TempPathFactory, full_study: Study, write_tree: Callable[..., None]) -> Path:
    """The study with ablations, one missing cell, one failed run, questions and predictions."""
    root = tmp_path_factory.mktemp("full") / full_study.study
    write_tree(root, full_study, items=60, missing=MISSING, failed=FAILED, answers=True)
    return root


@pytest.fixture(scope="session")
def full(full_tree: Path, full_study: Study) -> Results:
    """What the report reads of it."""
    return read_results(full_study, full_tree)
