from .facts import Facts as Facts
from .facts import read_facts as read_facts
from .plan import NextAction as NextAction
from .plan import next_action as next_action
from .run import retrain as retrain
from .work import RetrainResult as RetrainResult
