"""The site builds without a warning, has every page and public name, and needs no network."""

import importlib
import importlib.util
import logging
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SETTINGS = re.sub(r"^ *#.*", "", (ROOT / "mkdocs.yml").read_text(), flags=re.M)


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = loaded("hooks")

# packages with public names, and the pages of the reference
PACKAGES = [
    "plugins", "convs", "backbones", "insertion", "ops", "hooks", "datasets", "evaluation",
    "visualization", "checkpoints", "registry",
]  # fmt: skip
PACKAGES = [name for name in PACKAGES if list((ROOT / "mmattn").glob(f"{name}*"))]


def public(package):
    names = importlib.import_module(f"mmattn.{package}").__all__
    return {name: getattr(importlib.import_module(f"mmattn.{package}"), name) for name in names}


@pytest.mark.parametrize("package", [p for p in PACKAGES if p != "registry"])
def test_every_public_name_is_in_the_reference(package):
    page = (DOCS / f"api/{package}.md").read_text()
    assert f"api/{package}.md" in SETTINGS
    entries = re.findall(r"^::: (mmattn[\w.]+)\.(\w+)$", page, re.M)
    assert len(entries) == len(set(entries))
    there = {name: getattr(importlib.import_module(module), name) for module, name in entries}
    for name, value in public(package).items():
        assert name in there, f"::: mmattn.{package}.{name} is missing in docs/api/{package}.md"
        assert there[name] is value


def test_every_package_with_public_names_has_a_page():
    found = {
        path.relative_to(ROOT / "mmattn").parts[0].removesuffix(".py")
        for path in [*(ROOT / "mmattn").glob("*.py"), *(ROOT / "mmattn").glob("*/__init__.py")]
        if re.search(r"^__all__ = ", path.read_text(), re.M) and path.parent.name != "reproduction"
    }
    assert found - {"__init__", "inspection"} == set(PACKAGES)


def test_every_page_is_in_the_navigation():
    pages = {
        str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "reports" not in path.parts
    }
    listed = re.findall(r"[\w/-]+\.md", SETTINGS[SETTINGS.index("\nnav:") :])
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == pages


@pytest.mark.parametrize(
    ("text", "page", "without", "within"),
    [
        ("[a](../configs/se/README.md)", "b.md", "a", "[a](http://x/y/blob/main/configs/se/README.md)"),
        ("[a](../../tools/t.py)", "m/b.md", "a", "[a](http://x/y/blob/main/tools/t.py)"),
        ("[`a.b`](../README.md#z)", "b.md", "`a.b`", "[`a.b`](http://x/y/blob/main/README.md#z)"),
        ("[a](../b.md)", "m/b.md", None, None),
        ("[a](b.md#c), [d](#e), [f](https://g.h/i)", "b.md", None, None),
        ("![a](../configs/a.svg)", "b.md", None, None),
        ("```\n[a](../configs/a)\n```\n", "b.md", None, None),
    ],
)  # fmt: skip
def test_links_out_of_the_pages(text, page, without, within):
    assert hooks.links_out(text, page, "") == (without or text)
    assert hooks.links_out(text, page, "http://x/y/") == (within or text)


def test_what_a_page_loads_from_elsewhere_is_found():
    own = '<a href="https://a.b/c">x</a> <script src="../a.js"></script> <img src="a.svg">'
    assert hooks.loaded_from_elsewhere(own) == []
    for tag in (
        '<script src="https://a.b/c.js">',
        "<img src=//a.b/c.png>",
        '<link rel="x" href="http://a.b/c">',
    ):
        assert len(hooks.loaded_from_elsewhere(own + tag)) == 1  # fmt: skip


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    text = (
        "One line.\n\nPer group::\n\n    y = x\n\nPaper: https://a.b/c.\nReference: theirs; names\n"
        "    ``w``.\nCost: two passes.\n\nArgs:\n    x: As :func:`f` says.\n\nShape:\n"
        "    (N, C) in\n    and out.\n\nRaises:\n    ValueError: No.\n"
    )
    made = loaded("docstrings").as_markdown(text)
    assert "Per group:\n\n    y = x\n" in made
    items = re.findall(r"^- \*\*(.+?)\*\*: (.*)$", made, re.M)
    assert items == [
        ("Paper", "<https://a.b/c>."),
        ("Reference", "theirs; names ``w``."),
        ("Cost", "two passes."),
        ("Shape", "(N, C) in and out."),
    ]
    assert "Args:\n    x: As `f` says.\n" in made
    assert made.index("Raises:\n    ValueError") > made.index("**Shape**")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as ``make docs`` builds it; the warnings, and where it is."""
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    warnings = []

    class Listener(logging.Handler):
        def emit(self, record):
            warnings.append(record.getMessage())

    listener = Listener(logging.WARNING)
    log = logging.getLogger("mkdocs")
    log.addHandler(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.delenv("MMATTN_REPOSITORY", raising=False)
        before = set(sys.modules)
        build(load_config("mkdocs.yml", site_dir=str(folder)))
    log.removeHandler(listener)
    return folder, warnings, set(sys.modules) - before


def test_it_builds_without_a_warning(site):
    folder, warnings, _ = site
    assert warnings == []
    assert (folder / "search/search_index.json").stat().st_size > 100_000
    assert not list(folder.rglob("*.py"))


def test_the_reference_is_complete_and_well_formed(site):
    folder, *_ = site
    for package in PACKAGES:
        html = (folder / f"api/{package}.html").read_text()
        ids = set(re.findall(r' id="(mmattn[\w.]+)"', html))
        for name in public(package):
            assert any(entry.rpartition(".")[2] == name for entry in ids), name
        text = re.sub(r"<(pre|code|a)\b.*?</\1>", "", html, flags=re.S)
        # what is left of marks that were not understood
        assert not re.search(r":(func|class|mod|meth):|``|^::", text, re.M), package
    html = (folder / "api/plugins.html").read_text()
    for section in ("Paper", "Reference", "Deviations", "Identity at init", "Cost", "Shape"):
        assert html.count(f"<strong>{section}</strong>") >= 13, section


def test_no_link_of_a_page_is_dead(site):
    folder, *_ = site
    for page in folder.rglob("*.html"):
        text = page.read_text()
        for target in re.findall(r'(?:href|src)="?([^"#?> ]+)', text.split("</head>")[1]):
            if not re.match(r"[a-z]+:", target):
                base = folder if page.name == "404.html" else page.parent
                assert (base / target.lstrip("/")).exists(), (page.name, target)
