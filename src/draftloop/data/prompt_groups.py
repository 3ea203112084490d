"""The group of a prompt, and the keys that two near-duplicates share. Knows no file and no record.

    prompt_group(text)        16 hex digits; case, spaces, digits and punctuation are folded
    opening(text, messages)   the part of a prompt that decides its group: of a chat, the user turn that it begins with
    near_keys(text)           a few dozen numbers; two prompts that share one are near-duplicates

`joined_groups.PromptGroups` joins what is near, beside the log, and says which joined group lies in two splits.

A chat is grouped by the first user turn that says something ("hi" does not), so all turns of a conversation are one
group, and a system prompt joins nothing. Near-duplicates have the same content words in the same order, where

- words of politeness and of the frame of a question (please, can you, the, what is) are left out,
- plurals, accents, number words and clitics are folded,
- a clause may stand in another place: "In Python, sort a list" and "Sort a list in Python" (rotations of each other,
  or behind the first word), and so may a "not",
- one word of six or more letters may have one letter more, one less, another one, or two exchanged, except the first;
  in more than `EXACT_WORDS` words any number of longer ones may differ between their first and last letter.

Common shingles do not count: two prompts of one template share nearly all of theirs (docs/decisions, near-duplicates).
Keys are the same in every process. `prompt_index` writes them down, with KEYS, the version of these rules.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

KEYS = 1  # counts up whenever other prompts become near: keys of another version say nothing
EXACT_WORDS = 16  # content words up to which a typo is looked for word by word
_TYPO_LETTERS = 6  # a word with a typo has as many, before it or after
KEY_BYTES = 6  # a new prompt among a million others shares a key by chance once in 300,000 times
_AT_ONCE = 128  # prompts that come again shortly: first for their split, then when they are logged
_CLAUSE_WORDS = 6  # with fewer, two clauses behind the first word are as good as two names: English to French

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_APOSTROPHE = re.compile(r"['’ʼ](?<=\w.)(?=\w)")  # vanishes: don't, dont
_THOUSANDS = re.compile(r"[.,](?<=\d.)(?=\d)")
_NAMED = re.compile(r"(?<=[^\W\d_])#|(?<=\S )[#%&*/@\\]+(?= \S)")  # C#, and an operator that a prompt is about
_OPERATORS = re.compile(r"[#%&*/@\\]")
_CLITIC = re.compile(r"['’ʼ](?<=\w.)(?:s|d|m|re|ve|ll)\b")
_UNSPACED = re.compile(  # scripts without spaces between words: a letter is a word
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)


class _Punctuation(dict[int, str]):
    """For `str.translate`: punctuation becomes a space, what has no width vanishes; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        folded = " " if kind.startswith("P") or code == ord("`") else "" if kind == "Cf" else chr(code)
        self[code] = folded
        return folded


_PUNCTUATION = _Punctuation({0xFE0F: "", 0xFE0E: ""})  # how an emoji is drawn


@lru_cache(maxsize=_AT_ONCE)
def prompt_group(prompt: str) -> str:
    """The group of a prompt, 16 hex digits: case, spaces, digits, punctuation and compatibility forms do not count.

    Punctuation is Unicode's (categories P*), so `C++` is not `C`; `C#` and an operator that stands alone in a line are
    kept too. A prompt of nothing else is folded but for its punctuation. Lone surrogates all count as U+FFFD.
    """
    return hashlib.sha256(fold(prompt).encode()).hexdigest()[:16]


def fold(prompt: str) -> str:
    """A prompt without what does not count: equal for the prompts of one group."""
    text = _casefolded(prompt)
    return _spaced(_without_punctuation(text)) or _spaced(text)


def opening(prompt: str, messages: Sequence[Mapping[str, Any]] | None = None) -> str:
    """The text that decides the group of a prompt.

    Args:
        prompt: all of it; it is returned where there are no messages.
        messages: of a chat, each with `role` and `content` (text, parts, or None).

    Returns:
        Of a chat, the first user turn with a content word; all user turns where none has one; all of it without any.
    """
    turns = [_said(message.get("content")) for message in messages or () if message.get("role") == "user"]
    return next((turn for turn in turns if content_words(turn)), "\n".join(turns)) or prompt


@lru_cache(maxsize=_AT_ONCE)
def near_keys(prompt: str) -> tuple[int, ...]:
    """Two prompts that share a key are near-duplicates; the first key is shared by those without a typo.

    Returns:
        An empty tuple for a prompt without a content word.
    """
    words = content_words(prompt)
    if not words:
        return ()
    if len(words) > EXACT_WORDS:
        return (_key("long", *map(_coarse, words)),)
    turned = len(words) > 2  # of two words, each rotation would be a swap
    whole = min(_rotations(words)) if turned else words
    keys = [_key("words", *whole)]
    if len(words) >= _CLAUSE_WORDS:
        keys.append(_key("clauses", words[0], *min(_rotations(words[1:]))))
    for at, word in enumerate(words):
        seen = _with_a_typo(word)
        if not seen:
            continue
        rest = (*words[at + 1 :], *words[:at]) if turned else (str(at), *words[:at], *words[at + 1 :])
        keys += [_key("typo", letters, *rest) for letters in seen]
    return tuple(keys)


def content_words(prompt: str) -> tuple[str, ...]:
    """The words that a prompt is about, folded, in their order; every "not" comes last."""
    text = _without_punctuation(_CLITIC.sub("", _casefolded(prompt)))
    if not text.isascii():
        text = _UNSPACED.sub(r" \1 ", _without_accents(text))
    kept = [stem for stem in map(_content, _spaced(text).split()) if stem]
    return tuple(sorted(kept, key=_NOT.__eq__)) if _NOT in kept else tuple(kept)  # the order of all others is kept


def _key(*words: str) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=KEY_BYTES).digest())


def _casefolded(prompt: str) -> str:
    if prompt.isascii():
        return prompt.lower()
    text = unicodedata.normalize("NFKC", _SURROGATE.sub(_REPLACEMENT, prompt)).casefold()
    return unicodedata.normalize("NFKC", text)


def _without_punctuation(text: str) -> str:
    if _OPERATORS.search(text):
        text = _NAMED.sub(lambda match: "".join(chr(0xE000 + ord(c)) for c in match[0]), text)  # private use, not in P*
    return _THOUSANDS.sub("", _APOSTROPHE.sub("", text)).translate(_PUNCTUATION)


def _spaced(text: str) -> str:
    return re.sub(r"\d+", "0", " ".join(text.split()))


def _without_accents(text: str) -> str:
    """Marks on Latin, Greek and Cyrillic letters are left out; on others they may be letters."""
    parts = unicodedata.normalize("NFD", text)
    kept = (c for i, c in enumerate(parts) if not (unicodedata.category(c) == "Mn" and parts[i - 1] < "\u0590"))
    return unicodedata.normalize("NFC", "".join(kept))


def _said(content: object) -> str:
    """The text of a turn, which may come in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))


@lru_cache(maxsize=1 << 16)
def _content(word: str) -> str:
    """What a word counts as; nothing where it is a filler."""
    stem = _stem(_SAME.get(word, word))
    return "" if stem in _FILLERS else stem


def _stem(word: str) -> str:
    """Without the ending of an English plural."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes")) else word[:-1]


def _rotations(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (words[at:] + words[:at] for at in range(len(words)))


@lru_cache(maxsize=1 << 15)
def _with_a_typo(word: str) -> tuple[str, ...]:
    """What words that differ in one letter, or in the order of two, have in common: each without one, and whole.

    (Garbe's symmetric deletion: neighbours meet without being listed.)
    """
    if not word.isalpha() or len(word) < _TYPO_LETTERS - 1:
        return ()
    without = (word[:at] + word[at + 1 :] for at in range(1, len(word) if len(word) >= _TYPO_LETTERS else 1))
    return (word, *without)


def _coarse(word: str) -> str:
    """A longer word by its ends."""
    return f"{word[0]}*{word[-1]}" if word.isalpha() and len(word) >= _TYPO_LETTERS - 1 else word


_FRAME = (  # of a request or a question; what decides between questions (how, why, who, when, where) is not among it
    "a an the this that these those and of for to it its please pls plz kindly just quickly exactly so well ok okay "
    "i me my mine we us our you your can could would will shall should might may do doe did is are was were be am been "
    "what which whats tell give show help let want need like know mind id "
    "hi hey hello dear thank thanks thx advance cheer teh"
)
_ELSEWHERE = (  # politeness in other languages
    "bitte danke merci svp sil te vous plait por favor gracia per grazie mir пожалуйста спасибо 请 請 问 問 吗 嗎 呢 吧"
)
_FILLERS = frozenset([*_FRAME.split(), *_ELSEWHERE.split()])
_NOT = "not"
_NEGATED = "dont doesnt didnt isnt arent wasnt werent cant cannot couldnt wouldnt shouldnt wont havent hasnt hadnt"
_NUMBERS = "one two three four five six seven eight nine ten eleven twelve"
_SAME = {**dict.fromkeys(_NUMBERS.split(), "0"), **dict.fromkeys(_NEGATED.split(), _NOT)}
