"""draftloop: collect -> replay -> train -> candidate -> champion -> collect: a draft that learns from rejections."""

from . import blas

blas.preload()  # here, because it must come before the first import of mlx by any module, in whatever order

__version__ = "0.1.0"
