"""See that whatever comes into use is looked at from then on, whoever put it there. Loads no model."""

from __future__ import annotations

from ..config import Config
from ..data.log_position import is_gone
from ..data_directory import DataDirectory
from ..models.hub import local_fingerprints
from ..registry.registry import Pointer
from ..status import read_overview
from .plan import Facts, History


def watch_from_now(data: DataDirectory, config: Config, pointer: Pointer) -> None:
    """What is logged from now on is new to the champion. Raises StoreError: the disk refused."""
    target = local_fingerprints(config.models.target)
    stream = read_overview(data, None if target is None else data.names.of(target)).stream
    data.promotion_watch.begin(pointer, stream, config.gate)


def watch_champion(data: DataDirectory, config: Config, facts: Facts) -> bool:
    """Watch a champion that nobody watches yet (an older version promoted it, or a crash came in between), and say so.

    New to it is what came after the last verdict or rollback, if that left it in use; else what comes from now on, as
    where the log was deleted since.
    """
    watching = data.promotion_watch.of(facts.pointer)
    if watching is not None and is_gone(watching.mark, facts.overview.ids):
        data.promotion_watch.begin_anew(watching, facts.overview.stream)
        return True
    if facts.pointer.champion is None or watching is not None:
        return False
    before = History(data.audit.entries(), facts.target).before(facts.pointer.champion, facts.overview.stream)
    data.promotion_watch.begin(facts.pointer, before, config.gate)
    return True
