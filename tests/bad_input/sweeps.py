"""A user's own sweep, intervention, ladder or data file, beside the working folder: no YAML, or YAML that cannot be."""

from collections.abc import Sequence

from tests.bad_input.case import Case, Content, files_cases

HEADER = "# @package _global_\n"
MINE = "sweeps/sweep/mine.yaml"


def sweep(body: str) -> str:
    """A sweep file whose `sweep:` holds these lines."""
    lines = "".join(f"  {line}\n" for line in body.strip("\n").split("\n"))
    return f"{HEADER}sweep:\n  question: Why?\n{lines}"


def grid(axes: str) -> str:
    """A sweep file with one grid of these axes, as a mapping in one line."""
    return sweep(f"grids:\n  main: {axes}")


def claims(
    claim: str, axes: str = "{model.qk_layernorm: [none, per_head], optimizer.learning_rate: [0.01, 0.1]}"
) -> str:
    """A sweep file of two arms with one claim, as a mapping in one line."""
    return sweep(f"grids:\n  main: {axes}\nclaims:\n  it: {claim}")


BROKEN: dict[str, tuple[Content, Sequence[str]]] = {
    # what is wrong -> the sweep file, and what the message must name
    "a bracket is not closed": (f"{HEADER}sweep:\n  grids:\n    main: [1\n", ["mine.yaml", "line 5"]),
    "a tab": (f"{HEADER}sweep:\n\tgrids: {{}}\n", ["mine.yaml", "line 3"]),
    "indented at random": (f"{HEADER}sweep:\n    question: a\n  grids: {{}}\n", ["mine.yaml", "line 4"]),
    "a quote is not closed": (f'{HEADER}sweep:\n  question: "Why?\n', ["mine.yaml", "line"]),
    "a colon in a question": (f"{HEADER}sweep:\n  question: this: or that\n", ["mine.yaml", "line 3"]),
    "a key twice": (f"{HEADER}sweep:\n  question: a\n  question: b\n", ["mine.yaml", "question", "line 4"]),
    "an axis twice": (
        f"{HEADER}sweep:\n  grids:\n    main:\n      seed: [0]\n      seed: [1]\n",
        ["mine.yaml", "seed", "line 6"],
    ),
    "a list": ("- 1\n- 2\n", ["mine.yaml"]),
    "a word": ("sweep\n", ["mine.yaml"]),
    "two documents": ("a: 1\n---\nb: 2\n", ["mine.yaml"]),
    "an object of Python": (f"{HEADER}sweep: !!python/object/apply:os.getcwd []\n", ["mine.yaml", "line 2"]),
    "an unknown tag": (f"{HEADER}sweep: !include other.yaml\n", ["mine.yaml", "line 2"]),
    "an alias of nothing": (f"{HEADER}sweep: *nothing\n", ["mine.yaml", "line 2"]),
    "no UTF-8": (f"{HEADER}sweep:\n  question: caf".encode() + b"\xe9?\n", ["mine.yaml", "UTF-8"]),
    "UTF-16": (f"{HEADER}sweep:\n  question: Why?\n".encode("utf-16"), ["mine.yaml"]),
    "NUL bytes": (HEADER.encode() + b"sweep:\n  question: a\0b\n", ["mine.yaml"]),
    "a folder": (None, ["sweep=mine"]),
    "a default that there is not": (f"{HEADER}defaults:\n  - nothing: here\nsweep: {{}}\n", ["nothing", "here"]),
    "an interpolation of nothing": (
        grid("{scale: '${ladder.series.nope}'}"),
        ["ladder.series.nope", "sweep.grids.main.scale"],
    ),
    "an unclosed interpolation": (grid("{scale: '${ladder.series.main'}"), ["${ladder.series.main"]),
    "a resolver that there is not": (grid("{seed: '${double:2}'}"), ["${double:2}"]),
    "a share of a word": (grid("{schedule.warmup_steps: '${share:half}'}"), ["${share:half}"]),
    "no package header": ("sweep:\n  question: Why?\n", ["mine.yaml", "@package _global_"]),
}

GRIDS: dict[str, tuple[Content, Sequence[str]]] = {
    "no such scale": (grid("{scale: [w32, w33]}"), ["scale=w33", "w32, w48"]),
    "a scale that is a list": (grid("{scale: [[w32]]}"), ["scale=['w32']", "w32, w48"]),
    "a scale that is a mapping": (grid("{scale: {w32: 1}}"), ["scale=", "w32, w48"]),
    "no such key": (grid("{model.wdith: [32]}"), ["model.wdith=32", "model.width"]),
    "no such group": (grid("{modle.width: [32]}"), ["modle.width=32", "model.width"]),
    "a key of an intervention": (grid("{interventions: [z_loss_none]}"), ["interventions=", "intervention"]),
    "no such intervention": (grid("{intervention: [z_loss_nope]}"), ["intervention=z_loss_nope", "z_loss_none"]),
    "an intervention of no kind": (grid("{intervention: [3]}"), ["intervention=3", "z_loss_none"]),
    "no values": (grid("{seed: []}"), ["sweep.grids.main.seed=[]", "leave the axis out"]),
    "an empty grid": (grid(""), ["sweep.grids.main=None", "dictionary"]),
    "a grid that is a list": (grid("[seed, 0]"), ["sweep.grids.main=", "dictionary"]),
    "grids that are a list": (sweep("grids: [{seed: [0]}]"), ["sweep.grids=", "dictionary"]),
    "axes outside of a grid": (sweep("grids:\n  seed: [0, 1]"), ["sweep.grids.seed=[0, 1]", "dictionary"]),
    "a key that is a number": (grid("{1: [0]}"), ["sweep.grids.main.1"]),
    "a name of a grid that is a number": (sweep("grids: {1: {seed: [0]}}"), ["sweep.grids.1"]),
    "a value of a wrong type": (grid("{training.steps: [10, ten]}"), ["training.steps=ten", "integer"]),
    "a value out of range": (grid("{optimizer.beta1: [0.9, 1.0]}"), ["optimizer.beta1=1.0", "less than 1"]),
    "a value that is a mapping": (grid("{seed: {from: 0, to: 3}}"), ["seed=", "integer"]),
    "values inside values": (grid("{seed: [[0, 1]]}"), ["seed=[0, 1]", "integer"]),
    "a date for a number": (grid("{seed: [2026-11-26]}"), ["seed=2026-11-26", "integer"]),
    "yes for a number": (grid("{seed: [yes]}"), ["seed=True", "integer"]),
    "a comma for a point": (grid("{optimizer.learning_rate: ['0,01']}"), ["optimizer.learning_rate=0,01", "number"]),
    "warm-up longer than the run": (
        grid("{training.steps: [100, 1000], schedule.warmup_steps: [200]}"),
        ["schedule.warmup_steps=200", "training.steps=100"],
    ),
    "a learning rate below the minimum": (
        grid("{optimizer.learning_rate: [0.1, 1.0e-7]}"),
        ["optimizer.learning_rate=1e-07", "schedule.minimum_learning_rate=1e-05"],
    ),
    "heads that do not fit": (
        grid("{model.width: [64, 72], model.head_dim: [16]}"),
        ["model.width=72", "model.head_dim=16"],
    ),
    "an odd head": (grid("{model.width: [15], model.head_dim: [15]}"), ["model.head_dim=15", "even"]),
    "the output folder as an axis": (grid("{output_dir: [a, b]}"), ["output_dir=a,b", "one value"]),
    "the text as an axis": (grid("{data.name: [kjv, text]}"), ["data.name=kjv,text", "one value"]),
    "what is no part of a run as an axis": (grid("{training.observe_every: [5, 10]}"), ["training.observe_every=5,10"]),
    "a search of another key": (
        grid("{seed: {search: bisection, low: 1, high: 9, tolerance: 2}}"),
        ["sweep.grids.main.seed", "optimizer.learning_rate"],
    ),
    "a search without an end": (
        grid("{optimizer.learning_rate: {search: bisection, low: 0.1, tolerance: 2}}"),
        ["sweep.grids.main.optimizer.learning_rate.high", "tolerance: RATIO"],
    ),
    "a search whose ends are words": (
        grid("{optimizer.learning_rate: {search: bisection, low: small, high: 1, tolerance: 2}}"),
        ["sweep.grids.main.optimizer.learning_rate.low=small", "tolerance: RATIO"],
    ),
    "two searches in a list": (
        grid("{optimizer.learning_rate: [{search: bisection, low: 0.1, high: 1, tolerance: 2}]}"),
        ["optimizer.learning_rate=", "number"],
    ),
    "a hundred thousand runs and more": (
        grid(f"{{seed: {list(range(400))}, optimizer.learning_rate: {[i / 400 for i in range(1, 401)]}}}"),
        ["sweep.grids=seed: 400 values", "160,000 runs", "100,000"],
    ),
    "unknown keys beside the grids": (sweep("grid: {main: {seed: [0]}}"), ["sweep.grid", "sweep.grids"]),
    "a question that is a list": (f"{HEADER}sweep:\n  question: [Why]\n", ["sweep.question=", "string"]),
    "an expectation that is a list": (sweep("expect: [all of it]"), ["sweep.expect=", "dictionary"]),
    "an unknown key of a run": (f"{HEADER}sweep: {{}}\ntraning:\n  steps: 10\n", ["traning=", "there is no such key"]),
    "an unknown key of a group": (
        f"{HEADER}sweep: {{}}\ntraining:\n  stpes: 10\n",
        ["training.stpes=10", "training.steps"],
    ),
    "a group that is a number": (f"{HEADER}sweep: {{}}\ntraining: 10\n", ["training=10", "dictionary"]),
    "a folder with a NUL": (f'{HEADER}sweep: {{}}\noutput_dir: "a\\0b"\n', ["output_dir=", "Name another"]),
    "a text with a NUL": (f'{HEADER}sweep: {{}}\ndata: {{name: text, path: "a\\0b"}}\n', ["data.path="]),
    "an output folder that is a number": (f"{HEADER}sweep: {{}}\noutput_dir: 3\n", ["output_dir=3", "string"]),
}

CLAIMS: dict[str, tuple[Content, Sequence[str]]] = {
    "claims that are a list": (sweep("claims: [stable]"), ["sweep.claims=", "dictionary"]),
    "a claim that is a word": (sweep("claims: {it: stable}"), ["sweep.claims.it=stable", "dictionary"]),
    "a claim of no kind": (claims("{arm: qk_layernorm=none}"), ["claims.it.kind=None", "stable_edge_falls_with_n"]),
    "a claim of a kind that there is not": (claims("{kind: holds}"), ["claims.it.kind=holds", "sensitivity_below"]),
    "a claim that lacks a field": (
        claims("{kind: sensitivity_below, arm: qk_layernorm=per_head}"),
        ["claims.it.than", "than"],
    ),
    "a claim with a field too many": (
        claims("{kind: stable_edge_falls_with_n, arm: qk_layernorm=none, verdict: holds}"),
        ["claims.it.verdict=holds", "arm"],
    ),
    "a claim of a margin that is a word": (
        claims("{kind: sensitivity_below, arm: qk_layernorm=per_head, than: qk_layernorm=none, margin: large}"),
        ["claims.it.margin=large", "margin"],
    ),
    "a claim about an arm that is absent": (
        claims("{kind: stable_edge_falls_with_n, arm: qk_layernorm=nnoe}"),
        ["claims.it.arm=qk_layernorm=nnoe", "qk_layernorm=none"],
    ),
    "a claim against an arm that is absent": (
        claims("{kind: sensitivity_below, arm: qk_layernorm=per_head, than: z_loss=0}"),
        ["claims.it.than=z_loss=0", "qk_layernorm=none"],
    ),
    "a claim about arms of which one is absent": (
        claims("{kind: sensitivity_alike, arms: [qk_layernorm=none, qk_layernorm=whole], within: 0.1}"),
        ["claims.it.arms", "qk_layernorm=whole", "qk_layernorm=none"],
    ),
    "a claim whose arm is not named": (
        claims("{kind: stable_edge_falls_with_n}"),
        ["claims.it.arm=", "qk_layernorm=none"],
    ),
    "a claim about a curve whose arm is absent": (
        claims(
            "{kind: grows_faster, curve: {quantity: loss, arm: nope}, than: {quantity: loss, arm: qk_layernorm=none}}"
        ),
        ["claims.it.curve.arm=nope", "qk_layernorm=none"],
    ),
    "a claim about a scale that is absent": (
        claims(
            "{kind: trains_at_every_learning_rate, scales: [w32, w64]}",
            "{scale: [w32], optimizer.learning_rate: [0.01, 0.1]}",
        ),
        ["claims.it.scales", "w64", "w32"],
    ),
    "a claim about a quantity that is not declared": (
        claims("{kind: quantity_rises, quantity: logits, along: learning_rate, arm: qk_layernorm=none}"),
        ["claims.it.quantity=logits", "attention_logit_max"],
    ),
    "a claim within no range": (
        claims(
            "{kind: quantity_within, quantity: loss, at_most: 3, arm: qk_layernorm=none, learning_rates: [0.1, 0.01]}"
        ),
        ["claims.it=0.1, 0.01", "lower first"],
    ),
    "a quantity of a reserved name": (sweep("quantities: {loss: {metric: loss/train}}"), ["quantities.loss=", "name"]),
    "a quantity without a metric": (sweep("quantities: {q: {at_step: 5}}"), ["quantities.q.metric", "metric"]),
    "a quantity that is a word": (sweep("quantities: {q: loss}"), ["sweep.quantities.q=loss", "dictionary"]),
    "a quantity with a field too many": (
        sweep("quantities: {q: {metric: a, at_stp: 5}}"),
        ["quantities.q.at_stp=5", "at_step"],
    ),
    "a quantity at a negative step": (
        sweep("quantities: {q: {metric: a, at_step: -5}}"),
        ["quantities.q.at_step=-5", "metric"],
    ),
    "a forecast of a direction that there is not": (
        sweep("forecasts: {f: {quantity: attention_logit_max, direction: up}}"),
        ["forecasts.f.direction=up", "direction"],
    ),
    "a forecast of nothing": (sweep("forecasts: {f: {threshold: 1.0}}"), ["forecasts.f.quantity", "quantity"]),
    "a forecast beyond a word": (
        sweep("forecasts: {f: {quantity: attention_logit_max, threshold: high}}"),
        ["forecasts.f.threshold=high", "estimated"],
    ),
}

LADDER = "sweeps/ladder/own.yaml"


def ladder(body: str) -> str:
    """A ladder file with these parts, as a mapping in one line."""
    return f"{HEADER}ladder: {body}\n"


LADDERS: dict[str, tuple[Content, Sequence[str]]] = {
    "no YAML": (f"{HEADER}ladder: {{\n", ["own.yaml", "line"]),
    "scales that are a list": (ladder("{name: own, scales: [w32]}"), ["ladder.scales=", "dictionary"]),
    "a scale that is a number": (ladder("{name: own, scales: {small: 32}}"), ["ladder.scales.small=32", "dictionary"]),
    "a scale of keys that there are not": (
        ladder("{name: own, scales: {small: {model.wdith: 32}}}"),
        ["model.wdith=32", "model.width"],
    ),
    "a scale whose heads do not fit": (
        ladder("{name: own, scales: {small: {model.width: 40, model.head_dim: 16}}}"),
        ["model.width=40", "model.head_dim=16"],
    ),
    "a scale of words": (ladder("{name: own, scales: {small: {model.width: wide}}}"), ["model.width=wide", "integer"]),
    "a learning rate of zero": (
        ladder("{name: own, scales: {small: {model.width: 32}}, learning_rates: {main: [0.1, 0.0]}}"),
        ["ladder.learning_rates.main", "greater than 0"],
    ),
    "no scales": (ladder("{name: own}"), ["scale=small", "none"]),
    "unknown keys": (ladder("{name: own, scale: {small: {model.width: 32}}}"), ["ladder.scale", "ladder.scales"]),
    "steps that are a word": (
        ladder("{name: own, steps: many, scales: {small: {model.width: 32}}}"),
        ["ladder.steps=many"],
    ),
    "a ladder that is a list": (f"{HEADER}ladder: [small]\n", ["ladder=['small']", "dictionary"]),
}

INTERVENTIONS: dict[str, tuple[Content, Sequence[str]]] = {
    "no YAML": (f"{HEADER}loss: [\n", ["own.yaml", "line"]),
    "a key that there is not": (f"{HEADER}loss:\n  zloss: 0.5\n", ["loss.zloss=0.5", "loss.z_loss"]),
    "a group that there is not": (f"{HEADER}los:\n  z_loss: 0.5\n", ["los="]),
    "a value of a wrong type": (f"{HEADER}loss:\n  z_loss: much\n", ["loss.z_loss=much", "number"]),
    "no package header": ("loss:\n  z_loss: 0.5\n", ["intervention", "@package _global_"]),
    "a group that is null": (f"{HEADER}loss: null\n", ["loss=None", "dictionary"]),
}


def sweep_cases() -> list[Case]:
    """All of them."""
    tables = {**BROKEN, **GRIDS, **CLAIMS}
    own = {about: ({MINE: content}, named) for about, (content, named) in tables.items()}
    ladders = {about: ({LADDER: content}, named) for about, (content, named) in LADDERS.items()}
    path = "sweeps/intervention/own.yaml"
    interventions = {about: ({path: content}, named) for about, (content, named) in INTERVENTIONS.items()}
    return [
        *files_cases("run", "+sweep=mine dry_run=true", own),
        *files_cases("run", "ladder=own scale=small dry_run=true", ladders),
        *files_cases("run", "+intervention=own dry_run=true", interventions),
        *files_cases(
            "run",
            "data=own",
            {"conf/data/own.yaml is no YAML": ({"conf/data/own.yaml": "name: ["}, ["own.yaml", "line"])},
        ),
        Case(
            "run",
            ("+sweep=mine", "dry_run=true"),
            ("mine.yaml", "cannot be read"),
            {MINE: grid("{seed: [0]}")},
            "unreadable",
            {MINE: 0o000},
        ),
        Case("run", ("+sweep=mine", "--cfg", "job"), ("mine.yaml", "line"), {MINE: "a: ["}, "--cfg of no YAML"),
    ]
