"""ATen operations as operations that can be bounded: one translator each, in the file of its subject."""

from certood.analysis.bounds.translation import axes, elementwise, identities, maps, moves, pools
from certood.analysis.bounds.translation.table import TRANSLATORS, Translator, translates

__all__ = ["TRANSLATORS", "Translator", "axes", "elementwise", "identities", "maps", "moves", "pools", "translates"]
