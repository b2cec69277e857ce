"""What a sparse config makes of its options: names in one text, SparseGPT's blocks, and what it is a fraction of."""

import pytest

from pruneengine import SparseConfig
from pruneengine.sparse.matrices import find_matrices
from pruneengine.structure import find_groups
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("up_proj, down_proj,", ("up_proj", "down_proj")),
        (r"re:layers\.\d{1,2}\.mlp", (r"re:layers\.\d{1,2}\.mlp",)),
        (
            r"o_proj,re:layers\.[0,2]\.,re:x{2,}y{,3},q_proj",
            ("o_proj", r"re:layers\.[0,2]\.", "re:x{2,}y{,3}", "q_proj"),
        ),
        ("re:up_proj,down_proj", ("re:up_proj", "down_proj")),
        ("", ()),
    ],
)
def test_a_pattern_keeps_its_commas(text, names):
    assert SparseConfig(sparsity=0.5, ignore=text).ignore == names


def test_a_pattern_with_a_comma_matches():
    model = tiny_model()
    found = find_matrices(
        model, find_groups(model), SparseConfig(sparsity=0.5, ignore=r"re:\.\d{1,2}\.mlp,q_proj").ignore
    )
    assert {matrix.name.rsplit(".", 1)[1] for matrix in found} == {"k_proj", "v_proj", "o_proj"}
