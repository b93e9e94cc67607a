"""Pages that mkdocs builds from files outside docs/: both READMEs, the reference of the config and that of the library."""

import re
from pathlib import Path
from typing import Any

from config_reference import config_reference
from markdown.extensions import Extension
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
LINK = re.compile(r"\]\(([\w./-]+)\)")
FROM_OUTSIDE = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>""")


class NoHtml(Extension):
    """`<study>` in a text is a placeholder, never a tag."""

    def extendMarkdown(self, md: Any) -> None:  # noqa: N802 (Markdown's name)
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: Any) -> None:
    """Put every page of docs/ that the nav leaves out below "Guide", and the packages below "Library"."""
    config.markdown_extensions.append(NoHtml())
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    named = [page for page in sections["Guide"] if isinstance(page, str)]
    sections["Guide"] += sorted({path.name for path in (ROOT / "docs").glob("*.md")} - set(named))
    sections["Library"] += [f"library/{package}.md" for package in _packages()]


def on_files(files: Any, config: Any) -> None:
    """Add the pages, and the files that a README links to."""
    texts: dict[str, str] = {
        name: (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](") for name in READMES
    }
    linked = {target for text in texts.values() for target in LINK.findall(text) if not target.endswith(".md")}
    texts |= {target: (ROOT / target).read_text(encoding="utf-8") for target in linked if (ROOT / target).is_file()}
    texts["config.md"] = config_reference()
    texts |= {f"library/{package}.md": _page(package, modules) for package, modules in _packages().items()}
    for uri, text in texts.items():
        files.append(File.generated(config, uri, content=text))


def on_post_page(output: str, page: Any, config: Any) -> None:
    """Refuse a page that would load something from another machine."""
    if found := FROM_OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} would load from outside: {found[0]}")


def _packages() -> dict[str, list[str]]:
    """The public modules of every package below mtkv, both by their dotted names."""
    folders = sorted(path.parent for path in (ROOT / "src").rglob("__init__.py"))
    return {
        _dotted(folder): [_dotted(path.with_suffix("")) for path in sorted(folder.glob("[a-z]*.py"))]
        for folder in folders
    }


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").parts)


def _page(package: str, modules: list[str]) -> str:
    opening = f"# {package}\n\n::: {package}\n    options: {{show_root_heading: false, show_root_toc_entry: false}}\n"
    return opening + "".join(f"\n::: {module}\n" for module in modules)
