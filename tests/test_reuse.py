"""Runs that another sweep has finished are copied, whole, and nothing else is."""

import json
from pathlib import Path

from stability.tracking.files import read_json, write_json
from stability.tracking.record import run_folders
from tests.conftest import TINY, Command

RATES = "optimizer.learning_rate=0.003,0.03"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_finished_runs_are_taken_over_and_the_rest_is_trained(command: Command) -> None:
    assert command(*TINY, RATES, "output_dir=results/lender").code == 0
    outcome = command(*TINY, f"{RATES},0.3", "output_dir=results/borrower", "reuse_from=results")
    assert outcome.code == 0, outcome.err
    assert "Took over 2 results" in outcome.out
    assert "3 runs, 2 already done" in outcome.out
    lent = {run.path.name: run.path for run in run_folders(Path("results/lender"))}
    borrowed = {run.path.name: run.path for run in run_folders(Path("results/borrower"))}
    assert lent.keys() < borrowed.keys()
    for name, path in lent.items():
        ours, theirs = files(borrowed[name]), files(path)
        copied_from = json.loads(ours.pop("provenance.json"))["copied_from"]
        assert copied_from.endswith(f"lender/runs/{name}")
        assert "copied_from" not in json.loads(theirs.pop("provenance.json"))
        assert ours == theirs
    assert not [path for path in Path("results/borrower").iterdir() if path.name.startswith(".")]
    again = command(*TINY, f"{RATES},0.3", "output_dir=results/borrower", "reuse_from=results")
    assert "Took over 0 results" in again.out


def test_unfinished_runs_are_not_lent_and_give_way_to_results(command: Command) -> None:
    assert command(*TINY, RATES, "output_dir=lender").code == 0
    first, second = (run.path for run in run_folders(Path("lender")))
    write_json(first / "summary.json", {**read_json(first / "summary.json"), "status": "running"}, checksum=True)
    (Path("borrower/runs") / second.name).mkdir(parents=True)
    write_json(Path("borrower/sweep.json"), {**read_json(Path("lender/sweep.json")), "sweep": "borrower"})
    outcome = command(*TINY, RATES, "output_dir=borrower", "reuse_from=lender")
    assert outcome.code == 0, outcome.err
    assert "Took over 1 result " in outcome.out
    assert json.loads((Path("borrower/runs") / first.name / "summary.json").read_text())["status"] == "finished"
