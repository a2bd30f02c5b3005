"""The flags of the gradient cache's chunks: what it means not to give one, and what cannot be meant."""

from typing import Any

from fastdense.errors import UserError

AUTO = "auto"
_KINDS: dict[type, str] = {int: "an integer", float: "a number"}
_ROWS = ("gc_q_chunk_size", "gc_p_chunk_size")
_LIMITS = (("gc_tokens_per_chunk", int, 1), ("gc_keep_graph_gib", float, 0))


class NotGiven(int):
    """A documented default that limits nothing: the same number counts once a user gives it."""


def check_chunks(args: Any) -> None:
    """Raise UserError for a flag of ``--grad_cache`` that cannot be meant, or that is given without it."""
    for name in _ROWS:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    for name, kind, least in _LIMITS:
        value = getattr(args, name)
        if value != AUTO and not _is_number(value, kind, least):
            raise UserError(f"--{name} must be {AUTO} or {_KINDS[kind]} of at least {least}, not {value!r}")
    values = {name: getattr(args, name) for name in (*_ROWS, *(name for name, _, _ in _LIMITS))}
    given = [name for name, value in values.items() if value != AUTO and not isinstance(value, NotGiven)]
    if given and not args.grad_cache:
        raise UserError(f"--{given[0]} is for the chunks of --grad_cache: pass that, too, or leave it out")


def _is_number(value: str, kind: type, least: float) -> bool:
    try:
        return least <= kind(value) < float("inf")
    except ValueError:
        return False
