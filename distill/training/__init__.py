"""A run: planned, built, stepped, saved and reported.

loop           train(): one stage after the other, one step after the other
plan           a recipe on given data, in steps
opened         the sources of a run
share          the micro-batches of a process
inputs         what the data are: a run resumes only with the same
build          plan -> engine, teacher, students, loaders
streams        whether the cache holds what a machine reads, and which shards are fetched next
evaluations    when an evaluation is due, and the best weights
run_state      save and restore
rundir         how a run begins or resumes in its folder
output_folder  whether a run may write in a folder
logging        metrics.jsonl, trackers and the screen
metrics        metrics.jsonl
screen         progress for people
header         the lines before the progress
live_losses    losses without a wait for the device
clock          time of a run
energy         energy of a run's GPUs
summary        report.json and the last table
check          `distill recipe check`: what is known before a run
known_data     what it knows of the data
unplaced       a hint outside of a run, to be counted
units          durations in another unit than the budget
"""
