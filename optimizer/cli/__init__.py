"""The command line: `densitune`, or `python -m optimizer.cli`.

main           which commands there are, and how errors end them
options        what several commands take
train          the commands that train: launch, resume, worker
working        a worker's process on one device
audit          the command that trains a decided study's densities on a larger network
look           the commands that look at studies and presets, stop and delete
session        a study from creation to end, for the process that launches it
display        what is shown of a running study
fleet          local worker processes
networks       a study's networks, its own and its audit's
origin         whether data and code here are those of a study
data           a study's data, with a bar for what is downloaded
interruptions  what signals do to a command
terms          on which terms a worker works
gate           who may see and change what a web page of ours shows
serving        the server that shows it
environment    home folder and storage
doctor         the command that finds what is wrong with a study, and mends it
doctor_checks  what can go wrong with a study
"""
