"""`distill similarity`: how similar two models represent the same images, layer by layer.

command    the command line
interface  `distill.similarity`, for Python
compare    loads the models, opens the images, measures, prints
measure    one pass of all models over the images
result     the values: JSON, CSV, a table
picture    the values as a heat map
"""
