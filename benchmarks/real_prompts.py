"""Varied instructions for a real model: everyday requests about everyday things, of two parts that share neither.

A prompt is a request with a thing in it. The prompts to learn from and those to measure on have other requests and
other things, so that nothing measured was trained on in other words.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Literal

Part = Literal["collect", "benchmark"]

REQUESTS: dict[Part, tuple[str, ...]] = {
    "collect": (
        "Explain in simple words what {} is.",
        "Write a short story about {}.",
        "Give me three tips on how to look after {}.",
        "What should somebody know before they buy {}?",
        "Write a friendly email to a colleague about {}.",
        "List five questions that a child could ask about {}.",
        "Compare {} with something similar, and say which is better for a beginner.",
        "Describe {} to somebody who has never seen it.",
        "Summarize the history of {} in four sentences.",
        "What are the advantages and disadvantages of {}?",
        "Write a product description for {}.",
        "Make a plan for a week in which I learn about {}.",
        "Write a dialogue between two friends who disagree about {}.",
        "How would a scientist describe {}?",
        "Name some common mistakes that people make with {}.",
        "Write a Python function that stores facts about {} in a dictionary.",
        "Give a JSON object with four fields that describe {}.",
        "Turn this into a polite question: I want {} now.",
        "Write the opening paragraph of an essay on {}.",
        "What would change in everyday life without {}?",
        "Write a weather report in which {} plays a part.",
        "Suggest a name and a slogan for a shop that sells {}.",
        "Give step by step instructions for drawing {}.",
        "Which safety rules matter when children are near {}?",
    ),
    "benchmark": (
        "Tell me something surprising about {}.",
        "Write a diary entry of somebody who lost {}.",
        "How do I teach a class of ten year olds about {}?",
        "Draft a short speech in honour of {}.",
        "Why do people like {} so much?",
        "Write a review of {} with a rating from one to five.",
        "Explain how {} could be improved.",
        "Write a SQL table that could hold data on {}.",
    ),
}
THINGS: dict[Part, tuple[str, ...]] = {
    "collect": (
        "a bicycle", "a lighthouse", "honey", "a chess board", "the moon", "an old piano", "a vegetable garden",
        "a volcano", "a public library", "a cup of coffee", "a sailing boat", "a thunderstorm", "a wooden table",
        "a school bus", "a camera", "solar panels", "a kitchen knife", "a football team", "a passport", "a snowman",
        "an elevator", "a mountain trail", "a birthday cake", "a pair of glasses", "a fish tank", "a train station",
        "a smartphone", "a wool sweater", "a puppy", "a rainbow", "a hospital", "a paper map", "an alarm clock",
        "a bridge", "a tent", "olive oil", "a newspaper", "a robot vacuum cleaner", "an orchestra", "a desert",
    ),
    "benchmark": (
        "a telescope", "a bakery", "an umbrella", "a violin", "a beehive", "a ferry", "a cactus", "a post office",
        "a pumpkin", "a museum", "a fireplace", "a skateboard", "an iceberg", "a typewriter", "a castle", "a windmill",
    ),
}  # fmt: skip


def varied_instructions(part: Part, count: int, seed: int = 0) -> list[str]:
    """So many different prompts of a part, in an order drawn at random.

    Raises:
        ValueError: there are not so many.
    """
    every = [request.format(thing) for request, thing in product(REQUESTS[part], THINGS[part])]
    if count > len(every):
        raise ValueError(f"{count} prompts of the part {part}: expected at most {len(every)}")
    return random.Random(seed).sample(every, count)
