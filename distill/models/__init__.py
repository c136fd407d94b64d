"""Students and teachers: timm models with their weights, and clear errors where something does not
fit.

Importing the package registers the CIFAR ResNets with timm.
"""

from distill.models import cifar as cifar
