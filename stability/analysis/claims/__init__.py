"""Claims: statements that a sweep file makes and the analysis tests. A verdict never comes from the file."""

# Each of the first three registers the tests of its kinds with `judge`.
from stability.analysis.claims import about_learning_rates, about_quantities, about_sensitivity
from stability.analysis.claims.planned import check_claims
from stability.analysis.claims.verdicts import Verdict, judge
from stability.analysis.claims.vocabulary import CLAIMS, Claim, parse_claims

__all__ = [
    "CLAIMS",
    "Claim",
    "Verdict",
    "about_learning_rates",
    "about_quantities",
    "about_sensitivity",
    "check_claims",
    "judge",
    "parse_claims",
]
