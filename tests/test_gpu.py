"""The whole path on a GPU gives what it gives on the CPU."""

import pytest
import torch

from pruneengine import PruneConfig, calibrate, mask, prune
from pruneengine.engine import decide
from pruneengine.statistics import QUANTITIES
from pruneengine.structure import find_groups
from tests.tiny import VARIANTS, logits, tiny_model, tiny_tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_equal_those_of_the_cpu(variant):
    tokens = tiny_tokens(5)
    expected = calibrate(tiny_model(variant), tokens, QUANTITIES, batch_size=2)
    found = calibrate(tiny_model(variant).cuda(), tokens, QUANTITIES, batch_size=2)
    for quantity, named in expected.tensors.items():
        for name, tensor in named.items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(found.tensors[quantity][name], tensor, rtol=5e-3, atol=2e-4 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_and_compacted_logits_agree(variant, dtype):
    model, tokens = tiny_model(variant, dtype=dtype).cuda(), tiny_tokens(3).cuda()
    config = PruneConfig(method="magnitude_l1", ratio=0.4, shape="per-layer", allocation="global")
    with mask(model, decide(model, find_groups(model), None, config).plan):
        masked = logits(model, tokens).float()
    prune(model, None, config)
    tolerance = 1e-3 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(logits(model, tokens).float(), masked, rtol=tolerance, atol=tolerance)
