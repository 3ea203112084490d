from .result import TrainResult as TrainResult
from .run import RunDirectory as RunDirectory
from .train import resume as resume
