"""Claims: statements that a sweep file makes and the analysis tests. A verdict never comes from the file."""

from stability.analysis.claims.verdicts import Verdict, judge
from stability.analysis.claims.vocabulary import CLAIMS, Claim, parse_claims

__all__ = ["CLAIMS", "Claim", "Verdict", "judge", "parse_claims"]
