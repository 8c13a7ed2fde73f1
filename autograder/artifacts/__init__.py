"""Work that is graded on a file: a trained adapter.

`adapter_files` reads what was handed in, `evaluate` tries it on the embedded model, and
`trained_adapter` makes points of it. Nothing here runs the student's code, repeats his training,
or lets a library read his configuration.
"""
