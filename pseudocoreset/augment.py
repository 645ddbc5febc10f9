"""The place of augmentations in version 0.1; they are in ``pseudocoreset.data.augmentation``."""

from pseudocoreset.data.augmentation import Augmentation, resolve_augmentation

__all__ = ["Augmentation", "resolve_augmentation"]
