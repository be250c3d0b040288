"""Where compiled programs are kept: apart by processor, and never where the user chose otherwise."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from stability.launching import compilation_cache
from stability.launching.compilation_cache import keep_compiled_programs, processor

CPUINFO = (
    "processor\t: 0\nmodel name\t: X\nflags\t\t: sse avx2{}\ncpu MHz\t\t: {}\n\nprocessor\t: 1\nflags\t\t: other\n"
)


@pytest.fixture
def jax_settings() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
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
