"""What tests need besides the packages under test.

checkout          where this checkout lies
databases         databases that live as long as a test
waiting           waiting for other processes and threads
synthetic         snapshots and configurations written by hand
simulated         studies whose workers are a function in the test's process
networks, named   networks as users write them, and as a study names them
shell             the command line as a shell uses it
servers           processes that use an embedded server
loopback          a server and its users on the loopback interface
crew, weather     a study's processes, and the storms they go through
hurried, skewed   the command line with short leases, or with a clock that is wrong
audit             what a study left behind
"""
