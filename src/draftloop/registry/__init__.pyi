from .registry import Pointer as Pointer
from .registry import Registry as Registry
from .registry import Version as Version
from .verdicts import Verdict as Verdict
from .verdicts import Verdicts as Verdicts
