"""From records of bytes to batches on the device, each batch a pure function of (recipe, step).

sources    opens what the recipe names: records (what a source is), folder, tables, fashion
label_sets ImageNet's class lists by name, compared as lists
labels     class names, label checks, stratified subsets
order      which sample comes when
decode     bytes -> RGB, or UnreadableImageError; depth: of more than 8 bits a channel
augment    one view of one image, uint8
mixing     mixup and cutmix on the device
loading    a process's micro-batches, built in workers and brought to the device
converted  Parquet as Arrow files that can be mapped; locks: between processes
"""
