"""From records of bytes to batches on the device, each batch a pure function of (recipe, step).

sources    opens what the recipe names: records (what a source is), folder, tables, fashion
label_sets ImageNet's class lists by name, compared as lists
labels     class names, label checks, stratified subsets
order      who comes when
decode     bytes -> RGB, or UnreadableImageError; depth: of more than 8 bits a channel
augment    one view of one image, uint8
mixing     mixup and cutmix on the device
shard      a process's micro-batches, built in the workers
prefetch   workers -> pinned memory -> device
loader     TrainLoader and EvalLoader
"""
