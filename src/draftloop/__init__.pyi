from .collection.collect import CollectSettings as CollectSettings
from .collection.collect import collect_data as collect_data
from .config import Config as Config
from .data_directory import DataDirectory as DataDirectory
from .decoding.generate import decoding_settings as decoding_settings
from .decoding.generate import generate as generate
from .evaluation.benchmark import compare as compare
from .evaluation.benchmark import logged_samples as logged_samples
from .models.pair import load_pair as load_pair
from .runtime.process import prepare_process as prepare_process
from .training.train import resume as resume
from .training.train import train as train

__version__: str
