"""Where compiled programs are kept: apart by processor, and never where the user chose otherwise."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from stability.config import RunConfig
from stability.launching import compilation_cache
from stability.launching.compilation_cache import KeptPrograms, keep_compiled_programs, processor
from stability.training import lanes

CPUINFO = (
    "processor\t: 0\nmodel name\t: X\nflags\t\t: sse avx2{}\ncpu MHz\t\t: {}\n\nprocessor\t: 1\nflags\t\t: other\n"
)


@pytest.fixture
def jax_settings() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    reset_cache()  # JAX keeps the folder that it has opened
    yield
    reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("jax_settings")
def test_the_users_choice_is_kept() -> None:
    jax.config.update("jax_compilation_cache_dir", "mine")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "mine"


@pytest.mark.usefixtures("jax_settings")
def test_it_lies_in_the_users_cache_apart_by_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "stability" / "compiled" / processor())


def test_another_processor_has_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(compilation_cache, "CPUINFO", file)
    names = []
    for features, speed in (("", 1000), ("", 2200), (" avx512f", 1000)):
        file.write_text(CPUINFO.format(features, speed))
        names.append(processor())
    assert names[0] == names[1], "its clock is of no account"
    assert names[2] != names[0]
    file.unlink()
    assert processor(), "where the system tells nothing more"


@pytest.mark.usefixtures("jax_settings")
def test_a_damaged_entry_is_removed_and_other_warnings_come_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a program of one multiplication in place of ours, by way of JAX's own cache."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def compile_it(*_: object) -> float:
        def twice_the_number(x: float) -> float:  # another each time, which JAX has not compiled yet
            return 2 * x

        warnings.warn("something else", UserWarning, stacklevel=1)
        return float(jax.jit(twice_the_number)(2.0))

    monkeypatch.setattr(lanes, "compile_program", compile_it)

    def entries() -> list[Path]:
        with pytest.warns(UserWarning, match="something else") as caught:
            assert KeptPrograms().get(RunConfig(), None, ()) == 4.0
        assert len(caught) == 1, "that an entry is damaged is nobody's concern"
        return list(tmp_path.glob("jit_twice_the_number-*"))

    (entry,) = entries()
    entry.write_bytes(entry.read_bytes()[:1000])
    assert entries() == []
    assert entries() == [entry]
