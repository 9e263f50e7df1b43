"""Image sets by name, split for training, calibration and test."""

from certood.data.augment import Augmentation, random_crop, random_flip
from certood.data.auxiliary import AuxiliarySet, joined
from certood.data.catalogue import fetch, load_set, set_names
from certood.data.folder import FolderSet
from certood.data.overlap import require_disjoint, require_named
from certood.data.source import ImageSet, ImageSource, require_same_classes, require_same_shape, to_pixels
from certood.data.splits import IdSplits, Split, load_id, seen_in_training, stratified_split

__all__ = [
    "Augmentation",
    "AuxiliarySet",
    "FolderSet",
    "IdSplits",
    "ImageSet",
    "ImageSource",
    "Split",
    "fetch",
    "joined",
    "load_id",
    "load_set",
    "random_crop",
    "random_flip",
    "require_disjoint",
    "require_named",
    "require_same_classes",
    "require_same_shape",
    "seen_in_training",
    "set_names",
    "stratified_split",
    "to_pixels",
]
