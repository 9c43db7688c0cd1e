"""The revisions, oldest first by file name. What a published one does is never changed.

0001_initial   studies, trials, workers, jobs, measurements
0002_bars      jobs may be cut at rungs
0003_phases    studies have phases, and trials and jobs belong to one
0004_failures  failures have kinds, and each is kept
0005_late      measurements that come after their job's end are kept apart
0006_uniform   a finalist has a uniform mask as a control
0007_guards    checks, and rules for what a row may become
0008_check     studies have a phase after the verdict, in which it is looked into
0009_audit     studies have a phase in which a larger network is trained
"""
