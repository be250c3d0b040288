"""Tables of runs: what other frameworks write is read as declared, and what is wrong is named by line and column."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.analysis import table_parts
from stability.analysis.load import load, read
from stability.analysis.quantities import Quantity
from stability.errors import InputError

SHORT = "n_params,learning_rate,loss"
LONG = "n_params,learning_rate,step,loss"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "t.csv"


# --- what is wrong --------------------------------------------------------------------------------------------------

BAD_LINES: Mapping[str, tuple[str, str, str]] = {
    # header, the bad line (the fourth, after one good line and a blank one), the column at fault
    "words for a size": (SHORT, "big,0.1,2", "n_params"),
    "half a parameter": (SHORT, "10.5,0.1,2", "n_params"),
    "no parameter": (SHORT, "0,0.1,2", "n_params"),
    "fewer than none": (SHORT, "-10,0.1,2", "n_params"),
    "no size": (SHORT, ",0.1,2", "n_params"),
    "endless size": (SHORT, "inf,0.1,2", "n_params"),
    "size that is no number": (SHORT, "nan,0.1,2", "n_params"),
    "size beyond 64 bits": (SHORT, "1e30,0.1,2", "n_params"),
    "size of thousands of digits": (SHORT, f"{'9' * 6000},0.1,2", "n_params"),
    "hexadecimal size": (SHORT, "0x10,0.1,2", "n_params"),
    "size with its unit": (SHORT, "2.4M,0.1,2", "n_params"),
    "size with a separator": (SHORT, "2 400 000,0.1,2", "n_params"),
    "code for a size": (SHORT, "__import__('os'),0.1,2", "n_params"),
    "no learning rate": (SHORT, "10,,2", "learning_rate"),
    "learning rate of zero": (SHORT, "10,0,2", "learning_rate"),
    "negative learning rate": (SHORT, "10,-0.1,2", "learning_rate"),
    "endless learning rate": (SHORT, "10,inf,2", "learning_rate"),
    "learning rate nan": (SHORT, "10,nan,2", "learning_rate"),
    "word for a learning rate": (SHORT, "10,fast,2", "learning_rate"),
    "product for a learning rate": (SHORT, "10,1*0.1,2", "learning_rate"),
    "word for a loss": (SHORT, "10,0.1,low", "loss"),
    "diverged for a loss": (SHORT, "10,0.1,diverged", "loss"),
    "null for a loss": (SHORT, "10,0.1,null", "loss"),
    "percent for a loss": (SHORT, "10,0.1,5%", "loss"),
    "half a seed": (f"{SHORT},seed", "10,0.1,2,0.5", "seed"),
    "word for a seed": (f"{SHORT},seed", "10,0.1,2,first", "seed"),
    "seed nan": (f"{SHORT},seed", "10,0.1,2,nan", "seed"),
    "word for l0": (f"{SHORT},loss_initial", "10,0.1,2,high", "loss_initial"),
    "word for a logit": (f"{SHORT},attention_logit_max", "10,0.1,2,high", "attention_logit_max"),
    "word for a last logit": (f"{SHORT},attention_logit_max_final", "10,0.1,2,?", "attention_logit_max_final"),
    "unknown status": (f"{SHORT},status", "10,0.1,2,crashed", "status"),
    "status in capitals": (f"{SHORT},status", "10,0.1,2,Finished", "status"),
    "finished without a loss": (f"{SHORT},status", "10,0.1,,finished", "status"),
    "finished with loss nan": (f"{SHORT},status", "10,0.1,nan,finished", "status"),
    "finished with an endless loss": (f"{SHORT},status", "10,0.1,-inf,finished", "status"),
    "half a step made": (f"{SHORT},steps", "10,0.1,2,0.5", "steps"),
    "fewer steps than none": (f"{SHORT},steps", "10,0.1,2,-1", "steps"),
    "no step": (LONG, "10,0.1,,2", "step"),
    "half a step": (LONG, "10,0.1,0.5,2", "step"),
    "negative step": (LONG, "10,0.1,-1,2", "step"),
    "step nan": (LONG, "10,0.1,nan,2", "step"),
    "word for a step": (LONG, "10,0.1,last,2", "step"),
    "word for a loss at a step": (LONG, "10,0.1,3,low", "loss"),
    "a cell too few": (SHORT, "10,0.1", "source"),
    "a cell too many": (SHORT, "10,0.1,2,3", "source"),
    "a decimal comma": (SHORT, "10,0,1,2", "source"),
    "semicolons": (SHORT, "10;0.1;2", "source"),
    "a quote that is not closed": (SHORT, '10,0.1,"2', "source"),
    "a quote inside a cell": (SHORT, '10,"0.1"x,2', "source"),
}


def good_line(header: str) -> str:
    return {SHORT: "9,0.1,2", LONG: "9,0.1,0,2"}.get(header, "9,0.1,2,")


class TestBadLines:
    @pytest.mark.parametrize("name", BAD_LINES)
    def test_line_and_column_are_named(self, csv: Path, name: str) -> None:
        header, line, key = BAD_LINES[name]
        write(csv, header, good_line(header), "", line, good_line(header).replace("9", "8", 1))
        with pytest.raises(InputError, match="line 4") as caught:
            load(csv)
        assert caught.value.key == key
        assert str(csv) in str(caught.value)
        assert len(str(caught.value)) < 600, "a cell of any length makes a message that one can read"

    @pytest.mark.parametrize("name", [name for name, (_, _, key) in BAD_LINES.items() if key != "source"])
    def test_wherever_the_line_stands_and_whatever_reads_it(
        self, csv: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many blocks, and a quoted cell before, which hands the rest of the file to another reader."""
        header, line, key = BAD_LINES[name]
        many = [good_line(header).replace("9", str(size), 1) for size in range(1000, 1200)]
        monkeypatch.setattr(table_parts, "_BLOCK", 1000)
        for first in (many[0], many[0].replace("0.1", '"0.1"', 1)):
            write(csv, header, first, *many[1:], line, *(one.replace("0.1", "0.2") for one in many))
            with pytest.raises(InputError, match="line 202") as caught:
                load(csv)
            assert caught.value.key == key

    def test_column_and_line_are_the_files_own(self, csv: Path) -> None:
        write(csv, "size,lr,eval", "10,0.1,2", "10,0.2,x")
        with pytest.raises(InputError, match="column eval, line 3") as caught:
            load(csv, aliases={"n_params": "size", "learning_rate": "lr", "loss": "eval"})
        assert caught.value.key == "loss"

    @pytest.mark.parametrize("byte", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
    def test_bytes_that_are_no_text_are_named_by_line(self, csv: Path, byte: bytes) -> None:
        for quote in (b"", b'"'):
            csv.write_bytes(
                b"n_params,learning_rate,loss\n10," + quote + b"0.1" + quote + b",2\n10,0.2," + byte + b"\n"
            )
            with pytest.raises(InputError, match=r"UTF-8.*line 3"):
                load(csv)


BAD_CELLS: Mapping[str, tuple[str, list[Any]]] = {
    "text": ("n_params", ["10", "ten"]),
    "half": ("n_params", [10.0, 10.5]),
    "nan": ("n_params", [10.0, math.nan]),
    "nothing": ("n_params", [10, None]),
    "zero": ("n_params", [10, 0]),
    "rate of zero": ("learning_rate", [0.1, 0.0]),
    "endless rate": ("learning_rate", [0.1, math.inf]),
    "rate missing": ("learning_rate", [0.1, None]),
    "rate as text": ("learning_rate", ["0.1", "high"]),
    "loss as text": ("loss", ["2", "low"]),
    "seed": ("seed", [1.0, 1.5]),
    "status": ("status", [None, "dead"]),
    "step": ("step", [0, None]),
    "negative step": ("step", [0, -5]),
    "logit": ("attention_logit_max", ["1", "x"]),
}


class TestParquet:
    @pytest.mark.parametrize("name", BAD_CELLS)
    def test_bad_cells_are_named_by_row(self, tmp_path: Path, name: str) -> None:
        column, cells = BAD_CELLS[name]
        table = pl.DataFrame({"n_params": [10, 10], "learning_rate": [0.1, 0.2], "loss": [2.0, 2.0], column: cells})
        table.write_parquet(tmp_path / "t.parquet")
        with pytest.raises(InputError, match="row 2") as caught:
            load(tmp_path / "t.parquet")
        assert caught.value.key == column

    def test_columns_of_no_number_type(self, tmp_path: Path) -> None:
        table = pl.DataFrame({"n_params": [[10], [20]], "learning_rate": [0.1, 0.2], "loss": [True, False]})
        table.write_parquet(tmp_path / "t.parquet")
        with pytest.raises(InputError, match=r"List\(Int64\)") as caught:
            load(tmp_path / "t.parquet")
        assert caught.value.key == "n_params"

    def test_types_of_every_kind(self, tmp_path: Path) -> None:
        table = pl.DataFrame(
            {
                "n_params": pl.Series([10, 20], dtype=pl.UInt64),
                "learning_rate": pl.Series([0.125, 0.25], dtype=pl.Float32),
                "loss": pl.Series(["2", "nan"], dtype=pl.Categorical),
                "arm": pl.Series([1e-4, 0.0]),
                "seed": pl.Series([1.0, None]),
                "flag": [True, False],
                "list": [[1], [2]],
                "decimal": pl.Series(["1.5", "2.5"]).cast(pl.Decimal(10, 2)),
                "nothing": pl.Series([None, None]),
                "some": [None, 3],
            }
        )
        table.write_parquet(tmp_path / "t.parquet")
        source = read(tmp_path / "t.parquet")
        columns = ("arm", "seed", "n_params", "learning_rate", "loss_validation", "status", "decimal", "some")
        assert source.table.select(columns).rows() == [
            ("0.0", 0, 20, 0.25, None, "diverged", 2.5, 3.0),
            ("0.0001", 1, 10, 0.125, 2.0, "finished", 1.5, None),
        ]
        assert source.warnings == ("Columns of t.parquet that were not used: flag, list, nothing.",)

    @pytest.mark.parametrize(
        ("cells", "arms"),
        [
            (pl.Series([None, None], dtype=pl.Int64), ["default", "default"]),
            (pl.Series([None, None]), ["default", "default"]),
            (pl.Series([True, None]), ["true", "default"]),
            (pl.Series([" a ", ""], dtype=pl.Categorical), ["a", "default"]),
            (pl.Series([1e-15, 0.5]), ["1e-15", "0.5"]),
            (pl.Series(["2026-01-01", None]).str.to_date(), ["2026-01-01", "default"]),
        ],
    )
    def test_arms_of_every_type(self, tmp_path: Path, cells: pl.Series, arms: list[str]) -> None:
        table = pl.DataFrame({"n_params": [10, 10], "learning_rate": [0.1, 0.2], "loss": [2.0, 2.0], "arm": cells})
        table.write_parquet(tmp_path / "t.parquet")
        assert load(tmp_path / "t.parquet").sort("learning_rate")["arm"].to_list() == arms

    @pytest.mark.parametrize("cells", [[[1], [2]], [b"a", b"b"], [{"a": 1}, {"a": 2}]])
    def test_arms_of_a_type_that_has_no_words(self, tmp_path: Path, cells: list[Any]) -> None:
        table = pl.DataFrame({"n_params": [10, 10], "learning_rate": [0.1, 0.2], "loss": [2.0, 2.0], "arm": cells})
        table.write_parquet(tmp_path / "t.parquet")
        with pytest.raises(InputError, match=r"not text.*row 1") as caught:
            load(tmp_path / "t.parquet")
        assert caught.value.key == "arm"

    @pytest.mark.parametrize("content", [b"PAR1", b"PAR1xxxxxxxxPAR1", b"PAR1" + bytes(1000)])
    def test_damaged_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.parquet").write_bytes(content)
        with pytest.raises(InputError, match="damaged Parquet"):
            load(tmp_path / "t.parquet")

    def test_name_and_content_that_disagree(self, tmp_path: Path) -> None:
        table = pl.DataFrame({"n_params": [10], "learning_rate": [0.1], "loss": [2.0]})
        table.write_parquet(tmp_path / "t.csv")
        assert load(tmp_path / "t.csv").height == 1
        write(tmp_path / "t.parquet", SHORT, "10,0.1,2")
        with pytest.raises(InputError, match="not a Parquet file"):
            load(tmp_path / "t.parquet")

    def test_a_name_that_polars_would_take_for_a_pattern(self, tmp_path: Path) -> None:
        table = pl.DataFrame({"n_params": [10], "learning_rate": [0.1], "loss": [2.0]})
        table.write_parquet(tmp_path / "t[1]*.parquet")
        assert load(tmp_path / "t[1]*.parquet").height == 1

    def test_no_rows(self, tmp_path: Path) -> None:
        pl.DataFrame({"n_params": [], "learning_rate": [], "loss": []}).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(InputError, match="no runs"):
            load(tmp_path / "t.parquet")


# --- the same table, however it is written ----------------------------------------------------------------------------

cell = st.sampled_from(["", " ", "nan", "inf", "-inf", "1", "2.5", " 3e-1 ", "1_0", "+4", ".5", "007", "-0.0"])
size = st.sampled_from(["10", " 10", "1e1", "10.0", "2_0", "20", "3e6"])


@given(
    lines=st.lists(st.tuples(size, cell, cell, cell), min_size=1, max_size=20),
    block=st.sampled_from([1, 20, 100, 1 << 25]),
    quotes=st.integers(0, 2**20),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(max_examples=40, deadline=None)
def test_quotes_line_ends_and_blocks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[tuple[str, ...]],
    block: int,
    quotes: int,
    ending: str,
) -> None:
    """Against Python's own reading of every cell."""
    path = tmp_path_factory.mktemp("t") / "t.csv"
    random.seed(quotes)
    texts = [
        ",".join(f'"{one}"' if quotes and random.random() < 0.05 else one for one in (line[0], f"{i + 1}", *line[1:]))
        for i, line in enumerate(lines)
    ]
    texts = [text for one in texts for text in ([one, "", " , , ,, "] if random.random() < 0.2 else [one])]
    header = "n_params,learning_rate,loss,loss_initial,attention_logit_max"
    path.write_bytes(ending.join([header, *texts]).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_parts, "_BLOCK", block)
        patch.setattr(table_parts, "_ROWS", 3)
        table = load(path).sort("learning_rate")

    def number(text: str) -> float | None:
        value = float(text) if text.strip() else math.nan
        return value if math.isfinite(value) else None

    assert table["n_params"].to_list() == [int(float(line[0])) for line in lines]
    assert table["learning_rate"].to_list() == [float(i + 1) for i in range(len(lines))]
    for at, name in ((1, "loss_validation"), (2, "loss_initial"), (3, "attention_logit_max")):
        assert table[name].to_list() == [number(line[at]) for line in lines]
    assert table["status"].to_list() == [
        "diverged"
        if number(loss) is None or (number(initial) is not None and number(loss) > number(initial))  # type: ignore[operator]
        else "finished"
        for _, loss, initial, _ in lines
    ]


def test_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "arm\tn_params\tlearning_rate\tloss", "a, b\t10\t0.1\t2", "c\t10\t0.1\t3")
    assert load(path).select("arm", "loss_validation").rows() == [("a, b", 2.0), ("c", 3.0)]


def test_lines_of_nothing_but_separators_are_blank(csv: Path) -> None:
    write(csv, SHORT, "10,0.1,2", ",,", " , ,\t", "10,0.2,3")
    assert load(csv)["loss_validation"].to_list() == [2.0, 3.0]
    write(csv, SHORT, "10,0.1,2", ",,", ",0.2,3")
    with pytest.raises(InputError, match="line 4"):
        load(csv)


def test_cells_with_commas_quotes_and_line_ends(csv: Path) -> None:
    write(csv, f"arm,{SHORT}", '"a ""b"", c",10,0.1,2', '"two', 'lines",10,0.1,3', "d,10,0.1,x")
    with pytest.raises(InputError, match="line 5"):
        load(csv)
    write(csv, f"arm,{SHORT}", '"a ""b"", c",10,0.1,2', '"two', 'lines",10,0.1,3')
    assert load(csv)["arm"].to_list() == ['a "b", c', "two\nlines"]


# --- columns --------------------------------------------------------------------------------------------------------


class TestColumns:
    def test_status_is_what_the_table_says_or_what_follows(self, csv: Path) -> None:
        lines = [
            "1,2,6,",
            "2,2,6,finished",
            "3,7,6,finished",
            "4,2,6,diverged",
            "5,,6,failed",
            "6,2,6,running",
            "7,,6,",
        ]
        write(csv, "learning_rate,loss,loss_initial,status,n_params", *(f"{line},10" for line in lines))
        source = read(csv)
        assert source.table.select("status", "loss_validation").rows() == [
            ("finished", 2.0),
            ("finished", 2.0),
            ("diverged", 7.0),
            ("diverged", 2.0),
            ("failed", None),
            ("running", None),
            ("diverged", None),
        ]
        assert not source.complete
        assert source.warnings == ("2 of 7 runs of t.csv have no result and are not counted (failed: 1, running: 1).",)

    def test_scale_steps_and_last_logit(self, csv: Path) -> None:
        write(
            csv,
            f"{SHORT},scale,steps,attention_logit_max_final",
            "10,0.1,2,w32,1e3,5",
            "10,0.1,3,w32_d4,,",
            "10,0.1,4,,7,inf",
        )
        columns = ("scale", "steps", "attention_logit_max_final", "loss_validation")
        assert sorted(load(csv).select(columns).rows()) == [
            ("10", 7, None, 4.0),
            ("w32", 1000, 5.0, 2.0),
            ("w32_d4", None, None, 3.0),
        ]

    def test_a_scale_that_has_the_name_of_a_size_is_no_second_run(self, csv: Path) -> None:
        write(csv, f"{SHORT},scale", "10,0.1,2,10", "10,0.1,3,")
        with pytest.raises(InputError, match=r"line 2 of .* has the same .* as line 3|line 3"):
            load(csv)

    def test_other_numbers_are_quantities_and_other_words_are_not(self, csv: Path) -> None:
        write(csv, f"{SHORT},entropy,note,mixed,empty,", "10,0.1,2,nan,a,1,,0", "10,0.2,2,0.5,b,x,,1")
        source = read(csv)
        assert source.table.columns[-1:] == ["entropy"]
        assert source.table["entropy"].to_list() == [None, 0.5]
        assert source.warnings == (
            "Columns of t.csv that were not used: note, empty, one without a name.",
            "The column mixed of t.csv was not used: it holds 'x' on line 3 beside numbers.",
        )

    def test_names_that_a_table_of_runs_has_for_something_else(self, csv: Path) -> None:
        write(csv, f"{SHORT},diverged,folder,data_seed,loss_validation", "10,0.1,2,1,2,3,9")
        source = read(csv)
        assert source.table.row(0, named=True)["loss_validation"] == 2.0
        assert source.warnings == (
            "Columns of t.csv that were not used, their names being taken: diverged, folder, data_seed, "
            "loss_validation.",
        )


class TestAliases:
    REFERENCE = ("n_params,lr,variant,coefficient,test_loss", "16e6,0.1,baseline,0,3.9", "16e6,0.1,zloss,0.0001,3.8")

    def test_a_public_table(self, csv: Path) -> None:
        write(csv, *self.REFERENCE)
        aliases = {"learning_rate": "lr", "loss": "test_loss", "arm": "variant"}
        source = read(csv, aliases=aliases)
        columns = ("arm", "scale", "learning_rate", "loss_validation", "coefficient")
        assert source.table.select(columns).rows() == [
            ("baseline", "16M", 0.1, 3.9, 0.0),
            ("zloss", "16M", 0.1, 3.8, 0.0001),
        ]
        assert source.warnings == ()

    def test_an_arm_of_several_columns(self, csv: Path) -> None:
        write(csv, *self.REFERENCE, "16e6,0.1,,1,3.7")
        table = load(csv, aliases={"learning_rate": "lr", "loss": "test_loss", "arm": "variant, coefficient"})
        assert table["arm"].to_list() == [
            "variant=baseline, coefficient=0",
            "variant=null, coefficient=1",
            "variant=zloss, coefficient=0.0001",
        ]
        assert "coefficient" not in table.columns

    def test_nothing_is_guessed(self, csv: Path) -> None:
        write(csv, *self.REFERENCE)
        with pytest.raises(InputError, match=r"lacks the columns learning_rate, loss") as caught:
            load(csv)
        assert "column.loss=test_loss" in str(caught.value)
        assert "column.learning_rate=lr" in str(caught.value)

    @pytest.mark.parametrize(
        ("aliases", "key", "match"),
        [
            ({"loss": "tset_loss"}, "column.loss", r"Did you mean test_loss\?"),
            ({"loss": "zzz"}, "column.loss", "There are coefficient, lr"),
            ({"lerning_rate": "lr"}, "column.lerning_rate", r"Did you mean column\.learning_rate\?"),
            ({"entropy": "lr"}, "column.entropy", "others make quantities"),
            ({"arm": "variant,coeficient"}, "column.arm", r"'coeficient' is not a column.*coefficient"),
            ({"arm": "variant,"}, "column.arm", "not a column"),
        ],
    )
    def test_an_alias_that_names_nothing(self, csv: Path, aliases: dict[str, str], key: str, match: str) -> None:
        write(csv, *self.REFERENCE)
        with pytest.raises(InputError, match=match) as caught:
            load(csv, aliases=aliases)
        assert caught.value.key == key

    def test_the_alias_wins_over_the_name(self, csv: Path) -> None:
        write(csv, f"{SHORT},eval/loss", "10,0.1,2,3")
        source = read(csv, aliases={"loss": "eval/loss"})
        assert source.table["loss_validation"].to_list() == [3.0]
        assert source.warnings == ("Columns of t.csv that were not used, their names being taken: loss.",)


# --- one row a step ---------------------------------------------------------------------------------------------------


class TestLong:
    def test_a_run_is_reduced_to_one_row(self, csv: Path) -> None:
        write(
            csv,
            f"{LONG},attention_logit_max,entropy",
            "10,0.1,0,6,1,3",
            "10,0.1,20,2,4,",
            "10,0.1,10,4,9,inf",
            "10,0.2,0,6,nan,1",
            "10,0.2,20,2,,2",
        )
        columns = ("steps", "status", "loss_initial", "loss_validation")
        logits = ("attention_logit_max", "attention_logit_max_final", "entropy")
        source = read(csv)
        assert source.table.select(*columns, *logits).rows() == [
            (20, "finished", 6.0, 2.0, 9.0, 4.0, None),
            (20, "finished", 6.0, 2.0, None, None, 2.0),
        ]
        assert source.warnings == ()

    @pytest.mark.parametrize(
        ("losses", "status", "final"),
        [
            ("6,4,2", "finished", 2.0),
            ("6,nan,2", "diverged", 2.0),
            ("6,inf,2", "diverged", 2.0),
            ("6,4,nan", "diverged", None),
            ("6,4,7", "diverged", 7.0),
            ("6,7,5", "finished", 5.0),
            ("nan,4,2", "diverged", 2.0),
        ],
    )
    def test_diverged_when_not_finite_at_any_step(
        self, csv: Path, losses: str, status: str, final: float | None
    ) -> None:
        write(csv, LONG, *(f"10,0.1,{step},{loss}" for step, loss in enumerate(losses.split(","))))
        assert load(csv).select("status", "loss_validation").row(0) == (status, final)

    def test_an_empty_loss_before_the_last_was_not_measured(self, csv: Path) -> None:
        write(csv, LONG, "10,0.1,0,6", "10,0.1,5,", "10,0.1,9,2")
        source = read(csv)
        assert source.table["status"].to_list() == ["finished"]
        assert len(source.warnings) == 1
        assert "1 rows of t.csv have an empty loss" in source.warnings[0]

    def test_an_empty_last_loss_is_a_run_that_diverged(self, csv: Path) -> None:
        write(csv, LONG, "10,0.1,0,6", "10,0.1,9,", "10,0.2,9,3")
        source = read(csv)
        assert source.table["status"].to_list() == ["diverged", "finished"]
        assert "1 of 2 runs of t.csv have no loss at their last step" in source.warnings[0]
        assert "line 3" in source.warnings[0]

    def test_the_initial_loss_is_the_column_or_the_loss_at_step_0(self, csv: Path) -> None:
        lines = ["10,0.1,0,6,7", "10,0.1,9,2,", "10,0.2,0,6,", "10,0.2,9,2,nan", "10,0.3,1,6,", "10,0.3,9,2,"]
        write(csv, f"{LONG},loss_initial", *lines)
        assert load(csv)["loss_initial"].to_list() == [7.0, 6.0, None]

    def test_runs_that_end_early_are_pointed_out(self, csv: Path) -> None:
        lines = ["10,0.1,9,2", "10,0.2,5,2", "10,0.3,5,nan", "20,0.1,5,2"]
        write(csv, LONG, *lines)
        (warning,) = read(csv).warnings
        assert warning.startswith("1 of 4 runs of t.csv end earlier")
        assert "step 5, line 3; another at 9" in warning
        write(
            csv,
            f"{LONG},status",
            *(f"{line}{status}" for line, status in zip(lines, (",", ",failed", ",", ","), strict=True)),
        )
        source = read(csv)
        assert source.table["status"].to_list() == ["finished", "failed", "diverged", "finished"]
        assert len(source.warnings) == 1

    @pytest.mark.parametrize(
        ("extra", "lines", "key", "places"),
        [
            ("", ["10,0.1,5,2", "10,0.2,5,2", "10,0.1,5,3"], "source", "lines 2 and 4"),
            ("", ["10,0.1,5,2", "10,0.1,4,2", "1e1,1e-1,5.0,2"], "source", "lines 2 and 4"),
            (",loss_initial", ["10,0.1,5,2,6", "10,0.2,5,2,6", "10,0.1,6,2,7"], "loss_initial", "lines 2 and 4"),
            (",status", ["10,0.1,5,2,running", "10,0.1,6,2,finished"], "status", "lines 2 and 3"),
            (",steps", ["10,0.1,5,2,", "10,0.1,6,2,9", "10,0.1,7,2,8"], "steps", "lines 3 and 4"),
            (",status", ["10,0.1,5,nan,finished", "10,0.1,6,2,"], "status", "line 2"),
        ],
    )
    def test_rows_that_contradict_each_other(
        self, csv: Path, extra: str, lines: list[str], key: str, places: str
    ) -> None:
        write(csv, LONG + extra, *lines)
        with pytest.raises(InputError, match=places) as caught:
            load(csv)
        assert caught.value.key == key

    def test_a_step_column_under_another_name_is_proposed(self, csv: Path) -> None:
        write(csv, "n_params,learning_rate,_step,loss", "10,0.1,0,6", "10,0.1,9,2")
        with pytest.raises(InputError, match=r"lines 2 and 3.*column\.step=_step"):
            load(csv)
        assert load(csv, aliases={"step": "_step"})["steps"].to_list() == [9]

    def test_quantities_of_contract_columns_and_of_others(self, csv: Path) -> None:
        lines = [f"10,0.1,{step},{6 - step / 10},{step * 2},{-step}" for step in range(0, 41, 10)]
        write(csv, "n_params,learning_rate,step,eval,logit,entropy", *lines)
        source = read(
            csv,
            aliases={"loss": "eval", "attention_logit_max": "logit"},
            quantities={
                "early": {"metric": "logit", "at_step": 25},
                "same": {"metric": "attention_logit_max", "at_step": 25},
                "lowest_loss": {"metric": "eval", "reduce": "min"},
                "late": {"metric": "entropy", "last_steps": 20, "reduce": "mean", "absolute": True},
                "at_end": {"metric": "entropy", "at_step": 40},
                "too_late": {"metric": "entropy", "at_step": 41},
                "nowhere": {"metric": "entrpy"},
            },
        )
        names = ("early", "same", "lowest_loss", "late", "at_end", "too_late", "nowhere", "entropy")
        assert source.table.select(names).row(0) == (40.0, 40.0, 2.0, 35.0, -40.0, None, None, -40.0)
        assert source.warnings == (
            "The quantity too_late is null everywhere: no run has a finite value of entropy at the steps that it asks "
            "for.",
            "No run has the metric entrpy of the quantity nowhere, which is null everywhere; did you mean entropy?",
        )

    def test_quantities_of_a_table_with_one_row_a_run(self, csv: Path) -> None:
        write(csv, f"{SHORT},entropy,early", "10,0.1,2,-3,5")
        source = read(
            csv,
            quantities={
                "size_of_it": {"metric": "entropy", "absolute": True},
                "early": {"metric": "attention_logit/max", "at_step": 100},
                "later": Quantity("entropy", at_step=7),
            },
        )
        assert source.table.select("size_of_it", "early", "later", "entropy").row(0) == (3.0, 5.0, None, -3.0)
        assert source.warnings == ("t.csv has no column `step` to read the quantity later by; it is null there.",)


@given(
    runs=st.lists(st.lists(st.floats(0, 10) | st.just(math.nan), min_size=1, max_size=8), min_size=1, max_size=6),
    shuffle=st.integers(0, 10),
)
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_is_of_no_account(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[float]], shuffle: int
) -> None:
    folder = tmp_path_factory.mktemp("t")
    rows = [
        {"n_params": 10, "learning_rate": 0.1, "seed": seed, "step": step, "loss": loss, "x": step + loss}
        for seed, losses in enumerate(runs)
        for step, loss in enumerate(losses)
    ]
    tables = []
    for name, order in (("a.csv", rows), ("b.csv", random.Random(shuffle).sample(rows, len(rows)))):
        pl.DataFrame(order).write_csv(folder / name)
        tables.append(load(folder / name))
    assert tables[0].equals(tables[1])
    for seed, losses in enumerate(runs):
        row = tables[0].filter(seed=seed).row(0, named=True)
        broken = any(not math.isfinite(loss) for loss in losses) or losses[-1] > losses[0]
        assert row["status"] == ("diverged" if broken else "finished")
        assert row["steps"] == len(losses) - 1
