"""What the benchmarks of the export stand on, one noun a module.

tasks         task models adapted by the bundled meta-models, kept between runs, and their query images
agreeing      one task in one format and precision  ->  how far it agrees with torch
table         the agreements of all tasks  ->  one Markdown table
first_answer  a process from nothing to its first answer
including     tables of ``results`` inside the documents
"""
