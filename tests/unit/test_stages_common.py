"""What every stage does alike."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgeft import stages


def test_a_network_that_shares_a_weight_goes_into_a_file_and_back(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    save_file(stages.own_tensors(network), tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = network(torch.eye(4))
        network[0].weight.zero_()
        network.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert network[0].weight is network[1].weight and torch.equal(network(torch.eye(4)), expected)
