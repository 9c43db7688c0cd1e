"""The channel of a script's process: nobody speaks for a job but the job itself."""

import json
import socket

import pytest

from densitune.child import Channel
from densitune.link import Ended


def test_a_job_that_is_over_is_not_spoken_of_in_the_next() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.detach())
    with ours:
        ours.sendall(b'{"job": 1}\n{"job": 2}\n')
        assert channel.next() == {"job": 1}
        assert channel.serves(1)
        channel.tell(1, epoch=1)
        channel.end(1, memory=0)
        for ended in (lambda: channel.tell(1, epoch=2), lambda: channel.ask(1, report=2)):
            with pytest.raises(Ended):
                ended()
        channel.next()
        with pytest.raises(Ended):
            channel.tell(1, epoch=2)
        assert (channel.serves(1), channel.serves(2)) == (False, True)
        channel.end(2, memory=0)
        told = [json.loads(line) for line in ours.recv(2**16).splitlines()]
        assert told == [{"job": 1, "epoch": 1}, {"job": 1, "memory": 0}, {"job": 2, "memory": 0}]
        channel.close()
