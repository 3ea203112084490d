from .collect import CollectReport as CollectReport
from .collect import CollectSettings as CollectSettings
from .collect import collect_data as collect_data
from .record import make_record as make_record
