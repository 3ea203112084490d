"""draftloop: collect -> replay -> train -> candidate -> champion -> collect: a draft that learns from rejections."""

__version__ = "0.1.0"
