"""A study's configuration.

study_file   a study's YAML file, validated
reference    docs/config.md, made from them
schema       the same as a JSON Schema, for editors
section      what all its sections have in common
sections     its sections, one model each
networks     the section on the network: a family's, or any by its name
tasks        the section on the data: one model for each task
choices      what some of their keys may say
agreement    whether its keys and sections fit
changes      what differs between two configurations
problems     what is wrong with a file, in one line
documents    one reader for documents from anywhere, and its limits
strict_yaml  YAML that is refused where PyYAML would guess
"""
