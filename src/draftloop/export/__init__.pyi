from .export import Exported as Exported
from .export import export_version as export_version
from .export import plan_export as plan_export
from .fuse import Quantization as Quantization
