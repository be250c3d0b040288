"""Early warning from one run's own records: alarms that see no later row than the one at which they fire."""

from stability.analysis.alarms.alarms import ALARMS, LOGIT_THRESHOLD, WATCHED, Alarm
from stability.analysis.alarms.trace import Trace, trace_of
from stability.analysis.alarms.warning import early_warning

__all__ = ["ALARMS", "LOGIT_THRESHOLD", "WATCHED", "Alarm", "Trace", "early_warning", "trace_of"]
