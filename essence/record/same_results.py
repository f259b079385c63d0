"""Changes of modules that change no result: with them a module counts in keys as it was before them."""

from typing import NamedTuple


class Unchanged(NamedTuple):
    """Two states of a module that give the same results, as hashes of its syntax tree."""

    now: str
    """As the module is; a further change counts again, as its tree has another hash."""
    counts_as: str
    """As finished stages were made with it."""


SAME_RESULTS: dict[str, Unchanged] = {
    # Of the memory of a CPU a limit is seen under every engine: it decides what is refused, and what is recomputed.
    "essence.distill.devices": Unchanged(
        now="7a1583e5e21e3c7d07ab762cca1d3ffd0e0ddb9c67d6d468dae41488c7f07621",
        counts_as="be525c4169052ec56ab6b744018d8a4125fb87b6f6a14a755f2ca6a4a6a0bcff",
    ),
    # Ranks wait for each other where one of them, or each, has read a model or a checkpoint.
    "essence.distill.first_rank_loading": Unchanged(
        now="27d08539c1d01833843cb4f59b2159be0d4bf7721f47cceb72d655d55c3c791b",
        counts_as="255ed98b601301e4e63f444630196904ecf7a4a9fc9c2e0aabcfb89ccdbd67c7",
    ),
    # What a training is told that has no room went to essence/sizes/least_change.py, which counts in no key.
    "essence.distill.preflight": Unchanged(
        now="1b1c98712095d4c84693f3f1e1840dd615e14aa9ca729310c96dfe930b571f4b",
        counts_as="c3e2b76cad95482d88900606ceffa4e0f1cccab486510236936cf1299940edf3",
    ),
    # How long a rank waits for another that hangs.
    "essence.distill.ranks": Unchanged(
        now="5f5b80b1eb915a6566a1b36b17f057abb616f12990e083033126b3e035f6976a",
        counts_as="1263e9cb51f88f7693a3b3643d07acfa2c36d6a55b8322c01c2612fcdb45633a",
    ),
    # Ranks wait for each other where one of them, or each, has read a model or a checkpoint.
    "essence.distill.trainer": Unchanged(
        now="66a7d32321f760927ed5733a8f6edd4a97560b51d052a31ce6b52825fadc218b",
        counts_as="fc275537c116ccf296603e27466ed0a5a9a4b4fe1ef54813f642244cf116fd6a",
    ),
    # How long a rank waits for another that hangs.
    "essence.distill.zero": Unchanged(
        now="a6106579e6e0f7fe0c0238778dd4b6b8534159c2972f02890f03b2198362a537",
        counts_as="8b14f8e60a3eb315af7978ead70f4804f25713de0247942d371a53f4ff86690e",
    ),
    # What a decoder took is reported; a proof can name the room for keys and values, an evaluation does not.
    "essence.evaluation.decoders": Unchanged(
        now="56e3b48888db1e68823512f55974fb5f5119a906e61bc964b10468ed71bee0f0",
        counts_as="ee571a4dd39a106545e1cb49424597db95c9da372fff7f99fc599a898a324a05",
    ),
    # Copies start once, and share requests out while they decode: as little in the key as their number.
    "essence.evaluation.decoders.replicas": Unchanged(
        now="5169b4f39e8c1a4b7372ceeca6f6ec575c6d160492ce9564ba9920b08e4821f1",
        counts_as="7f578d964b08230cbe298ab161f65e14a141ab3de61f21c02fb276d473779160",
    ),
    # What it took is reported.
    "essence.evaluation.decoders.transformers": Unchanged(
        now="3f87ab95eac9bb77f7dd86685fc198b1e3b7fc26176805c9fea07b727793c875",
        counts_as="54aa14848c2a92cff5f7ef52d80586482d235410f5c36861ed884f5dc897b878",
    ),
    # Requests can be handed over in parts, as copies get them; what the engine took is reported; on a CPU, keys and
    # values leave room for the weights; a proof can name the room for them.
    "essence.evaluation.decoders.vllm": Unchanged(
        now="00ae937442f72cf8ee74e1f9971b046f16b5e9ff9bf82c21b606934bf6bde247",
        counts_as="f8062eeb62cb13e29842b6eb49e66a6753737012b98beb4214ed7d539aede3b8",
    ),
    # A folder without a model is refused before it is listed, in the same words.
    "essence.models.folder": Unchanged(
        now="79c958a64aae447f67233c3406212250a534a4c63dcc2d5d3b8a005522808d28",
        counts_as="10dd83384a0e8fa76bb12e20654a1ae124992a458e7cd12693423bdaa8a6a76f",
    ),
    # A name that no file can have is refused with a sentence under every Python.
    "essence.models.unchanged": Unchanged(
        now="5e9b11a13eba150d2742be698f639eef1a7d2fb1883523ea4caf12de084cb9a9",
        counts_as="ccaf030007f24f4725748a855e057d7b02af1e77b3401714548443b2699b9b3e",
    ),
    # What a training is told that has no room went to essence/sizes/least_change.py, which counts in no key.
    "essence.sizes.memory": Unchanged(
        now="b29b4e9fcaf02199a451291bf7009d6d394dde109d5047ebad584279be729910",
        counts_as="d16fcff501759a022ec063712ca87fb3acd3ae9012de2734948c09ce115c3a3e",
    ),
    # What the decoder took is recorded.
    "essence.stages.generate": Unchanged(
        now="d255a33cccd71e6a174558b87fe38bb8ee78474f9ac782f997e6b31932404d67",
        counts_as="d400e7a909741e20a6fc22061ded10436a95a2a5d36cde3970ff2d8de1f4e47d",
    ),
}
"""Module -> its change, each with its reason. `tests/record/test_source_key.py` refuses one that no longer holds."""
