"""Why Slurm refuses a job: its own names and sentences as a table, with the key of the site file that each is about.

Sources: the reasons of squeue(1), "JOB REASON CODES", and the sentences of slurm_strerror(3). What is not in the table
is shown in Slurm's own words, without a cure that would only be guessed.
"""

import re

from essence.engines.slurm import queue
from essence.engines.slurm.job_text import Job
from essence.engines.slurm.site import Site
from essence.errors import SchedulerError

USABLE = "set one that you may use (sacctmgr show associations user=$USER)"
TABLE = {
    r"QOSMaxWall|WallDurationPerJobLimit|PartitionTimeLimit|requested time limit is invalid": (
        "limits.{stage}.time = '{limits.time}' in site {name}, of which the job asks for {time}, is longer than "
        "allowed: shorten it"
    ),
    r"Grp\w*Min(ute)?s|GrpWall|RunMin": (
        "the account '{site.account}' has no hours left: set another one (site {name} or --account), or ask for more"
    ),
    r"QOSMin|MinTRES": (
        "{asked} in site {name} is less than the QOS wants: set another qos or partition (sacctmgr show qos)"
    ),
    r"MaxTRES|MaxGRES|MaxCpu|MaxMem|MaxNode|GrpTRES|GrpGRES|GrpCpu|GrpMem|GrpNode": (
        "{asked} in site {name} is more than the QOS or account may have at once: ask for less"
    ),
    r"invalid qos|InvalidQOS|QOSNotAllowed": "qos = '{site.qos}' in site {name}: " + USABLE,
    r"invalid account|account or account/partition|account required|InvalidAccount": (
        "account = '{site.account}', partition = '{site.partition}' in site {name}: "
        + USABLE
        + ", there or with --account and --partition"
    ),
    r"invalid partition|PartitionDown|PartitionInactive|partition name": (
        "partition = '{site.partition}' in site {name}: set one of those here ({partitions}), there or with --partition"
    ),
    r"invalid feature|BadConstraints": (
        "constraint = '{site.constraint}' in site {name}: set features that nodes have (sinfo --format='%N %f')"
    ),
    r"ReservationNotFound|ReservationDeleted|requested reservation|reservation is invalid": (
        "reservation = '{site.reservation}' in site {name}: set one of those here (scontrol show reservation)"
    ),
    r"node configuration|memory specification|CPU count|node count|generic resource|\bgres\b": (
        "{asked} in site {name}: ask for what a node has (sinfo --Node --long)"
    ),
}
"""The first that is found holds. Limits come first: the sentence behind a limit's name speaks of accounts and QOS,
whatever was exceeded."""


def refusal(site: Site, name: str, job: Job, said: SchedulerError) -> SchedulerError:
    """A refusal of Slurm's with the key of the site file that it is about."""
    return type(said)(said.problem, said.cure or cure(site, name, job, said.problem))


def cure(site: Site, name: str, job: Job, words: str) -> str:
    """What to do about Slurm's words; empty where the table does not know them."""
    if queue.takes_no_more(words):
        return "the limit on queued jobs is reached: issue the command again once some have ended"
    known = next((text for reason, text in TABLE.items() if re.search(reason, words, re.IGNORECASE)), "")
    stage, gpus = job.surroundings.stage, job.surroundings.resources.gpus
    limits = site.limits_of(stage)
    time = limits.asked(job.expected_s, site.signal_s)
    asked = f"limits.{stage} = {time}, {limits.memory_gib} GiB, {limits.cpus} cores"
    asked += f", gpu_type = '{site.gpu_type}' with {gpus} GPUs" if gpus else ""
    there = ", ".join(queue.partitions()) if "{partitions}" in known else ""
    return known.format(stage=stage, limits=limits, site=site, name=name, asked=asked, time=time, partitions=there)
