"""The card as a page of Markdown, made from its data alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stability.analysis.terminal import interval_text
from stability.tracking.console import counted, duration
from stability.untrusted.printable import printable

_INTRODUCTION = """\
# The replication card

<!-- Written by `python -m stability.replicate`: edit the sweep files, not this page. -->

The experiments of {paper}, as the claims of our sweep files state them, and what our own records say of
each: *holds*, *fails* or *undecided*. A verdict is about the ladder that it stands under (models of that size, trained
for that long) and about no other. Behind it stands the number that decides, with its {level} % interval; what it is a
number of stands under *measured*, and docs/statistics.md defines every kind of claim. n counts seeds, or runs where a
share of runs is claimed. A verdict links to our figure. The same as data, whose fields docs/records.md defines:
[{json}]({json})."""


def page(card: Mapping[str, Any], json_name: str) -> str:
    """The whole page.

    Args:
        card: as `card.replaced` gives it.
        json_name: the card's file, beside the page.
    """
    card = _harmless(card)
    introduction = _INTRODUCTION.format(paper=card["paper"], level=round(100 * card["interval_level"]), json=json_name)
    blocks = [introduction, *_ladders(card), *_overview(card)]
    for sweep in card["sweeps"]:
        blocks += _sweep(sweep, card["ladders"])
    return "\n\n".join(blocks) + "\n"


def _harmless(content: Any) -> Any:
    """The same values, with nothing in a text that Markdown would make more of than words on one line."""
    if isinstance(content, str):
        line = " ".join(printable(content).split())
        for mark, words in (("<", "&lt;"), ("`", "'"), ("](", "]\\("), ("]:", "]\\:")):
            line = line.replace(mark, words)
        return line
    if isinstance(content, Mapping):
        return {_harmless(key): _harmless(value) for key, value in content.items()}
    return [_harmless(one) for one in content] if isinstance(content, list) else content


def _ladders(card: Mapping[str, Any]) -> Iterator[str]:
    for name, ladder in card["ladders"].items():
        claims = [claim for sweep in card["sweeps"] for claim in sweep["claims"]]
        told = _counts(claims, name) or "no verdict yet"
        cost = ladder["cost"]
        seeds = ", ".join(map(str, ladder["seeds"]))
        yield f"## Ladder {name}"
        yield (
            f"Of {counted(len(claims), 'claim')}: {told}. {counted(cost['runs'], 'run')} with the seeds {seeds}, "
            f"{cost['flops']:.2e} FLOPs, {duration(cost['seconds'])} of training; runs that several sweeps share "
            "count once."
        )
        if ladder["made_with"]:
            yield f"Made with: {_facts(ladder['made_with'])}."
        if not ladder["complete"]:
            yield f"**Not complete.** Missing or partial: {', '.join(ladder['missing'])}."
        yield f"Made by `{ladder['command']}`."


def _facts(made_with: Mapping[str, Any]) -> str:
    return "; ".join(f"{key.removeprefix('versions.')} {', '.join(values)}" for key, values in made_with.items())


_VERDICTS = {"holds": "hold", "fails": "fail", "undecided": "undecided"}


def _counts(claims: Iterable[Mapping[str, Any]], ladder: str) -> str:
    """How many claims hold, fail and are undecided, in words; empty where none has a verdict."""
    verdicts = Counter(claim["ladders"][ladder]["verdict"] for claim in claims if ladder in claim["ladders"])
    return ", ".join(f"{verdicts[one]} {word}" for one, word in _VERDICTS.items() if verdicts[one])


def _overview(card: Mapping[str, Any]) -> Iterator[str]:
    names = list(card["ladders"])
    yield "## All sweeps"
    lines = [_row("sweep", "asks", "of the paper", *names), _row(*["---"] * (3 + len(names)))]
    for sweep in card["sweeps"]:
        cells = [_counts(sweep["claims"], name) + _progress(sweep["ladders"].get(name)) for name in names]
        source = sweep["source"].removeprefix(f"{card['paper']}, ")
        lines.append(_row(f"[{sweep['name']}](#{sweep['name']})", sweep["question"], source, *cells))
    yield "\n".join(lines)


def _progress(part: Mapping[str, Any] | None) -> str:
    if part is None or part["status"] == "missing":
        return "not run yet"
    return "" if part["status"] == "complete" else f" ({part['cost']['runs']} of {part['runs_planned']} runs)"


def _sweep(sweep: Mapping[str, Any], ladders: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {sweep['name']}"
    yield f"{sweep['question']} ({sweep['source']})"
    for name in ladders:
        part = sweep["ladders"].get(name)
        yield f"{name}: {_told(part, ladders[name]['made_with'])}" if part else f"{name}: not run yet."
        if part:
            yield f"    {part['command']}"
    lines = [_row("claim", "the paper", "measured", *ladders), _row(*["---"] * (3 + len(ladders)))]
    for claim in sweep["claims"]:
        measured = next((one["measured"] for one in claim["ladders"].values() if one["measured"]), "")
        cells = [_verdict(claim["ladders"].get(name)) for name in ladders]
        lines.append(_row(f"`{claim['name']}`", claim["paper"], measured, *cells))
    yield "\n".join(lines)


def _told(part: Mapping[str, Any], made_with: Mapping[str, Any]) -> str:
    """What a sweep's part rests on; with what it was made only where that is not so of the whole ladder.

    Args:
        part: of a sweep.
        made_with: of all parts of the ladder.
    """
    if part["status"] == "missing":
        return f"not run yet; {counted(part['runs_planned'], 'run')} planned."
    cost = part["cost"]
    of = "" if part["status"] == "complete" else f" of {part['runs_planned']} (**partial**)"
    links = [f"[every run and the evidence]({part['summary']})"]
    if part["figure"]:
        links.append(f"[loss by learning rate]({part['figure']})")
    own = _facts({key: values for key, values in part.get("made_with", {}).items() if values != made_with.get(key)})
    return (
        f"{counted(cost['runs'], 'run')}{of}, {counted(part['seeds'], 'seed')}, {cost['flops']:.2e} FLOPs, "
        f"{duration(cost['seconds'])} of training{f' with {own}' if own else ''}; {', '.join(links)}."
    )


def _verdict(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not run yet"
    word = f"[{found['verdict']}]({found['figure']})" if found["figure"] else found["verdict"]
    if found["effect"] is None:
        return f"{word}: no number"
    return f"{word}: {found['effect']:.3g} {interval_text(found['interval'])}, n {found['n']}".replace(" ,", ",")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
