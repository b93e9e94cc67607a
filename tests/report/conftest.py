"""A made-up study on disk and its report, shared by the tests of this folder."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mtkv.config.study import Study, read_study

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "config/config.yaml"
MISSING = (("similarity", "pocket_bbh"),)


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
def write_tree() -> Callable[..., None]:
    return load_tree_module().write_study_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, study: Study, write_tree: Callable[..., None]) -> Path:
    """results/<study> with one missing cell."""
    root = tmp_path_factory.mktemp("results") / study.study
    write_tree(root, study, missing=MISSING)
    return root


@pytest.fixture(scope="session")
def rendered(tree: Path, study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The report's folder and the facts the stage returned."""
    from mtkv.report.page import render

    output = tmp_path_factory.mktemp("report")
    return output, render(study, tree, output / "index.html")
