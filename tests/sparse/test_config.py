"""What a sparse config makes of its options: names in one text, SparseGPT's blocks, and what it is a fraction of."""

from datetime import date

import pytest

from pruneengine import SparseConfig, sparsify
from pruneengine.common.recipes import read_yaml, write_yaml
from pruneengine.model import find_groups
from pruneengine.sparse.matrices import find_matrices
from tests.helpers.tiny import tiny_model, tiny_tokens


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


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ([0.5, 0.7], [0.5, 0.7]),
        ((0.5, 1 / 3), [0.5, 1 / 3]),
        ("[0.5,0.7]", [0.5, 0.7]),
        ({0: 0.5, "1": 0.7}, {"0": 0.5, "1": 0.7}),
        ('{"0":0.5,  "q": 0}', {"0": 0.5, "q": 0}),
    ],
)
def test_sparsities_that_are_written_out_survive_a_recipe(written, kept):
    config = SparseConfig(sparsity=0.6, allocation=written)
    assert isinstance(config.allocation, str)
    assert config.to_dict()["allocation"] == kept
    assert SparseConfig.from_dict(read_yaml(write_yaml(config.to_dict()))) == config


def test_what_no_recipe_holds_is_no_allocation():
    with pytest.raises(TypeError, match="allocation must hold numbers by name or in a list"):
        SparseConfig(sparsity=0.6, allocation=[date(2024, 1, 1)])
    with pytest.raises(TypeError, match=r"allocation must be str, got 0\.5"):
        SparseConfig(sparsity=0.6, allocation=0.5)
    with pytest.raises(ValueError, match="sparsity must lie in") as error:
        SparseConfig(sparsity=0.995, allocation=[0.995] * 1000)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(("pattern", "block"), [("3:6", 126), ("2:4", 128), ("5:31", 124), ("1:3", 129)])
def test_blocks_are_whole_groups_where_none_were_asked_for(pattern, block):
    assert SparseConfig("sparsegpt", pattern=pattern).block == block
    assert SparseConfig("sparsegpt", 0.5).block == SparseConfig("wanda", pattern=pattern).block == 128


def test_a_block_that_is_not_whole_groups_is_refused():
    with pytest.raises(ValueError, match="block must be a multiple of the pattern's 6, got 128"):
        SparseConfig("sparsegpt", pattern="3:6", block=128)


def test_another_block_than_the_published_is_in_the_report():
    report = sparsify(tiny_model(), tiny_tokens(4), SparseConfig("sparsegpt", pattern="3:6"))
    assert report.warnings[0] == (
        "SparseGPT works in blocks of 126 columns, the multiple of 6 nearest to the published 128"
    )
    assert report.plan.reached == 0.5
    assert SparseConfig("sparsegpt", pattern="2:4").notes == SparseConfig("wanda", pattern="3:6").notes == ()
    assert SparseConfig("sparsegpt", pattern="3:6", block=12).notes == ()


def test_recipes_end_with_the_calibration_text():
    names = list(SparseConfig(sparsity=0.5).to_dict())
    assert names[:2] == ["method", "sparsity"]
    assert names[-6:] == ["calibration", "nsamples", "seqlen", "pack", "batch_size", "seed"]
