"""Openings of docstrings: modules and classes name a thing, functions begin with a verb in the imperative.

Ruff's D401 knows common verbs in other moods; the rest is told from a verb by its ending or by the lists below.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pruneengine"
# In a checkout the kernels may be linked into the package, and are the same files.
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "kernels" not in file.parents]
FILES += sorted((ROOT / "kernels" / "triton").glob("*.py"))
# These travel inside checkpoints, byte for byte.
FROZEN = {"modeling_pruned.py", "configuration_decilm.py"}

QUESTIONS = {"what", "where", "whether", "which", "who", "whose", "how", "when", "why"}
ARTICLES = {"the", "a", "an"}
PRONOUNS = {
    "all", "another", "any", "anything", "both", "each", "either", "every", "everything", "he", "its", "it",
    "neither", "no", "nobody", "none", "not", "nothing", "one", "other", "ours", "same", "several", "she", "so",
    "some", "something", "such", "that", "their", "theirs", "them", "these", "they", "this", "those", "whatever",
    "whoever",
}  # fmt: skip
PREPOSITIONS = {
    "above", "after", "as", "at", "before", "behind", "below", "beside", "between", "but", "by", "for", "from",
    "if", "in", "into", "of", "on", "only", "or", "out", "over", "per", "than", "then", "through", "to", "under",
    "until", "while", "with", "within", "without",
}  # fmt: skip
# Without those that are verbs, too.
NOUNS = {
    "ascending", "body", "calibration", "dense", "directory", "distance", "error", "evaluation", "exp", "false",
    "folder", "gradient", "head", "integer", "layer", "least", "length", "loss", "magnitude", "markdown", "markup",
    "mean", "negative", "number", "optimizer", "parameter", "perplexity", "plain", "position", "prefill", "ratio",
    "row", "size", "sparsity", "statistic", "tensor", "text", "topk", "true", "tuple", "value", "variant", "vector",
    "weight", "whole", "width",
}  # fmt: skip
OPENERS = QUESTIONS | ARTICLES | PRONOUNS | PREPOSITIONS | NOUNS
# Verbs that end as plurals and participles do.
VERBS = {"bring", "embed", "exceed", "feed", "focus", "need", "proceed", "seed", "shed", "speed"}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def violations(source: str) -> list[str]:
    """Return one line for each docstring with a wrong opening: its place, its name and the opening."""
    return list(_violations(ast.parse(source)))


def _violations(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, Documented) or not (text := ast.get_docstring(node)):
            continue
        wrong = is_question if is_thing(node) else is_no_imperative
        if wrong(text):
            line = getattr(node, "lineno", 1)
            yield f"{line}: {getattr(node, 'name', 'module')}: {text.splitlines()[0][:60]!r}"


def is_thing(node: Documented) -> bool:
    if isinstance(node, ast.Module | ast.ClassDef):
        return True
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_question(text: str) -> bool:
    return first_word(text).lower() in QUESTIONS


def is_no_imperative(text: str) -> bool:
    word = first_word(text)
    if not re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)?", word):
        # Formulas, names of code, numbers, names of products.
        return True
    word = word.lower()
    if word in VERBS:
        return False
    return word in OPENERS or bool(re.search(r"([^s]s|ed|ing)$", word))


def first_word(text: str) -> str:
    return text.split()[0].rstrip(",.:;") if text.split() else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_as_they_should(path):
    if path.name in FROZEN:
        pytest.skip("its text is part of the format of checkpoints")
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("text", ["What a layer is.", "Where hooks write.", "Whether it fits.", "How to prune."])
def test_a_question_is_found_everywhere(text):
    assert len(violations(f'"""{text}"""')) == 1
    assert len(violations(f'class A:\n    """{text}"""')) == 1
    assert len(violations(f'def f():\n    """{text}"""')) == 1
    assert len(violations(f'class A:\n    @property\n    def f(self):\n        """{text}"""')) == 1


@pytest.mark.parametrize(
    "text",
    [
        "The loss.", "A plan.", "An index.", "All rows.", "Every op.", "Each tensor.", "As written.", "Of a layer.",
        "From a file.", "In order.", "It is kept.", "Their bytes.", "Those of a model.", "So many.", "One tensor.",
        "Same as above.", "Nothing.", "Any of them.", "No layer.", "None, or the reason.", "Both sides.", "Rows of it.",
        "ValueError for a bad id.", "``[N, C]`` of a batch.", "{name: value}.", "LLM-Pruner's score.", "JSON value.",
        "Dashed lines.", "Ascending heights.", "Mean of it.", "float32 scores.", "Returns the mean.",
        "Within it, no op.",
    ],
)  # fmt: skip
def test_a_noun_for_a_function_is_found(text):
    assert len(violations(f'def f():\n    """{text}"""')) == 1
    assert len(violations(f'def f():\n    def g():\n        """{text}"""')) == 1
    assert len(violations(f'class A:\n    async def f(self):\n        """{text}"""')) == 1
    assert violations(f'class A:\n    """{text}"""') == []
    assert violations(f'class A:\n    @cached_property\n    def f(self):\n        """{text}"""') == []


@pytest.mark.parametrize(
    "text",
    [
        "Return the loss.", "Raise ValueError if the id is unknown.", "Load, prune and save a model.", "Sum the rows.",
        "Process a batch.", "Pass the text on.", "Bring the model into shape.", "Apply a plan.", "Embed tokens.",
        "Score every unit.", "Re-run a layer.", "Read :meth:`save`'s file.",
    ],
)  # fmt: skip
def test_an_imperative_is_right(text):
    assert violations(f'def f():\n    """{text}"""') == []
