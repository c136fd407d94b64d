"""Students and teachers: timm models, built and loaded so that what goes wrong is said, not
guessed.

Importing the package registers the CIFAR ResNets with timm.
"""

from distill.models import cifar as cifar
