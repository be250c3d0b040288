"""What the site shows beside the files of docs/: pages that stand elsewhere, and tables made from the YAML files.

Links in every page are those that work in a checkout. Here they are pointed at the site's page, or at a copy of the
file where it is no page.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page of the site -> where it stands in the repository."""

_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_SOURCE = re.compile(r"(?:Section|Appendix|Figure)\b.*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere, and the files outside docs/ that a page links to."""
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    linked: dict[str, str] = {}
    for page in [file for file in files if file.is_documentation_page()]:
        for target in _targets(page.content_string, _repository_path(page.src_uri)):
            if not target.startswith("docs/") and target not in ELSEWHERE.values():
                linked[_site_path(target)] = target
    for path, target in linked.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables and point the links at the site."""
    for name, table in (("interventions", interventions), ("experiments", experiments)):
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    here = page.file.src_uri
    parts = _FENCE.split(markdown)
    return "".join(part if _FENCE.fullmatch(part) else _with_site_links(part, here) for part in parts)


# --- links ----------------------------------------------------------------------------------------------------------


def _repository_path(page: str) -> str:
    return ELSEWHERE.get(page, f"docs/{page}")


def _site_path(path: str) -> str:
    """Where the site has what a checkout has at this path."""
    pages = {where: page for page, where in ELSEWHERE.items()}
    return pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")


def _targets(text: str, repository_path: str) -> Iterator[str]:
    for match in _LINK.finditer(_FENCE.sub("", text)):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(repository_path), match[2]))


def _with_site_links(text: str, page: str) -> str:
    def link(match: re.Match[str]) -> str:
        base = posixpath.dirname(_repository_path(page))
        target = _site_path(posixpath.normpath(posixpath.join(base, match[2])))
        relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"{match[1]}{relative}{match[3] or ''}{match[4]}"

    return _LINK.sub(link, text)


# --- tables ---------------------------------------------------------------------------------------------------------


def interventions() -> str:
    """The interventions that exist: what each sets, and what its header says."""
    rows = ["| intervention | sets | what it is, and what the paper claims |", "| --- | --- | --- |"]
    for path in sorted((ROOT / "sweeps/intervention").glob("*.yaml")):
        settings = "<br>".join(f"`{key}: {_plain(value)}`" for key, value in _flat(_yaml(path)))
        text = " ".join(line for line in header(path) if "python -m" not in line)
        rows.append(f"| `{path.stem}` | {settings} | {text.removesuffix(':').removesuffix('.')}. |")
    return "\n".join(rows)


def experiments() -> str:
    """The sweeps: what each asks, where that is from, and the verdicts on its claims where it has run."""
    rows = ["| sweep | asks | source | claims (micro) |", "| --- | --- | --- | --- |"]
    for path in sorted((ROOT / "sweeps/sweep").glob("*.yaml")):
        sweep = _yaml(path)["sweep"]
        source = _SOURCE.search(sweep.get("source", ""))
        cells = [f"`+sweep={path.stem}`", sweep["question"], source[0] if source else "", _verdicts(path.stem)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _verdicts(sweep: str) -> str:
    summary = ROOT / "docs/replication/micro" / sweep / "summary.json"
    if not summary.exists():
        return "not run yet" if _yaml(ROOT / f"sweeps/sweep/{sweep}.yaml")["sweep"].get("claims") else ""
    verdicts = Counter(claim["verdict"] for claim in json.loads(summary.read_text(encoding="utf-8"))["claims"])
    words = {"holds": "hold", "fails": "fail", "undecided": "undecided"}
    found = ", ".join(f"{verdicts[verdict]} {word}" for verdict, word in words.items() if verdicts[verdict])
    return f"[{found}](replication.md#{sweep})"


def header(path: Path) -> list[str]:
    """The comment at the head of a YAML file, Hydra's own line left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    length = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ").rstrip() for line in lines[:length] if "@package" not in line]


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
