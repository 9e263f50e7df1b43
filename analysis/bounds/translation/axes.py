"""Functions of vectors along axes of a sample: sums, means, maxima, softmax."""

from certood.analysis.bounds.calls import Call
from certood.analysis.bounds.operations import (
    AxisFunction,
    LogSoftmax,
    LogSumExp,
    Maximum,
    Monotone,
    Operation,
    Softmax,
)
from certood.analysis.bounds.operations.sorted_pairs import SortedPairs
from certood.analysis.bounds.translation.table import Translator, translates


@translates("mean")
def mean(call: Call) -> Operation:
    """Along axes of a sample."""
    chosen, keep = [1 + axis for axis in call.axes("dim")], bool(call.argument("keepdim"))
    return Monotone(lambda x: x.mean(chosen, keepdim=keep), 1)


@translates("sum")
def total(call: Call) -> Operation:
    """Along axes of a sample."""
    chosen, keep = [1 + axis for axis in call.axes("dim")], bool(call.argument("keepdim"))
    return Monotone(lambda x: x.sum(chosen, keepdim=keep), 1)


def _along_axes(kind: type[AxisFunction]) -> Translator:
    def translate(call: Call) -> Operation:
        # The shape of the value says whether axes are kept.
        call.ignored("keepdim")
        if call.optional("half_to_float", False):
            raise call.refusal("from half precision")
        return kind(call.axes("dim"), call.shape)

    return translate


translates("amax", "max")(_along_axes(Maximum))
translates("logsumexp")(_along_axes(LogSumExp))
translates("softmax", "_softmax")(_along_axes(Softmax))
translates("log_softmax", "_log_softmax")(_along_axes(LogSoftmax))


@translates("sort")
def sort(call: Call) -> Operation:
    """Translate sorting along an axis of size 2; longer ones have no bounds here."""
    call.ignored("stable")
    (axis,) = call.axes("dim")
    size = call.source.layout.sample[axis]
    if size != 2:
        raise call.refusal(f"of {size} values (pairs only)")
    return SortedPairs(axis, descending=bool(call.argument("descending")))
