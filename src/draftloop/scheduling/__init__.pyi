from .job import Daily as Daily
from .job import Every as Every
from .job import ScheduledJob as ScheduledJob
from .run import run_logged as run_logged
from .schedulers import install_job as install_job
from .schedulers import schedule_state as schedule_state
