"""Image sets by name, split for training, calibration and test."""

from certood.data.augment import Augmentation, random_crop, random_flip
from certood.data.catalogue import IdSplits, fetch, load_id, load_set, set_names, stratified_split
from certood.data.files import FolderSet, load_folder, load_npz
from certood.data.source import ImageSet, ImageSource, require_same_shape, to_pixels

__all__ = [
    "Augmentation",
    "FolderSet",
    "IdSplits",
    "ImageSet",
    "ImageSource",
    "fetch",
    "load_folder",
    "load_id",
    "load_npz",
    "load_set",
    "random_crop",
    "random_flip",
    "require_same_shape",
    "set_names",
    "stratified_split",
    "to_pixels",
]
