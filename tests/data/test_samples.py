"""The value that holds token windows, and what two of them share."""

import pytest
import torch

from pruneengine.data.samples import Samples, as_samples, check_overlap


def test_samples_hash_follows_content_and_shape():
    tokens = torch.arange(12).view(3, 4)
    same = Samples(tokens.clone(), ("b",) * 3)
    assert Samples(tokens, ("a",) * 3).hash == same.hash
    assert Samples(tokens.view(4, 3), ("a",) * 4).hash != same.hash
    assert Samples(tokens.flip(0), ("a",) * 3).hash != same.hash


def test_samples_batches():
    samples = as_samples(torch.arange(20).view(5, 4))
    batches = list(samples.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), samples.tokens)
    with pytest.raises(ValueError, match="batch size 0"):
        samples.batches(0)


def test_as_samples_takes_tensors_of_one_length():
    tokens = torch.arange(20).view(5, 4)
    assert torch.equal(as_samples([tokens[:2], tokens[2:]]).tokens, tokens)
    samples = as_samples(tokens)
    assert as_samples(samples) is samples
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        as_samples([tokens, tokens[:, :3]])
    with pytest.raises(ValueError, match=r"torch\.float32 \(5, 4\)"):
        as_samples(tokens.float())
    with pytest.raises(ValueError, match="0 tensors"):
        as_samples([])
    with pytest.raises(TypeError, match="str"):
        as_samples(["text"])


def test_samples_check_their_shape():
    with pytest.raises(ValueError, match="expected int64"):
        Samples(torch.zeros(2, 3), ("a", "a"))
    with pytest.raises(ValueError, match="1 names for 2 windows"):
        Samples(torch.zeros(2, 3, dtype=torch.int64), ("a",))


def test_overlap_finds_a_shared_run_at_any_offset():
    calibration = torch.randint(1000, (6, 64), generator=torch.Generator().manual_seed(0))
    calibration[5] = calibration[1]
    evaluation = torch.arange(2000, 2200).view(4, 50)
    evaluation[2, 11:43] = calibration[3, 20:52]
    evaluation[0, :31] = calibration[2, :31]
    found = check_overlap(as_samples(calibration), as_samples(evaluation))
    assert found == {
        "ngram": 32,
        "duplicate_windows": 1,
        "overlapping_windows": 1,
        "evaluation_windows": 4,
        "overlap": 0.25,
    }
    assert check_overlap(as_samples(calibration), as_samples(evaluation), ngram=31)["overlapping_windows"] == 2
    assert check_overlap(as_samples(calibration), as_samples(evaluation), ngram=99)["ngram"] == 50
    with pytest.raises(ValueError, match="ngram=0"):
        check_overlap(as_samples(calibration), as_samples(evaluation), ngram=0)
