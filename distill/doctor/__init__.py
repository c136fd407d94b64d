"""distill doctor: what a machine is, whether a recipe fits it, and what will bound it.

`model`, `memory`, `profiles` and `hardware` are plain arithmetic and tables, without torch; `meter`
and `measure` count models on tensors without memory; `machine`, `interconnect` and `reach` look at
what is here; `forecast` puts them together.
"""
