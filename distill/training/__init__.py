"""A run: planned, built, stepped, saved and reported.

loop           train(): one stage after the other, one step after the other
plan           a recipe on given data and processes
build          plan -> data, teacher and students
share          the micro-batches of a process
inputs         what the data are: a run continues only with the same
streams        which shards a process reads, and how far ahead they are fetched
evaluations    when an evaluation is due, and the best weights
run_state      a run's checkpoint
rundir         the folder of a run, and the lock on it
output_folder  whether a run may write in a folder
logging        metrics.jsonl, trackers and the screen
screen         progress for people; header: the lines before it; live_losses: losses without a wait
clock          time of a run
summary        report.json and the last table
check          `distill recipe check`: what can be said before a run
"""
