"""Claims on worlds whose truth is known: they hold where it is so, fail where not, and are undecided when thin."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from stability.analysis.claims import CLAIMS, Verdict, judge, parse_claims
from stability.analysis.claims.results import Results
from stability.errors import InputError
from tests.worlds import Arm, world

CALM, STEEP = Arm(edge=30.0, best=0.03, curvature=0.02), Arm(edge=0.05, best=0.005)
"""An arm that trains at every LR of the grid, and one whose edge falls with N."""


def verdict(claim: Mapping[str, Any], table: pl.DataFrame) -> Verdict:
    (parsed,) = parse_claims({"it": claim}).values()
    return judge(parsed, Results(table))


@dataclass(frozen=True)
class Case:
    """A claim with a world where it is true, one where it is false, and one where its truth lies on the bound."""

    claim: dict[str, Any]
    true: dict[str, Arm]
    false: dict[str, Arm]
    null: dict[str, Arm] | None = None


def both(a: Arm, b: Arm) -> dict[str, Arm]:
    return {"mode=a": a, "mode=b": b}


def one(arm: Arm) -> dict[str, Arm]:
    return {"default": arm}


FLAT = replace(CALM, best_exponent=0.0)
"""Best LR and sensitivity that do not depend on N (but for the floor)."""

CASES: dict[str, Case] = {
    "sensitivity_below": Case(
        {"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b"},
        both(CALM, STEEP),
        both(STEEP, CALM),
        both(STEEP, STEEP),
    ),
    "sensitivity_below at the largest": Case(
        {"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b", "scales": "largest"},
        both(CALM, STEEP),
        both(STEEP, CALM),
        both(STEEP, STEEP),
    ),
    "sensitivity_alike": Case(
        {"kind": "sensitivity_alike", "arms": ["mode=a", "mode=b"], "within": 0.15},
        both(CALM, CALM),
        both(CALM, STEEP),
    ),
    "stable_edge_falls_with_n": Case(
        {"kind": "stable_edge_falls_with_n"},
        one(STEEP),
        one(replace(STEEP, edge=0.1, edge_exponent=0.5)),
        one(replace(STEEP, edge=0.17, edge_exponent=0.0)),
    ),
    "trains_at_every_learning_rate": Case(
        {"kind": "trains_at_every_learning_rate"},
        one(CALM),
        one(STEEP),
    ),
    "best_learning_rate_stays": Case(
        {"kind": "best_learning_rate_stays"},
        one(replace(CALM, best=0.05, curvature=0.1)),
        one(replace(CALM, best=0.07, curvature=0.1, best_exponent=-0.75)),
        one(replace(CALM, best=0.05, curvature=0.1, best_exponent=-math.log(10 / 3) / math.log(64))),
    ),
    "best_learning_rate_falls": Case(
        {"kind": "best_learning_rate_falls"},
        one(replace(CALM, best=0.05, curvature=0.1, best_exponent=-0.4)),
        one(replace(CALM, best=0.05, curvature=0.1, best_exponent=0.4)),
        one(replace(CALM, best=0.05, curvature=0.1)),
    ),
    "best_learning_rate_rises over arms": Case(
        {"kind": "best_learning_rate_rises", "arms": ["mode=a", "mode=b"]},
        both(replace(CALM, best=0.03, curvature=0.1), replace(CALM, best=0.1, curvature=0.1)),
        both(replace(CALM, best=0.1, curvature=0.1), replace(CALM, best=0.03, curvature=0.1)),
        both(replace(CALM, best=0.05, curvature=0.1), replace(CALM, best=0.05, curvature=0.1)),
    ),
    "exceeds_only_in": Case(
        {"kind": "exceeds_only_in", "quantity": "attention_logit_max", "threshold": 2e3, "runs": "unstable"},
        one(replace(STEEP, logit=9.0, logit_slope_n_params=0.6)),
        one(CALM),
    ),
    "quantity_below": Case(
        {"kind": "quantity_below", "quantity": "attention_logit_max", "arm": "mode=a", "than": "mode=b"},
        both(replace(CALM, logit=5.0), CALM),
        both(CALM, replace(CALM, logit=5.0)),
        both(CALM, CALM),
    ),
    "quantity_below, the loss": Case(
        {"kind": "quantity_below", "quantity": "loss", "arm": "mode=a", "than": "mode=b"},
        both(CALM, replace(CALM, floor=2.2)),
        both(replace(CALM, floor=2.2), CALM),
        both(CALM, CALM),
    ),
    "quantity_within": Case(
        {"kind": "quantity_within", "quantity": "attention_logit_max", "at_most": 1e6},
        one(replace(CALM, logit=5.0)),
        one(replace(CALM, logit=15.0)),
    ),
    "quantity_rises": Case(
        {"kind": "quantity_rises", "quantity": "attention_logit_max", "along": "n_params"},
        one(CALM),
        one(replace(CALM, logit_slope_n_params=-0.5)),
        one(replace(CALM, logit_slope_n_params=0.0)),
    ),
    "quantity_falls with the LR": Case(
        {"kind": "quantity_falls", "quantity": "attention_logit_max", "along": "learning_rate", "slope": 0.5},
        one(replace(CALM, logit_slope_learning_rate=-1.0)),
        one(replace(CALM, logit_slope_learning_rate=-0.2)),
        one(replace(CALM, logit_slope_learning_rate=-0.5)),
    ),
    "quantity_rises, sensitivity": Case(
        {"kind": "quantity_rises", "quantity": "sensitivity", "along": "n_params"},
        one(STEEP),
        one(replace(STEEP, edge=0.1, edge_exponent=0.5)),
    ),
    "grows_faster": Case(
        {
            "kind": "grows_faster",
            "curve": {"quantity": "attention_logit_max", "arm": "mode=a"},
            "than": {"quantity": "attention_logit_max", "arm": "mode=b"},
        },
        both(CALM, replace(CALM, logit_slope_n_params=0.3)),
        both(replace(CALM, logit_slope_n_params=0.3), CALM),
        both(CALM, CALM),
    ),
    "grows_faster, sensitivity": Case(
        {
            "kind": "grows_faster",
            "curve": {"quantity": "sensitivity", "arm": "mode=a"},
            "than": {"quantity": "sensitivity", "arm": "mode=b"},
        },
        both(replace(STEEP, edge_exponent=-0.7, edge=0.3), replace(STEEP, edge_exponent=0.0)),
        both(replace(STEEP, edge_exponent=0.0), replace(STEEP, edge_exponent=-0.7, edge=0.3)),
        both(STEEP, STEEP),
    ),
    "set_by_learning_rate": Case(
        {"kind": "set_by_learning_rate", "quantity": "attention_logit_max"},
        one(replace(CALM, logit_slope_n_params=0.0)),
        one(CALM),
        one(replace(CALM, logit_slope_n_params=0.25 * 1.2 * math.log(1 / 3e-3) / math.log(64))),
    ),
}


def test_every_kind_of_claim_has_a_case() -> None:
    assert {case.claim["kind"] for case in CASES.values()} == set(CLAIMS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seeds", [3, 5])
def test_holds_where_it_is_so_and_fails_where_it_is_not(name: str, seeds: int) -> None:
    case = CASES[name]
    for truth, arms in (("holds", case.true), ("fails", case.false)):
        table, _ = world(np.random.default_rng(seeds), seeds=seeds, arms=arms)
        found = verdict(case.claim, table)
        assert found.verdict == truth, found.evidence
        assert found.effect is not None
        assert found.interval is not None
        assert found.interval[0] <= found.interval[1]
        assert found.n > 0


def share_that_hold(case: Case, repetitions: int, seeds: int) -> float:
    assert case.null is not None
    rng = np.random.default_rng(2309)
    held = 0
    for _ in range(repetitions):
        table, _ = world(rng, seeds=seeds, arms=case.null)
        held += verdict(case.claim, table).verdict == "holds"
    return held / repetitions


ON_THE_BOUND = [name for name, case in CASES.items() if case.null is not None]


@pytest.mark.parametrize("name", ["sensitivity_below at the largest", "quantity_below", "grows_faster"])
def test_seldom_holds_where_the_truth_lies_on_the_bound(name: str) -> None:
    # 5 % are meant; of 60 studies 11 or more would then hold by chance in less than one case in 10,000.
    assert share_that_hold(CASES[name], 60, 3) <= 10 / 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_THE_BOUND)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_false_positive_rate(name: str, seeds: int) -> None:
    share = share_that_hold(CASES[name], 200, seeds)
    print(f"{name}, {seeds} seeds: {share:.3f}")
    assert share <= 0.1


@pytest.mark.parametrize("name", CASES)
def test_thin_evidence_is_undecided_and_never_a_crash(name: str) -> None:
    case = CASES[name]
    full, _ = world(np.random.default_rng(0), seeds=2, arms=case.true)
    nothing = full.clear()
    tables = {
        "nothing": nothing,
        "one run": full.head(1),
        "one learning rate": full.filter(pl.col("learning_rate") == 0.01),
        "one scale, one seed": full.filter((pl.col("scale") == "s0") & (pl.col("seed") == 0)),
        "another arm only": full.with_columns(arm=pl.lit("elsewhere")),
        "still running": full.with_columns(status=pl.lit("running")),
    }
    for what, table in tables.items():
        found = verdict(case.claim, table)
        assert found.verdict in ("holds", "fails", "undecided"), what
        assert found.evidence.endswith("."), what
        if what in ("nothing", "still running"):
            assert found.verdict == "undecided", what
            assert (found.effect, found.interval, found.n) == (None, None, 0), what


@pytest.mark.parametrize("name", CASES)
def test_all_diverged_none_diverged_ties_and_unknown_l0(name: str) -> None:
    case = CASES[name]
    table, _ = world(np.random.default_rng(0), seeds=3, arms=case.true)
    lost = table.with_columns(
        status=pl.lit("diverged"),
        loss_validation=pl.lit(None, pl.Float64),
        attention_logit_max=pl.lit(None, pl.Float64),
    )
    for damaged in (
        lost,
        lost.with_columns(loss_initial=pl.lit(None, pl.Float64)),
        table.with_columns(loss_validation=pl.lit(2.0), attention_logit_max=pl.lit(7.0)),
        table.with_columns(loss_initial=pl.lit(None, pl.Float64)),
    ):
        found = verdict(case.claim, damaged)
        assert found.effect is None or math.isfinite(found.effect)
        assert found.evidence.endswith(".")


def test_one_seed_is_judged_by_the_declared_noise_or_not_at_all() -> None:
    table, _ = world(np.random.default_rng(1), seeds=1, arms=both(CALM, STEEP))
    found = verdict({"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b"}, table)
    assert (found.verdict, found.n) == ("holds", 1)
    claim = {"kind": "quantity_below", "quantity": "attention_logit_max", "arm": "mode=a", "than": "mode=b"}
    logits = verdict(claim, world(np.random.default_rng(1), seeds=1, arms=both(replace(CALM, logit=1.0), CALM))[0])
    assert logits.verdict == "undecided"
    assert logits.interval is None
    assert "one seed" in logits.evidence


def test_pairs_are_compared_as_pairs_and_without_common_seeds_means_are() -> None:
    table, _ = world(np.random.default_rng(1), seeds=6, arms=both(CALM, STEEP))
    a, b = pl.col("arm") == "mode=a", pl.col("seed") < 3
    apart = table.filter((a & b) | (~a & ~b))
    claim = {"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b"}
    assert verdict(claim, table).n == 6
    assert (verdict(claim, apart).verdict, verdict(claim, apart).n) == ("holds", 3)


def test_learning_rates_that_one_arm_lacks_do_not_count() -> None:
    table, _ = world(np.random.default_rng(1), seeds=3, arms=both(STEEP, STEEP))
    cut = table.filter((pl.col("arm") != "mode=a") | (pl.col("learning_rate") < 0.1))
    found = verdict({"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b"}, cut)
    assert found.effect == pytest.approx(0.0, abs=0.05), "on its own grid `mode=b` would be far more sensitive"


def test_the_better_of_two_ranges_counts_for_the_other_arm() -> None:
    table, _ = world(np.random.default_rng(1), seeds=3, arms=both(CALM, STEEP))
    claim = {"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b", "scales": "largest"}
    whole = verdict(claim, table).effect
    better = verdict({**claim, "than_ranges": [[0.003, 0.03], [0.003, 1.0]]}, table).effect
    assert whole is not None
    assert better is not None
    assert better < whole


def test_arms_are_found_by_their_parts_and_ambiguity_is_no_verdict() -> None:
    arms = {"mode=a, size=1": CALM, "mode=a, size=2": CALM, "mode=b, size=1": STEEP}
    table, _ = world(np.random.default_rng(1), seeds=3, arms=arms)
    found = verdict({"kind": "sensitivity_below", "arm": "size=2", "than": "mode=b"}, table)
    assert found.verdict == "holds"
    found = verdict({"kind": "sensitivity_below", "arm": "mode=a", "than": "mode=b"}, table)
    assert (found.verdict, found.effect) == ("undecided", None)
    assert "several arms" in found.evidence


def test_a_metric_can_be_compared_with_another_of_the_same_runs() -> None:
    table, _ = world(np.random.default_rng(1), seeds=3, arms=one(CALM))
    table = table.with_columns(twice=2 * pl.col("output_rms"))
    claim = {"kind": "quantity_below", "quantity": "output_rms", "than_quantity": "twice"}
    assert verdict(claim, table).verdict == "holds"
    assert verdict({**claim, "quantity": "twice", "than_quantity": "output_rms"}, table).verdict == "fails"


GOOD = {"kind": "sensitivity_below", "arm": "a", "than": "b"}


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("holds", ["claims.it", "kind"]),
        ({}, ["claims.it.kind", "sensitivity_below"]),
        ({"kind": "true"}, ["claims.it.kind", "true", "sensitivity_below"]),
        ({**GOOD, "verdict": "holds"}, ["claims.it.verdict", "holds"]),
        ({"kind": "sensitivity_below", "arm": "a"}, ["claims.it.than"]),
        ({**GOOD, "margin": -0.1}, ["claims.it.margin", "-0.1"]),
        ({**GOOD, "margin": math.nan}, ["claims.it.margin", "nan"]),
        ({**GOOD, "scales": 3}, ["claims.it.scales", "3"]),
        ({**GOOD, "estimator": "median"}, ["claims.it.estimator", "median"]),
        ({**GOOD, "than_ranges": [[0.1, 0.01]]}, ["claims.it", "0.1, 0.01"]),
        ({"kind": "quantity_within", "quantity": "x"}, ["claims.it", "at_most"]),
        ({"kind": "quantity_below", "quantity": "x", "arm": "a"}, ["claims.it", "than_quantity"]),
        ({"kind": "sensitivity_alike", "arms": ["a"], "within": 0.1}, ["claims.it.arms"]),
        ({"kind": "sensitivity_alike", "arms": ["a", "b"], "within": 0}, ["claims.it.within"]),
        ({"kind": "best_learning_rate_rises", "arm": "a", "arms": ["a", "b"]}, ["claims.it", "arms"]),
        ({"kind": "exceeds_only_in", "quantity": "x", "threshold": "high"}, ["claims.it.threshold", "high"]),
        ({"kind": "exceeds_only_in", "quantity": "x", "threshold": 1, "tolerance": 1}, ["claims.it.tolerance"]),
        ({"kind": "grows_faster", "curve": {"quantity": "x"}}, ["claims.it.than"]),
        ({"kind": "grows_faster", "curve": {"quantity": "x"}, "than": {"quantty": "x"}}, ["claims.it.than", "quantty"]),
    ],
)
def test_what_is_no_claim_is_refused_with_key_value_and_fix(claim: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_claims({"it": claim})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_seed_whose_best_rate_lies_beyond_the_grid_is_not_left_out() -> None:
    arm = replace(CALM, best=0.05, curvature=0.1)
    claim = {"kind": "best_learning_rate_stays"}
    table, _ = world(np.random.default_rng(3), seeds=3, arms=one(arm))
    assert verdict(claim, table).verdict == "holds"
    lowest = (pl.col("seed") == 0) & (pl.col("scale") == "s0") & (pl.col("learning_rate") == 0.003)
    beyond = table.with_columns(
        loss_validation=pl.when(lowest).then(0.5).otherwise(pl.col("loss_validation")),
    )
    found = verdict(claim, beyond)
    assert found.verdict == "undecided"
    assert "unknown for some seed" in found.evidence
