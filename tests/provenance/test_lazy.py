"""Lazy exports: every listed name is the submodule's own object, and importing the package loads none of them."""

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["mtkv.align", "mtkv.fuse", "mtkv.kv", "mtkv.report"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_export_is_the_object_of_its_module_and_is_listed(name):
    package = import_module(name)
    assert list(package._EXPORTS) == package.__all__
    for export, home in package._EXPORTS.items():
        module = import_module(home)
        assert getattr(package, export) is vars(module)[export]
        assert getattr(module, export).__module__ == module.__name__, "listed where it is re-exported, not where it is"
    assert {*package.__all__, "__name__", "__doc__"} <= set(dir(package))
    assert dir(package) == sorted(set(dir(package)))


@pytest.mark.parametrize("name", PACKAGES)
def test_another_name_is_an_attribute_error(name):
    package = import_module(name)
    assert not hasattr(package, "nothing_of_that_name")
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing_of_that_name'"):
        package.nothing_of_that_name  # noqa: B018


def test_importing_a_package_loads_neither_torch_nor_a_submodule_until_a_name_is_used():
    program = f"""
import sys
from importlib import import_module

for name in {PACKAGES}:
    package = import_module(name)
    assert "torch" not in sys.modules, name
    loaded = [module for module in sys.modules if module.startswith(name + ".")]
    assert not loaded, loaded
from mtkv.report import visualize_layer_mapping
assert "mtkv.original_api.visualize" in sys.modules and "torch" not in sys.modules
import mtkv.config.study
assert "torch" not in sys.modules
from mtkv.align import KVMap
assert "mtkv.align.closed_form_maps" in sys.modules and "mtkv.align.adapters" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
