"""Vocabulary of allocation functions: the operations of each stage, and their other names.

The tables are those of DSA (Li, Dong et al., NeurIPS 2024): the poster's OP00 to OP17 and those of the authors' code.
"""

from __future__ import annotations

import difflib

from pruneengine.common.errors import InputError, InputTypeError

PRE = (
    "no", "abs", "log", "abslog", "square", "exp", "normalize", "sigmoid", "tanh", "minmax", "sqrt", "softmax",
)  # fmt: skip
REDUCE = ("mean", "var", "std", "l1", "frobenius", "geometric", "entropy", "no")
POST = (
    "no", "sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "abs", "sigmoid", "tanh", "softplus", "sqrt",
    "square",
)  # fmt: skip
STAGES = {"pre": PRE, "reduce": REDUCE, "transform": POST, "post": POST}

# The poster lists sqrt and softmax; the authors' code has neither, nor a square after the reduction.
NOT_IN_CODE = {"pre": ("sqrt", "softmax"), "reduce": (), "transform": ("sqrt", "square"), "post": ("sqrt", "square")}

# The authors' code knows these, and its random search draws them, but each raises on a block's one vector of scores.
MATRIX_ONLY = ("gram", "corref", "diagonal", "determinant", "rank", "slogdet")

# Two operations under one name.
COMPOUNDS = {"absminmax": ("abs", "minmax"), "absnorm": ("abs", "normalize"), "absexp": ("abs", "exp")}

# Other names, the authors' own among them.
ALIASES = {
    "no_op": "no", "pow": "square", "mms": "minmax", "norm": "normalize", "zscore": "normalize", "l1_norm": "l1",
    "frobenius_norm": "frobenius", "l2": "frobenius", "geometric_mean": "geometric", "variance": "var",
    "sine": "sin", "cosine": "cos",
}  # fmt: skip


def known(stage: str, name: str, compat: bool = False) -> str:
    """Return the operation that ``name`` stands for in a stage: "pre", "reduce", "transform" or "post".

    Raises:
        ValueError: the stage has no such operation (the message has near names, or all); it is a reduction of matrices
            (the message has the reason why there is none); or, with ``compat``, the authors' code does not have it.
        TypeError: the name is no text.
    """
    if not isinstance(name, str):
        raise InputTypeError(f"an operation must be a name, got {name!r}")
    lower = name.lower()
    operation = ALIASES.get(lower, lower)
    names = STAGES[stage]
    if compat and operation in NOT_IN_CODE[stage]:
        raise InputError(
            f"operation {name!r} in the stage {stage} is not in the authors' code: there is no compat reading of it"
        )
    if operation in names:
        return operation
    if operation in MATRIX_ONLY:
        where = "" if stage == "reduce" else f" (and not in the stage {stage})"
        raise InputError(
            f"operation {name!r} is defined on matrices only{where}: a block's scores are one vector, "
            "on which the published code raises"
        )
    near = difflib.get_close_matches(lower, [*names, *(COMPOUNDS if stage == "pre" else ())], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}"
    raise InputError(f"unknown operation {name!r} in the stage {stage}; {hint}")
