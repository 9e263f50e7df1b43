"""Changes of a trained detector that need no training: ReAct and DICE, as networks that can be certified."""

from certood.modifications.base import Modification
from certood.modifications.registry import MODIFICATIONS, modification_by_name

__all__ = ["MODIFICATIONS", "Modification", "modification_by_name"]
