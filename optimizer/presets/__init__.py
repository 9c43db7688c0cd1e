"""The exported JSON file.

document  the file: what is in it, read, written and checked
exports   from a study to its preset
reruns    recorded jobs of a preset, trained again and compared

preset.schema.json is the file's JSON Schema.
"""
