"""The exported JSON file.

document  the file: what is in it, read, written and checked
exports   from a study to its preset
audit     what a preset says, held against the numbers that it records
reruns    recorded jobs of a preset, trained again and compared

preset.schema.json is the file's JSON Schema.
"""
