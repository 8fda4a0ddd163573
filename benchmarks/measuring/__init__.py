"""What ``benchmarks/speed.py`` measures with, one noun a module.

machine    what it runs on, and the matrix-product rate of the moment
flops      the arithmetic that an algorithm needs, from the operations that were run
subjects   meta-models and tasks to measure with
adaptation        one Adapt in a process of its own; ``adaptation_process`` is that process
server            a real server process
callers           many concurrent callers; ``callers_process`` is some of them
adapt_rows, classify_rows, training_rows, server_rows   the rows of the table
table      rows as JSON values and as Markdown

Nothing here changes what is measured: adaptation runs through ``metanas.learner.adapt``, answers
through the client, meta-training through its command line.
"""
