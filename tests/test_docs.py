"""Links and pictures of the README, SECURITY.md and docs/ lead somewhere, and plots are pictures."""

import pathlib
import re
import xml.etree.ElementTree

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    for target in local:
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("plot", sorted((ROOT / "docs" / "plots").glob("*")), ids=lambda plot: plot.name)
def test_every_plot_is_shown_and_well_formed(plot):
    assert xml.etree.ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert any(f"plots/{plot.name}" in page.read_text(encoding="utf-8") for page in PAGES)


def test_tables_are_whole():
    """Every row has as many cells as its table's head, and nothing is left to fill in."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"@[A-Z0-9]+@", text), page.name
        width = 0
        for number, line in enumerate(text.splitlines(), 1):
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert not (cells and width) or cells == width, f"{page.name}:{number}"
            width = cells


def test_files_that_are_named_are_there():
    """Python files between backquotes: by their path, or by their name alone."""
    known = {
        str(path.relative_to(ROOT))
        for folder in ("crs_jax", "configs", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    for page in PAGES:
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
            assert any(f"/{path}".endswith(f"/{name}") for path in known), f"{page.name}: {name}"
