"""The exported JSON file.

document       the file: what is in it, read, written and checked
exports        from a study to its preset
notes          what it says about its verdict
recheck        what a preset says, held against the numbers that it records
recheck_rates  the same of its rate check
recheck_audit  the same of its audit
arithmetic     numbers against the seeds that they are made of
reruns         recorded jobs of a preset, trained again and compared

preset.schema.json is the file's JSON Schema.
"""
