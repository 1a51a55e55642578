"""User code that stops its process, as one that hangs in a system call; only in an actor, and only once."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
from own import Failing
from torch import nn

from sim.training.local import test as of_sim


def _stop_once(place):
    marker = Path(os.environ["STUCK"]) / place
    if Path("/proc/self/cmdline").read_text().startswith("ray::") and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGSTOP)


def model(image_shape, num_classes):
    _stop_once("model")
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(image_shape)), num_classes))


def test(net, loader, device):
    _stop_once("test")
    return of_sim(net, loader, device)


class Hungry(Failing):
    """Client 1 takes memory until its process is ended, at most 8 GiB."""

    def fit(self, parameters, config):
        held = []
        while self.client_id == 1 and len(held) < 32:
            held.append(np.ones(2**25))
            time.sleep(0.3)
        return super().fit(parameters, config)


class Untidy(Failing):
    """Leaves a thread, a program and a fork, and forks once more so that both processes return."""

    def fit(self, parameters, config):
        threading.Thread(target=time.sleep, args=(600,), name=f"of client {self.client_id}").start()
        helpers = [subprocess.Popen(["sleep", "600"], start_new_session=True).pid, os.fork()]
        if helpers[1] == 0:
            time.sleep(600)
        with (Path(os.environ["STUCK"]) / "helpers").open("a") as file:
            file.writelines(f"{pid}\n" for pid in helpers)
        os.fork()
        return super(Failing, self).fit(parameters, config)
