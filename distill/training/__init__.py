"""A run: planned, built, stepped, saved and reported.

loop           train(): one stage after the other, one step after the other
interface      `distill.train`, for Python
plan           a recipe on given data, in steps
settings       what this version or this machine cannot do of a recipe
opened         the sources of a run, opened
sources        the images of a run, and its classes
share          the micro-batches of a process
inputs         what the data are: a run resumes only with the same
build          plan -> engine, teacher, students, loaders
teachers       built and placed; what each student learns from which
hints          the features that a hint compares
stored_targets what the teacher said of a batch, from a store
targets        the store that belongs to a run, and its checks
prepare_targets the folder of a store before rows are written
write_targets  `distill targets`
verify_targets its rows against the live teacher, and the store of a run at its start
masked         which students reconstruct removed patches, and their term
banks          which samples CRD's banks are of, and whether they fit
streams        whether the cache holds what a machine reads, and which shards are fetched next
evaluations    when an evaluation is due, and the best weights
metrics        metrics.jsonl
run_state      save and restore
rundir         how a run begins or resumes in its folder
trunk          the state where the cool-down of the learning rate begins, for longer runs
output_folder  whether a run may write in a folder
logging        metrics.jsonl, trackers and the screen
screen         progress for people
header         the lines before the progress
live_losses    losses without a wait for the device
clock          time of a run
energy         energy of a run's GPUs
summary        report.json and the last table
result_file    report.json as it is read
publishing     pushes of a run to the Hub while it trains
hub_owner      whether a repository of the Hub is that of a run
hub_resume     resuming from a checkpoint on the Hub
check          `distill recipe check`: what is known before a run
known_data     what it knows of the data
unplaced       a hint outside of a run, to be counted
units          durations in another unit than the budget
"""
