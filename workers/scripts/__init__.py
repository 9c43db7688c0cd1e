"""Training scripts of the user's own, each in a process of its own; no database, no config format.

leash     watches over that process: what the worker leaves behind ends with it
process   the process as the worker sees it: lines of JSON, a bounded log, two files
course    a job in training: what its reports come to, its checkpoint
script    what a study says of its script, and what a job is told
floor     what its metric comes to without training
stage     a device's jobs in turn, with the callbacks of workers.training.loop
contract  what a study expects of a script, tried before there is one
"""
