"""What `benchmarks.program_text` reads from a program of which we know what it does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from benchmarks.program_text import branches, collectives, size


def test_collectives_count_as_often_as_a_loop_goes_round() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("i",))

    def each(x: Any) -> Any:
        def turn(x: Any, _: None) -> tuple[Any, None]:
            return jnp.sin(jax.lax.psum(x, "i")), None

        x, _ = jax.lax.scan(turn, x, None, length=3)
        return jax.lax.all_gather(x, "i")

    rows = PartitionSpec("i")
    program = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    text = program.lower(np.ones((4, 50_000), np.float32)).compile().as_text()
    assert collectives(text) == {"all-gather": {"count": 1, "mb": 0.8}, "all-reduce": {"count": 3, "mb": 0.6}}
    assert branches(text) == 0


def test_a_branch_is_seen_and_tuples_count_whole() -> None:
    def either(flag: Any, x: Any) -> Any:
        return jax.lax.cond(flag, lambda x: jnp.sum(jnp.linalg.qr(x)[1]), lambda x: 0.0, x)

    text = jax.jit(either).lower(True, np.ones((8, 8), np.float32)).compile().as_text()
    assert branches(text) == 1
    assert size("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0}, /*index=2*/pred[])") == 24 + 8 + 1
