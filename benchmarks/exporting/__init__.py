"""What ``benchmarks/export_agreement.py`` compares with, one noun a module.

tasks      task models adapted by the bundled meta-model, kept between runs, and their query images
agreeing   one task in one format and precision  ->  how far it agrees with torch
table      the agreements of all tasks  ->  one Markdown table
"""
