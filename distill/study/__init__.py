"""A study: a grid of settings over one recipe, trained as fleets of students, and one table.

command   the command line
spec      the study file: axes, combinations left out, the table, the paper's numbers
axes      the values of each axis, as changes of keys
cells     each combination as a complete recipe of one student
fleets    cells that agree in data and teacher as the students of one run
stored    the plan in the folder of the study
results   the figures of each cell, from the report.json of its run
paper     the paper's numbers, checked
table     rows, columns, means over seeds, the paper's numbers
layout    which cells are at which place of the table
marks     the best of a group, and differences
render    the table for a terminal, as Markdown, CSV and LaTeX
progress  the table of a planned study, and what its runs will cost
work      runs what is not done, here or as a SLURM array
"""
