from __future__ import annotations

from pathlib import Path

import pytest

from repro.errors import InputError, UsageError
from repro.spec.project import Project
from tests.spec.conftest import SPEC

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A second paper with Table 3."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table_03.yaml").write_text(SPEC, encoding="utf-8")
    return tmp_path


def test_a_given_folder(project: Path) -> None:
    found = Project.find(project)
    assert found.root == project.resolve()
    assert [table.title for table in found.tables()] == ["A small table."]


@pytest.mark.parametrize("name", ["absent", "tables/table_03.yaml", "tables"])
def test_a_given_folder_without_tables(project: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no project there: it has no folder tables/$"):
        Project.find(project / name)


def test_the_working_folder_when_it_has_tables(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert Project.find(None).root == project.resolve()


@pytest.mark.parametrize("folders", [(), ("tables",)])
def test_else_the_shipped_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str, ...]) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    found = Project.find(None)
    assert found.root is None
    assert list(found.paths) == list(range(9, 19))


def test_a_link_to_a_project_is_the_project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "paper"
    link.symlink_to(project)
    assert Project.find(link).root == project.resolve()


def test_own_templates_before_the_shipped_ones(project: Path) -> None:
    shipped = Project().template_folders
    assert len(shipped) == 1
    assert Project.find(project).template_folders == shipped
    (project / "templates").mkdir()
    assert Project.find(project).template_folders == [project.resolve() / "templates", *shipped]


def test_an_unknown_table(project: Path) -> None:
    with pytest.raises(UsageError, match=r"no table 4 in .*; it has 3$"):
        Project.find(project).table(4)
    (project / "tables" / "table_03.yaml").unlink()
    with pytest.raises(UsageError, match=r"it has none$"):
        Project.find(project).table(3)
    with pytest.raises(UsageError, match=r"no table_\*\.yaml there$"):
        Project.find(project).tables()


def test_the_number_of_the_file_and_of_the_spec(project: Path) -> None:
    (project / "tables" / "table_4.yaml").write_text(SPEC, encoding="utf-8")
    with pytest.raises(InputError, match="says table 3, its file name says 4"):
        Project.find(project).table(4)


def test_two_specs_for_one_number(project: Path) -> None:
    (project / "tables" / "table_3.yaml").write_text(SPEC, encoding="utf-8")
    with pytest.raises(UsageError, match=r"table_3\.yaml: table 3 has a second spec, table_03\.yaml$"):
        Project.find(project).table(3)


@pytest.mark.parametrize(
    "name", ["table_three.yaml", "table_².yaml", "table_٣.yaml", "table_.yaml", "table_3.yml", "notes.yaml"]
)
def test_other_files_are_left_alone(project: Path, name: str) -> None:
    (project / "tables" / name).write_text("not: a spec\n", encoding="utf-8")
    assert list(Project.find(project).paths) == [3]


def test_tables_in_numeric_order_of_name(project: Path) -> None:
    for number in (10, 4):
        spec = SPEC.replace("table: 3", f"table: {number}")
        (project / "tables" / f"table_{number:02d}.yaml").write_text(spec, encoding="utf-8")
    found = Project.find(project)
    assert [table.number for table in found.tables()] == [3, 4, 10]
    assert [table.number for table in found.tables((10, 3))] == [10, 3]


def test_mistakes_of_several_files_are_told_together(project: Path) -> None:
    for number, line in ((4, "titel"), (5, "tittle")):
        spec = SPEC.replace("table: 3", f"table: {number}").replace("title:", f"{line}:")
        (project / "tables" / f"table_{number:02d}.yaml").write_text(spec, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Project.find(project).tables()
    assert [line.split("tables/")[1].split(": ")[0] for line in caught.value.lines] == [
        *("table_04.yaml:1", "table_04.yaml:3", "table_05.yaml:1", "table_05.yaml:3"),
    ]


def test_the_shipped_paper_is_right() -> None:
    assert [table.number for table in Project(root=CHECKOUT).tables()] == list(range(9, 19))
