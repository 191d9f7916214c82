from __future__ import annotations

import sys

import pytest

from repro.results.sources import source_of


def test_a_modules_source_is_its_files_digest_and_nothing_is_imported(tmp_path, monkeypatch):
    folder = tmp_path / "some_papers_package" / "inner"
    folder.mkdir(parents=True)
    for init in (folder, folder.parent):
        (init / "__init__.py").write_text("raise RuntimeError('this package was imported')\n")
    (folder / "nets.py").write_text("x = 1\n")
    (tmp_path / "single_file_of_a_paper.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "some_papers_package.inner.nets"
    found = source_of("python", f"{name}:build")
    assert found.startswith(f"python {name} ")
    assert len(found.split()[-1]) == 12
    assert source_of("python", "single_file_of_a_paper:build").split()[-1] == found.split()[-1]
    assert source_of("python", "some_papers_package.inner:build") != f"python {name}"
    assert not any(module.startswith("some_papers_package") for module in sys.modules)


@pytest.mark.parametrize("module", ["no_such_module_at_all", "json.no_such_module", "a.b.c"])
def test_what_does_not_exist_has_no_digest(module):
    assert source_of("python", f"{module}:build") == f"python {module}"


def test_the_packages_own_models_have_a_digest():
    assert len(source_of("python", "repro.models.iformer_ablations:configured").split()) == 3
