"""What a sparse checkpoint is to the programs that run it: in plain words, for its card and its report."""

from __future__ import annotations

from pruneengine.sparse.plan import SparsePlan


def speed_notes(plan: SparsePlan) -> tuple[str, ...]:
    """What gets faster and what does not, a paragraph each."""
    dense = (
        "The zeros are stored as numbers in dense matrices. The files are as large as the unpruned model's, and "
        "ordinary runtimes (transformers, vLLM, llama.cpp) load them as they load any model, take as much memory, and "
        "run at the same speed. Only a compressed copy of the files gets smaller."
    )
    return dense, _hardware(plan)


def _hardware(plan: SparsePlan) -> str:
    halves = [name for name in plan.removed if plan.pattern == "2:4" and plan.kept_of_group(name) == 2]
    if not halves:
        return (
            f"We know of no maintained runtime of language models that multiplies {plan.pattern} matrices faster than "
            "dense ones; only 2:4 has hardware behind it."
        )
    some = "All" if len(halves) == len(plan.removed) else f"{len(halves)} of the {len(plan.removed)}"
    return (
        f"{some} matrices are 2:4, which the sparse tensor cores of NVIDIA GPUs (from Ampere on) multiply up to twice"
        " as fast in half precision, for example through torch.sparse.to_sparse_semi_structured (cuSPARSELt). That"
        " takes a program that asks for it: vLLM has removed its 2:4 kernels, compressed-tensors its sparse formats."
    )
