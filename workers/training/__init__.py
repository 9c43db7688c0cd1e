"""Jobs in training on one device; knows neither database nor config file.

loop       the one training loop: members side by side
member     one job in training
slots      networks with all that a step touches, used by one job after another
dry_run    whether a network by name can be trained at all
starts     initial weights and orders, kept on the device
recipe     what is trained and how: recipe, job, measurement, schedules
tasks      data + proxy + loss + metric on a device
own        a task of the user's: their items, loss and metric
scores     what a network achieves on images
chance     what a network draws itself, by its job alone
capture    steps of a member on a GPU without the host
equivalence  what a density does to training: another start, other steps
packing    how many members a device trains best
devices    which device, and how it is set up
cores      how many CPU cores may be used
baselines  the best that is linear: what a network has to beat
"""
