"""A client function whose module reads the words of the command line when it is imported, and when it is called."""

import argparse

import numpy as np
from flwr.client import NumPyClient


def _lr():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.25)
    return parser.parse_args().lr


AT_THE_TOP = _lr()


class _Adds(NumPyClient):
    def get_parameters(self, config):
        return [np.zeros(1)]

    def fit(self, parameters, config):
        return [parameters[0] + AT_THE_TOP + _lr()], 1, {}

    def evaluate(self, parameters, config):
        return float(parameters[0][0]), 1, {}


def client_fn(context):
    return _Adds().to_client()
