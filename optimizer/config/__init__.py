"""A study's configuration.

study_file   a study's YAML file, validated
sections     its sections, one model each
choices      what some of their keys may say
changes      what differs between two configurations
problems     what is wrong with a file, in one line
strict_yaml  YAML in which no key is given twice
"""
