"""The newest proof of a machine in a run directory, and the speeds that it gives the one model of time.

A proof is the records of the two stages of `invoke prove`, sealed as every record: host, device, driver and lock are in
them. It counts for the machine that it was taken on: for each one with that GPU, or without a GPU for its host. Of
several, one with as many GPUs as a stage takes comes first, then the newest; where the one that counts had another
number of GPUs or other packages than a run would have, its sentence says so.
"""

import functools
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from essence.errors import RecordError
from essence.progress import visible_gpus
from essence.record.facts import query_gpus
from essence.record.manifest import Hardware
from essence.record.proof_records import LinkPoint
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import ProveDecodingManifest, ProveTrainingManifest, read_manifest
from essence.sizes.speeds import ASSUMED, Speeds

TRAINING, DECODING = "prove_training-*/manifest.json", "prove_decoding-*/manifest.json"
TRAINING_INPUT = "training"
LOCK = "lock_sha256"
"""Of the packages of an environment, in its identity."""
PART_OF_GPU = "MIG-"
"""How the names of a GPU's parts begin."""
DATE_CHARACTERS = len("2026-01-01")


@dataclass(frozen=True)
class Proof:
    """What was measured of a machine, and what was wrong with it."""

    training: ProveTrainingManifest
    decoding: ProveDecodingManifest | None
    """None where that stage did not end."""

    @property
    def on_gpus(self) -> bool:
        return self.training.results.devices > 0

    @property
    def date(self) -> str:
        return self.training.identity.finished[:DATE_CHARACTERS]

    @property
    def device(self) -> str:
        """`4 x NVIDIA H100 80GB HBM3, driver 580.65`, or the name of a processor."""
        results, hardware = self.training.results, self.training.hardware
        driver = f", driver {hardware.driver}" if hardware.driver else ""
        return f"{results.devices} x {results.device}{driver}" if results.devices else results.device

    @property
    def failed(self) -> list[str]:
        """Sentences of the checks that failed."""
        decoding = self.decoding.results.checks if self.decoding else []
        return [check.sentence for check in (*self.training.results.checks, *decoding) if not check.passed]

    @property
    def memory_ratio(self) -> float:
        """The most that a GPU held over what the memory rule gives for it; 1 where the rule was never too low."""
        points = [(point.peak_bytes, point.rule_bytes) for point in self.training.results.steps]
        return max((1.0, *(peak / rule for peak, rule in points if peak)))

    @property
    def speeds(self) -> Speeds:
        """Of the machine; what was not measured is as assumed."""
        results = self.training.results
        found = replace(
            ASSUMED,
            flop_s=float(results.coefficients.flop_s),
            layer_s=float(results.coefficients.layer_s),
            parameter_s=float(results.coefficients.parameter_s),
            checkpoint_bytes_per_s=float(results.checkpoint_bytes_per_s or results.disk_write_bytes_per_s),
            save_bytes_per_s=float(results.save_bytes_per_s),
            disk_read_bytes_per_s=float(results.disk_read_bytes_per_s),
        )
        if (validated := results.validation) and validated.fitted_s:
            found = replace(found, validation_factor=float(validated.seconds) / float(validated.fitted_s))
        if results.main_memory_parameter_s:
            found = replace(found, main_memory_parameter_s=float(results.main_memory_parameter_s))
            # Proofs of an earlier version, which have no such update, timed a copy to memory that is not pinned.
            if results.host_bytes_per_s:
                found = replace(found, host_link_bytes_per_s=float(results.host_bytes_per_s))
        if results.link:
            found = replace(found, link_bytes_per_s=_link_bytes_per_s(results.link))
        if self.decoding:
            decoded = self.decoding.results
            found = replace(
                found,
                weight_s=float(decoded.coefficients.weight_s),
                sequence_s=float(decoded.coefficients.sequence_s),
                cache_byte_s=float(decoded.coefficients.cache_byte_s),
                decoder_start_s=float(decoded.warm_start_s or decoded.start_s),
            )
        return found

    def sentence(self, gpus: int = 0, lock_sha256: str | None = None) -> str:
        """For `invoke plan`.

        gpus: that a stage takes; 0 = it is not asked whether the proof had as many.
        lock_sha256: of the packages that a training would run with; None = that is not asked either.
        """
        error = float(self.training.results.coefficients.error)
        errors = [error, float(self.decoding.results.coefficients.error)] if self.decoding else [error]
        told = f"proved on {self.date}, {self.device} (fit error {max(errors):.0%})"
        told += "".join(f"; {one}" for one in self._otherwise(gpus, lock_sha256))
        if self.failed:
            more = f" (and {len(self.failed) - 1} more)" if self.failed[1:] else ""
            return f"{told}, and wrong: {self.failed[0]}{more}"
        return told

    def _otherwise(self, gpus: int, lock_sha256: str | None) -> Iterator[str]:
        """In what a run would differ from what was proved."""
        devices, locked = self.training.results.devices, self.training.software.lock_sha256
        if gpus and devices != gpus:
            yield f"with {devices} GPU{'s' * (devices > 1)}, and a stage takes {gpus}"
        if lock_sha256 and locked and locked != lock_sha256:
            yield "with other packages than a run has now (invoke prove measures it anew)"


PART = " MIG "
HIDDEN_SHARE = 0.01
"""Of what a byte takes between ranks, the least that is taken to show in a step."""


def _link_bytes_per_s(link: LinkPoint) -> float:
    """As steps of several ranks found it, where they were timed: what crosses beside the computation costs less."""
    measured = float(link.all_reduce_bytes_per_s)
    if link.exposed_byte_s is None:
        return measured
    return 1.0 / max(float(link.exposed_byte_s), HIDDEN_SHARE / measured)


NOT_PROVED = "not proved: estimates by formula ({assumptions}); invoke prove measures this machine"
NOT_PROVED_PROCESSOR = "not proved: invoke prove measures this machine and checks that it computes right"


def newest_proof(run_directory: RunDirectory, gpus: int) -> Proof | None:
    """The proof that counts for stages of so many GPUs, of those of this machine where it has any; or, with 0, for
    processors, of this host."""
    here = {gpu.name for gpu in query_gpus()} if gpus else set()
    found = [proof for proof in proofs(run_directory) if _counts(proof, gpus > 0, here)]
    return max(found, key=functools.partial(_rank, gpus=gpus), default=None)


def _rank(proof: Proof, gpus: int) -> tuple[bool, str]:
    """The greatest counts."""
    return proof.training.results.devices == gpus, proof.training.identity.finished


def proof_of(run_directory: RunDirectory, hardware: Hardware) -> Proof | None:
    """The newest proof of the machine that some hardware in a record is of; one of a part of its card, if no other."""
    names = {gpu.name for gpu in hardware.gpus}
    found = [
        proof
        for proof in proofs(run_directory)
        if (_card(proof) in names if proof.on_gpus else not names)
        and (proof.on_gpus or proof.training.hardware.host == hardware.host)
    ]
    whole = [proof for proof in found if PART not in proof.training.results.device]
    return max(whole or found, key=functools.partial(_rank, gpus=len(hardware.gpus)), default=None)


def _counts(proof: Proof, gpus: bool, here: set[str | None]) -> bool:
    if proof.on_gpus != gpus:
        return False
    if not gpus:
        return proof.training.hardware.host == socket.gethostname()
    if not here:
        return True
    on_parts = any(name.startswith(PART_OF_GPU) for name in visible_gpus())
    return _card(proof) in here and (PART in proof.training.results.device) == on_parts


def _card(proof: Proof) -> str:
    """PyTorch names the card and the part of it, the driver the card alone."""
    return proof.training.results.device.partition(PART)[0]


def proofs(run_directory: RunDirectory) -> list[Proof]:
    """All that can be read, in no order; a damaged record is no proof."""
    stages = run_directory.proofs.stages
    decodings = {}
    for file in stages.glob(DECODING):
        if isinstance(manifest := _sealed(file), ProveDecodingManifest):
            decodings[manifest.input_keys.get(TRAINING_INPUT)] = manifest
    found = []
    for file in stages.glob(TRAINING):
        if isinstance(manifest := _sealed(file), ProveTrainingManifest):
            found.append(Proof(manifest, decodings.get(manifest.identity.key)))
    return found


def _sealed(file: Path) -> object:
    """None also of a record that goes while it is looked at: a later proof takes the place of an earlier one."""
    try:
        changed_ns = file.stat().st_mtime_ns
    except OSError:
        return None
    return _read(file, changed_ns)


@functools.lru_cache(maxsize=64)
def _read(file: Path, changed_ns: int) -> object:
    """A plan of many cells asks for the same records again and again."""
    del changed_ns
    try:
        manifest = read_manifest(file)
    except RecordError:
        return None
    return manifest if manifest.is_sealed else None


def memory_ratio(run_directory: RunDirectory, gpus: int) -> float:
    """By how much the memory rule was too low where it was measured on such GPUs; 1 where it was not."""
    proof = newest_proof(run_directory, gpus)
    return proof.memory_ratio if proof else 1.0


def speeds_for(run_directory: RunDirectory, gpus: int) -> Speeds:
    """Measured where there is a proof, else assumed. gpus: that a stage takes."""
    proof = newest_proof(run_directory, gpus)
    return proof.speeds if proof else ASSUMED
