"""Where a run stands after whatever happened to its folder: the newest checkpoint that is whole, with its own rows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stability.tracking.files import write_json
from stability.tracking.record import Row, RunFolder, read_rows
from stability.tracking.standing import damage_of_result, seal, settle, standing

FINGERPRINT = "f" * 16


def rows_before(step: int) -> list[Row]:
    return [{"step": at, "loss/train": at / 7} for at in range(0, step, 10)]


def checkpoint(run: RunFolder, step: int) -> None:
    """Some files in folders, as Orbax has them."""
    folder = run.checkpoints / str(step) / "default"
    folder.mkdir(parents=True)
    (folder.parent / "_CHECKPOINT_METADATA").write_text("{}")
    (folder / "array").write_bytes(bytes(range(256)) * step)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An unfinished run of 250 steps with checkpoints at 100 and 200, and rows beyond them."""
    run = RunFolder(tmp_path / "runs" / "a")
    run.begin({"seed": 1}, FINGERPRINT, {"host": "one"})
    for step in (100, 200):
        run.append(rows_before(step)[-10:])
        checkpoint(run, step)
        seal(run, FINGERPRINT, step)
    run.append(rows_before(250)[-5:])
    return run


def flip(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_run_goes_on_from_its_newest_checkpoint_with_the_rows_before(run: RunFolder, tmp_path: Path) -> None:
    found = standing(run, FINGERPRINT)
    assert (found.step, found.damage) == (200, ())
    assert settle(run, found, tmp_path / "damaged" / "a-1") == rows_before(200)
    assert read_rows(run.metrics) == rows_before(200)
    assert not (tmp_path / "damaged").exists()
    assert standing(run, FINGERPRINT) == found, "settling changes nothing twice"


def test_a_run_without_checkpoints_begins_again(tmp_path: Path) -> None:
    new = RunFolder(tmp_path / "runs" / "new")
    assert standing(new, FINGERPRINT).step == 0
    assert settle(new, standing(new, FINGERPRINT), tmp_path / "aside") == []
    new.begin({}, FINGERPRINT, {})
    new.append(rows_before(50))
    assert settle(new, standing(new, FINGERPRINT), tmp_path / "aside") == []
    assert not (tmp_path / "aside").exists(), "rows of a killed start are no damage"


def test_what_a_kill_left_half_written_goes(run: RunFolder, tmp_path: Path) -> None:
    checkpoint(run, 250)  # no seal yet
    (run.checkpoints / "300.orbax-checkpoint-tmp").mkdir()
    (run.checkpoints / ".300.json.abc.partial").write_text("{")
    (run.path / ".summary.json.abc.partial").write_text("{")
    found = standing(run, FINGERPRINT)
    assert (found.step, found.damage) == (200, ())
    settle(run, found, tmp_path / "aside")
    assert {path.name for path in run.checkpoints.iterdir()} == {"100", "100.json", "200", "200.json"}
    assert not list(run.path.rglob("*.partial"))


DAMAGE: dict[str, Callable[[RunFolder], None]] = {
    "an array, one bit": lambda run: flip(run.checkpoints / "200" / "default" / "array", 999),
    "an array, cut off": lambda run: truncate(run.checkpoints / "200" / "default" / "array"),
    "an array, empty": lambda run: truncate(run.checkpoints / "200" / "default" / "array", 0.0),
    "an array, gone": lambda run: (run.checkpoints / "200" / "default" / "array").unlink(),
    "its metadata, one bit": lambda run: flip(run.checkpoints / "200" / "_CHECKPOINT_METADATA"),
    "a file too many": lambda run: (run.checkpoints / "200" / "more").touch(),
    "all of it, gone": lambda run: shutil.rmtree(run.checkpoints / "200"),
    "its seal, one bit": lambda run: flip(run.checkpoints / "200.json", 40),
    "its seal, cut off": lambda run: truncate(run.checkpoints / "200.json"),
    "its seal, of another run": lambda run: seal(run, "e" * 16, 200),
    "its seal, another thing": lambda run: write_json(run.checkpoints / "200.json", {"schema_version": 1}),
    "a row after the first checkpoint": lambda run: flip(run.metrics, 600),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(
    run: RunFolder, tmp_path: Path, damage: Callable[[RunFolder], None]
) -> None:
    damage(run)
    found = standing(run, FINGERPRINT)
    assert found.step == 100
    assert len(found.damage) == 1
    assert "200" in found.damage[0].why or "metrics.jsonl" in found.damage[0].why
    aside = tmp_path / "damaged" / "a-1"
    assert settle(run, found, aside) == rows_before(100)
    assert {path.name for path in run.checkpoints.iterdir()} == {"100", "100.json"}
    kept = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
    assert "metrics.jsonl" in kept, "what was measured beyond is evidence, and kept"
    assert any(name.startswith("checkpoints/200") for name in kept)
    assert standing(run, FINGERPRINT) == type(found)(100, found.metrics_bytes)


def test_with_no_sound_checkpoint_all_is_put_aside(run: RunFolder, tmp_path: Path) -> None:
    flip(run.metrics, 20)
    found = standing(run, FINGERPRINT)
    assert (found.step, len(found.damage)) == (0, 2)
    everything = sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
    aside = tmp_path / "damaged" / "a-1"
    assert settle(run, found, aside) == []
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == everything
    assert [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("name", ["summary.json", "config.json", "provenance.json"])
def test_a_damaged_file_of_an_unfinished_run_is_put_aside_alone(run: RunFolder, tmp_path: Path, name: str) -> None:
    truncate(run.path / name)
    found = standing(run, FINGERPRINT)
    assert found.step == 200
    assert [one.path.name for one in found.damage] == [name]
    settle(run, found, tmp_path / "aside")
    assert (tmp_path / "aside" / name).exists()
    assert not (run.path / name).exists()


def test_seals_of_checkpoints_that_are_gone_go(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints / "100")
    checkpoint(run, 250)
    seal(run, FINGERPRINT, 250)
    assert {path.name for path in run.checkpoints.glob("*.json")} == {"200.json", "250.json"}


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(run: RunFolder) -> RunFolder:
    run.remove_checkpoints()
    run.write_summary({"fingerprint": FINGERPRINT, "status": "finished", "loss_validation": 1.93})
    return run


def test_a_result_is_whole(finished: RunFolder) -> None:
    assert damage_of_result(finished, FINGERPRINT) is None
    why = damage_of_result(finished, "e" * 16)
    assert why is not None
    assert FINGERPRINT in why


RESULT_DAMAGE: dict[str, Callable[[RunFolder], None]] = {
    "a row, one bit": lambda run: flip(run.metrics, 100),
    "rows, cut off": lambda run: truncate(run.metrics),
    "rows, gone": lambda run: run.metrics.unlink(),
    "rows, added": lambda run: run.append([{"step": 999}]),
    "the summary, one bit": lambda run: flip(run.summary, 60),
    "the summary, cut off": lambda run: truncate(run.summary),
    "the config, gone": lambda run: run.config.unlink(),
    "the config, empty": lambda run: truncate(run.config, 0.0),
    "the provenance, gone": lambda run: run.provenance.unlink(),
    "the provenance, one bit": lambda run: flip(run.provenance, 50),
    "the provenance, another thing": lambda run: write_json(run.provenance, {"schema_version": 1}),
}


@pytest.mark.parametrize("damage", RESULT_DAMAGE.values(), ids=RESULT_DAMAGE)
def test_a_damaged_result_is_none_and_is_put_aside_whole(
    finished: RunFolder, tmp_path: Path, damage: Callable[[RunFolder], None]
) -> None:
    damage(finished)
    assert damage_of_result(finished, FINGERPRINT)
    found = standing(finished, FINGERPRINT)
    assert found.step == 0
    assert found.damage
    left = sorted(path.name for path in finished.path.iterdir())
    settle(finished, found, tmp_path / "damaged" / "a-1")
    assert sorted(path.name for path in (tmp_path / "damaged" / "a-1").iterdir()) == left


def test_a_result_of_an_earlier_version_carries_no_checksums(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "old")
    run.begin({"seed": 1}, FINGERPRINT, {})
    run.append(rows_before(30))
    for path, content in [
        (run.summary, {"fingerprint": FINGERPRINT, "status": "finished"}),
        (run.config, {"config": {"seed": 1}}),
        (run.provenance, {"starts": []}),
    ]:
        write_json(path, {"schema_version": 1, **content})
    assert damage_of_result(run, FINGERPRINT) is None
