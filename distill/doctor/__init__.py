"""distill doctor: examines a machine and predicts memory and speed of a recipe.

`model`, `memory`, `profiles` and `hardware` are arithmetic and tables, without torch; `meter` and
`measure` count models on fake tensors without memory; `machine`, `interconnect` and `reach` examine
the machine and the data; `forecast` combines them.
"""
