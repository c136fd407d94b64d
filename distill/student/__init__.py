"""How one student's weights, gradients, optimizer state and averages lie over the processes: whole
on each, or in shards.

A student calls its placement and does not know which it has. What a placement saves is the same in
both, whole tensors by parameter name, so a run goes on under another placement and on another
number of processes.
"""

from distill.student.placement import Averages, BuildOptimizer, Judged, Placement, Tensors
from distill.student.replicated import Replicated
from distill.student.sharded import Sharded

__all__ = ["Averages", "BuildOptimizer", "Judged", "Placement", "Replicated", "Sharded", "Tensors"]
