"""Matrix products of activations with a float32 result, whose gradients are products in the activations' type too.

JAX's own rule for a bfloat16 product with a float32 result multiplies, going back, float32 cotangents by operands that
it widens to float32: two of three products of a step at the speed of float32, a small part of that of bfloat16.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def float32_product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum(spec, a, b)` as float32, of operands of one type; cotangents are rounded to that type.

    Every index of an operand stands in the other or in the result, as in matrix products, and none twice in one.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _forward(spec: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return float32_product(spec, a, b), (a, b)


def _backward(spec: str, operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    (a, b), (left, out) = operands, spec.split("->")
    of_a, of_b = left.split(",")
    gradient = gradient.astype(a.dtype)
    return jnp.einsum(f"{out},{of_b}->{of_a}", gradient, b), jnp.einsum(f"{out},{of_a}->{of_b}", gradient, a)


float32_product.defvjp(_forward, _backward)


def logits_of(hidden: jax.Array, table_ND: jax.Array) -> jax.Array:
    """Inner products `[..., N]` of hidden states `[..., D]` with a table's rows, float32."""
    lead = "abc"[: hidden.ndim - 1]
    return float32_product(f"{lead}D,ND->{lead}N", hidden, table_ND)
