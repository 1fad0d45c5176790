"""Weights on disk: safetensors with what is known about them and a checksum; no code in a file is ever run."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from runtime.files import write_atomically
from runtime.messages import InputError

# What checksums are called in the header of a file.
OF_WEIGHTS = "sha256"
OF_DETAILS = "sha256_of_details"


def save_checkpoint(path: Path, weights: dict[str, torch.Tensor], details: dict) -> None:
    """Write a state dict as safetensors, with `details` (JSON-serialisable) and checksums in the header, atomically.

    The same content gives the same bytes; two entries in the header would be in any order.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    checksums = {OF_WEIGHTS: checksum(tensors), OF_DETAILS: checksum_of_details(details)}
    header = json.dumps({**details, **checksums})
    write_atomically(path, lambda p: p.write_bytes(save(tensors, metadata={"about": header})))


def checksum(weights: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values of tensors in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def checksum_of_details(details: dict) -> str:
    """Return the SHA-256 of settings and whatever else is known about weights, as JSON."""
    return hashlib.sha256(json.dumps(details).encode()).hexdigest()


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return weights and `details` of a file that `save_checkpoint` wrote; no code in it is ever run.

    Raises
    ------
    InputError
        When the file is missing, not of `save_checkpoint`, changed since, or its weights are not
        numbers.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such checkpoint; train first, or give the path of a .safetensors file"
        )

    try:
        with safe_open(path, framework="pt") as file:
            details = json.loads((file.metadata() or {})["about"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
    except (SafetensorError, KeyError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a checkpoint of this project ({error}); give a .safetensors file "
            "from checkpoints/"
        ) from None

    if not isinstance(details, dict):
        raise InputError(
            f"{path}: not a checkpoint of this project (its settings are no object); give a .safetensors "
            "file from checkpoints/"
        )

    # Files of earlier versions have no checksums, or one of the weights alone.
    of_weights = details.pop(OF_WEIGHTS, None)
    of_details = details.pop(OF_DETAILS, None)
    if of_weights and of_weights != checksum(weights):
        raise InputError(
            f"{path}: was damaged since it was written (wrong checksum); copy it again, or train again"
        )
    if of_details and of_details != checksum_of_details(details):
        raise InputError(
            f"{path}: its settings were changed since it was written (wrong checksum); copy it again, "
            "or train again"
        )

    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise InputError(f"{path}: its weights are not numbers; train again with a lower --lr")
    return weights, details
