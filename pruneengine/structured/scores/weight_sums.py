"""Cache of sums of ``|W|^a * n^b``, so that a search over metrics does not read all weights in every trial."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.structured.scores.metrics import MemberView

MOMENTS = ("second", "variance")

# Exponents of weight and norm, the moment, and the calibration text of the statistics.
Setting: TypeAlias = tuple[int, float, str, str]


class WeightSums:
    """Sums over the rows or columns of one model's linears, whose weights must not change while the cache is in use.

    A norm of the input channels factors out of a column's sum, so columns are read once per exponent of the weight.
    Rows mix the norms of all channels: they are kept for the latest ``recent`` choices of exponents and statistics.
    """

    def __init__(self, model: nn.Module, recent: int = 32) -> None:
        if recent < 1:
            raise InputError(f"recent must be at least 1, got {recent}")
        self.model = model
        self._recent = recent
        self._plain: dict[tuple[str, int], Tensor] = {}
        self._normed: OrderedDict[Setting, dict[str, Tensor]] = OrderedDict()

    def of(self, view: MemberView, power: int, norm_power: float, moment: str) -> Tensor:
        """Return the sum of ``|W|^power * n^norm_power`` over each row or column of a member, float32.

        ``n`` is the root of the mean over samples of the sum over tokens of x^2 ("second") or of the squared distance
        from the channel's mean ("variance"): the tokens' root mean square times the root of their number.
        """
        member = view.member
        if norm_power == 0:
            return self._plain_sums(view, power)
        known = self._under((power, norm_power, moment, view.collected.data))
        if member.name not in known:
            if member.site not in known:
                squares = view.input_squares() if moment == "second" else view.input_fluctuation()
                known[member.site] = squares ** (norm_power / 2)
            norm = known[member.site]
            known[member.name] = (
                self._plain_sums(view, power) * norm if member.axis == 1 else view.weight_sums(power, norm)
            )
        return known[member.name]

    def _plain_sums(self, view: MemberView, power: int) -> Tensor:
        key = (view.member.name, power)
        if key not in self._plain:
            self._plain[key] = view.weight_sums(power)
        return self._plain[key]

    def _under(self, setting: Setting) -> dict[str, Tensor]:
        """Return the values computed under a setting, by the name of a member (sums) or site (norms)."""
        known = self._normed.setdefault(setting, {})
        self._normed.move_to_end(setting)
        while len(self._normed) > self._recent:
            self._normed.popitem(last=False)
        return known
