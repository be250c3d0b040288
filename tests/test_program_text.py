"""What `benchmarks.program_text` reads from a program of which we know what it does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from benchmarks.program_text import branches_left, collectives, size


def test_collectives_count_as_often_as_loops_go_round_and_branches_apart() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("i",))

    def each(x: Any) -> Any:
        def turn(x: Any, _: None) -> tuple[Any, None]:
            return jnp.sin(jax.lax.psum(x, "i")), None

        x, _ = jax.lax.scan(turn, x, None, length=3)
        summed = jax.lax.cond(x[0, 0] > 0, lambda x: jax.lax.psum(jnp.cos(x), "i"), jnp.tan, x)
        return jax.lax.all_gather(x + summed, "i")

    rows = PartitionSpec("i")
    program = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    text = program.lower(np.ones((4, 50_000), np.float32)).compile().as_text()
    gathered = {"count": 1, "mb": 0.8}
    assert collectives(text) == {"all-gather": gathered, "all-reduce": {"count": 4, "mb": 0.8}}
    assert collectives(text, branches=False) == {"all-gather": gathered, "all-reduce": {"count": 3, "mb": 0.6}}
    assert branches_left(text) == 1


def test_tuples_count_whole() -> None:
    assert size("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0}, /*index=2*/pred[])") == 24 + 8 + 1
