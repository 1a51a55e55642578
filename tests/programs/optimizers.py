"""Steps of several optimizers; prints whether PyTorch's compiler was imported before something was compiled."""

import sys

import torch
from torch import nn

from sim.training import late_compiler

if "late" in sys.argv:
    late_compiler.put_off()
    late_compiler.put_off()  # as a second workbench does

OPTIMIZERS = {
    "SGD": {"momentum": 0.9},
    "Adam": {},
    "AdamW": {"weight_decay": 0.1},
    "RMSprop": {},
    "LBFGS": {},
}


def steps(net: nn.Module) -> None:
    images = torch.arange(12.0).reshape(2, 6) / 12

    def loss() -> torch.Tensor:
        net.zero_grad()
        value = net(images).square().sum()
        value.backward()
        return value

    for name, arguments in OPTIMIZERS.items():
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.1, **arguments)
        optimizer.zero_grad()
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(2):
            assert torch.is_grad_enabled()
            optimizer.step(loss)
            schedule.step()
        optimizer.load_state_dict(optimizer.state_dict())


torch.manual_seed(0)
net = nn.Linear(6, 3)
steps(net)
print("torch._dynamo" in sys.modules)
compiled = torch.compile(lambda x: net(x).sum(), backend="eager")
compiled(torch.ones(1, 6)).backward()
steps(net)
print(torch.cat([parameter.flatten() for parameter in net.parameters()]).tolist())
