"""How a step is spread over devices: gradients averaged (DDP), transformer blocks sharded as well (FSDP2)."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from jaxtyping import Float
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method, share_comm_ctx
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from diorama.nn.blocks import Block, ModulatedBlock
from diorama.pipelines.compiled import no_compiler
from diorama.training.stage import Run, Stage

BACKEND = "inductor"  # of torch.compile
ELSEWHERE = ("MASTER_ADDR", "SLURM_NTASKS")  # set by what starts processes on several machines, beside torchrun


def processes(run: Run) -> tuple[int, int]:
    """Devices of a machine, and machines: torchrun's where it started this process, else the run's.

    Raises ValueError where the two disagree, for several machines that nothing joins, and for a batch that these do
    not share evenly.
    """
    devices, nodes = run.devices, run.nodes
    if torch.distributed.is_torchelastic_launched():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if (devices, nodes) not in ((1, 1), (local, world // local)):
            found = f"--devices {devices} --nodes {nodes} under torchrun with {local} processes on {world // local}"
            raise ValueError(f"{found}: accepted is to leave both out, or the same")
        devices, nodes = local, world // local
    elif nodes > 1 and not any(name in os.environ for name in ELSEWHERE):
        raise ValueError(f"--nodes {nodes}: nothing joins them; accepted is this command under torchrun on each")
    parts = devices * nodes * run.accumulate
    if run.batch % parts and not getattr(run, "dynamic", False):  # which fills every pass with its own scenes
        passes = f" in {run.accumulate} passes" * (run.accumulate > 1)
        raise ValueError(
            f"a batch of {run.batch} over {devices * nodes} devices{passes}: accepted is a multiple of {parts}"
        )
    return devices, nodes


def open_fabric(run: Run) -> Fabric:
    """Lightning Fabric for the run, not launched yet."""
    devices, nodes = processes(run)
    strategy: Any = "ddp" if devices * nodes > 1 else "auto"
    if run.strategy == "fsdp":
        strategy = ModelParallelStrategy(_shard_blocks, data_parallel_size=devices * nodes, tensor_parallel_size=1)
    return Fabric(
        accelerator=run.device, strategy=strategy, devices=devices, num_nodes=nodes, precision=run.precision  # type: ignore[arg-type]
    )  # fmt: skip


def blocks(modules: Iterable[nn.Module]) -> list[Block | ModulatedBlock | WanTransformerBlock]:
    """The transformer blocks, which hold nine tenths of our models' weights."""
    kinds = (Block, ModulatedBlock, WanTransformerBlock)
    return [part for module in modules for part in module.modules() if isinstance(part, kinds)]


def _shard_blocks(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard every block on its own; what is outside stays whole in each process, as the output projection has to."""
    # Blocks hand views on; nothing writes into them in place, which is what torch warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    parts: list[Any] = blocks([module])
    for part in parts:
        fully_shard(part, mesh=mesh["data_parallel"], reshard_after_forward=True)
        if isinstance(part, Block):
            register_fsdp_forward_method(part, "keys_values")
    # Stages call many methods of a model, so the model is no root that could do this for its blocks.
    share_comm_ctx(parts)
    return module


def check_blocks(stage: Stage, run: Run) -> None:
    """ValueError for what is asked of a stage's transformer blocks and cannot be."""
    sharded = run.strategy == "fsdp"
    if sharded and any(isinstance(one, torch.optim.Muon) for part in stage.optimizers.values() for one in part):
        raise ValueError("--strategy fsdp with Muon, which needs whole matrices: accepted is --muon-rate 0, or ddp")
    wanted = {
        "--strategy fsdp": sharded,
        "--compile": run.compile,
        "--checkpoint-activations": run.checkpoint_activations,
    }
    if any(wanted.values()) and not blocks(stage.modules.values()):
        found = f"{' '.join(flag for flag, given in wanted.items() if given)}: {', '.join(stage.modules)}"
        raise ValueError(f"{found} has no transformer blocks; accepted is to leave it out")


def place(stage: Stage, fabric: Fabric, run: Run) -> None:
    """Move what is in training to the device and, with fsdp, leave each process its part of it."""
    for module in stage.modules.values():
        module.to(fabric.device)
    if run.strategy != "fsdp":
        return
    torch.set_autocast_cache_enabled(False)  # a block's weights in half precision would outlive its turn
    old = [parameter for module in stage.modules.values() for parameter in module.parameters()]
    for module in stage.modules.values():
        fabric.strategy.setup_module(module)
    new = [parameter for module in stage.modules.values() for parameter in module.parameters()]
    renewed = {id(one): other for one, other in zip(old, new, strict=True)}
    for optimizer in (optimizer for part in stage.optimizers.values() for optimizer in part):
        groups = []
        for group in optimizer.param_groups:
            parameters = [renewed[id(parameter)] for parameter in group["params"]]
            for kind in (True, False):  # apart, since torch updates many at once and those of a kind together
                some = [parameter for parameter in parameters if isinstance(parameter, DTensor) == kind]
                groups += [{**group, "params": some}] if some else []
        optimizer.param_groups[:] = groups


def local(parameter: nn.Parameter) -> nn.Parameter:
    """This process's part of a parameter, in the same memory."""
    return nn.Parameter(parameter.detach().to_local()) if isinstance(parameter, DTensor) else parameter  # type: ignore[attr-defined]


def average_gradients(fabric: Fabric, parameters: list[nn.Parameter], loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Every process gets the mean of all, and of the loss, in one message: what is not finite in one is so in all.

    Stages call many methods of a model, which DDP's own hooks do not follow. Sharded gradients are means already.
    """
    if fabric.world_size == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    mean = fabric.all_reduce(nn.utils.parameters_to_vector([*gradients, loss]), reduce_op="mean")
    nn.utils.vector_to_parameters(mean[:-1], gradients)  # type: ignore[arg-type]
    return mean[-1]  # type: ignore[index]


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Float[Tensor, ""]:
    """Shorten all gradients together to a norm of `limit` at most; their norm before, over all processes."""
    sharded = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(parameters, limit)
    whole = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    square = nn.utils.get_total_norm(sharded).square()
    torch.distributed.all_reduce(square)
    norm = (square + nn.utils.get_total_norm(whole).to(square.device).square()).sqrt()
    torch._foreach_mul_([*sharded, *whole], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def prepare_blocks(stage: Stage, fabric: Fabric, run: Run, again: Callable[[], AbstractContextManager]) -> str:
    """Let the blocks compile or compute again while gradients are wanted; why not, if they cannot be compiled.

    `again` is entered around what is computed for the second time.
    """
    if not (run.compile or run.checkpoint_activations):
        return ""
    reason = no_compiler(fabric.device, BACKEND) if run.compile else ""
    for part in blocks(stage.modules.values()):
        plain = train = part.forward
        if run.compile and not reason:
            train = torch.compile(plain, dynamic=False, backend=BACKEND)
        part.forward = _training(plain, train, again if run.checkpoint_activations else None)  # type: ignore[method-assign]
    return reason


def _training(
    plain: Callable, train: Callable, again: Callable[[], AbstractContextManager] | None
) -> Callable[..., Any]:
    """`plain` where no gradients are wanted, as in validation, whose shapes nobody should wait to be compiled."""

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), nullcontext() if again is None else again()

    def forward(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs)
        if again is None:
            return train(*inputs)
        return checkpoint(train, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return forward


@contextmanager
def gathered(stage: Stage, fabric: Fabric) -> Iterator[None]:
    """Modules that say their whole weights under their own names, for the first process to save them."""
    before = []
    for module in stage.modules.values():
        if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            continue
        whole = {}
        for name, value in module.state_dict().items():
            full = value.full_tensor() if isinstance(value, DTensor) else value  # asks all processes
            if fabric.is_global_zero:
                whole[name] = full.cpu()
        before.append(module)
        module.state_dict = lambda *_, whole=whole, **__: whole  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in before:
            del module.state_dict
