"""Names and links that may lead out of the folder that results belong to."""

from pathlib import Path

from stability.errors import InputError

LONGEST = 100
_ODD = '/\\<>:"|?*'
"""What separates the parts of a path somewhere, or no file name may have there."""


def folder_name(name: str) -> str:
    """A name for one folder or file: the name itself where that can be one, never a path, hidden, or long.

    Args:
        name: of a sweep, a table or a group on W&B.
    """
    plain = "".join(one if one.isprintable() and one not in _ODD else "-" for one in name)
    return plain.lstrip(".-~ ")[:LONGEST].rstrip(" ") or "unnamed"


def refuse_way_out(key: str, name: str) -> None:
    """Refuse a name that a path is made of and that leads up, or to another place.

    Raises:
        InputError: it is absolute, has `..` for a part, or a character that no file name should have.
    """
    parts = name.split("/")
    if name.startswith(("/", "~")) or ".." in parts or "\\" in name or not name.isprintable():
        problem = "leads out of the folder that results are kept in"
        raise InputError(key, name, problem, "Give it a plain name; output_dir= says where results go.")


def refuse_links_out(folder: Path, *inside: Path) -> None:
    """Refuse to write where a link inside a results folder leads out of it.

    A results folder may be somebody else's, and what stands behind such a link is not theirs. The folder itself may
    be a link, and what leads from one place in it to another is let be.

    Args:
        folder: the results folder.
        inside: paths in it that are about to be written to, or emptied; they may not exist.

    Raises:
        InputError: names the link.
    """
    home = folder.resolve()
    for path in inside:
        steps = [path, *(parent for parent in path.parents if parent != folder and folder in parent.parents)]
        for step in steps:
            if step.is_symlink() and not step.resolve().is_relative_to(home):
                problem = f"is a link that leads out of {folder}, to {step.resolve()}"
                raise InputError("output_dir", step, problem, "Remove the link, or name another folder.")
