"""Students: the models that learn from the teacher, each with its optimizer and averages.

- student: one model in training, with its losses and its best weights
- placement: what a student asks of its processes; a student does not know which placement it has
- replicated: the full model on every process, under DDP
- partitioned: the model split over the processes, under DeepSpeed's ZeRO
- optimizer, optimizer_state: timm's optimizers, and their state by parameter name
- schedule: the learning rate of a step
- ema: averages of the weights

Every placement saves the same full tensors by parameter name, so a run resumes under another
placement and on another number of processes.
"""

from distill.student.partitioned import Partitioned
from distill.student.placement import Averages, BuildOptimizer, Placement, Tensors
from distill.student.replicated import Replicated

__all__ = ["Averages", "BuildOptimizer", "Partitioned", "Placement", "Replicated", "Tensors"]
