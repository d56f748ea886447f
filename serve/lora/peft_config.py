"""The scaling options in PEFT's configuration of an adapter."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import regex

from serve.lora.safetensors_header import InvalidLoraFile, display_name

ADAPTER_METADATA_KEY = "lora_adapter_metadata"
"""Diffusers' `LORA_ADAPTER_METADATA_KEY`: PEFT's configurations in the metadata of a safetensors file."""
MAX_PATTERNS = 4096
"""Diffusers writes one pattern for each layer whose alpha differs from the most frequent one."""
MAX_PATTERN_CHARS = 500
MAX_MATCHING_S = 10.0
"""Limit on the time to compile all patterns of a file and match them with all its layers, which can be exponential."""
MAX_EXPANDED_CHARS = 300_000
"""Limit on the length of all patterns with counted repeats written out. `regex` does so, in about 200 bytes each."""

Result = TypeVar("Result")
_REPEAT = re.compile(r"\{(\d{0,2})(?:,(\d{0,2}))?\}")
_PLAIN_NAME = re.compile(r"[\w.]*?(?P<last>\w+)", re.ASCII)


class PatternTable:
    """PEFT's `alpha_pattern` or `rank_pattern`: numbers by regular expressions for the names of modules."""

    def __init__(self, field: str, numbers: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `InvalidLoraFile` for an invalid pattern, and for too long or too many patterns."""
        self._field = field
        self._clock = clock
        self._left_s = MAX_MATCHING_S
        if len(numbers) > MAX_PATTERNS:
            raise InvalidLoraFile(
                f"its PEFT config has {len(numbers)} patterns in {field}; at most {MAX_PATTERNS} are accepted"
            )
        expanded = {key: _expanded_chars(key) for key in numbers}
        if sum(expanded.values()) > MAX_EXPANDED_CHARS:
            raise self._invalid(max(expanded, key=expanded.__getitem__), "the patterns repeat too much")
        self._patterns = [
            (key, _last_name(key), self._timed(key, partial(self._compile, key)), number)
            for key, number in numbers.items()
        ]

    def find(self, module: str) -> float | None:
        """The number of the first pattern that matches, as in PEFT's `get_pattern_key`. Raises `InvalidLoraFile`."""
        for key, last_name, pattern, number in self._patterns:
            if module.endswith(last_name) and self._matches(key, pattern, module):
                return number
        return None

    def _matches(self, key: str, pattern: Any, module: str) -> bool:
        return self._timed(key, lambda: pattern.match(module, timeout=self._left_s) is not None)

    def _timed(self, key: str, action: Callable[[], Result]) -> Result:
        """Calls `action`, which compiles or matches a pattern, and counts its time against the limit."""
        start_s = self._clock()
        try:
            result = action()
        except (TimeoutError, MemoryError) as error:
            raise self._invalid(key, "it takes too long") from error
        self._left_s -= self._clock() - start_s
        if self._left_s <= 0:
            raise self._invalid(key, "it takes too long")
        return result

    def _compile(self, key: str) -> Any:
        if len(key) > MAX_PATTERN_CHARS:
            raise self._invalid(key, f"it has {len(key)} characters; at most {MAX_PATTERN_CHARS} are accepted")
        if key.count("{") > len(_REPEAT.findall(key)):
            raise self._invalid(key, "braces are accepted for counted repeats of up to 99 only")
        try:
            expression = rf"(.*\.)?({key})$"
            re.compile(expression)  # What PEFT uses. The syntax of `regex` is larger.
            return regex.compile(expression)
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise self._invalid(key, "it is not a valid regular expression") from error

    def _invalid(self, key: str, why: str) -> InvalidLoraFile:
        return InvalidLoraFile(
            f"its PEFT config (adapter_config.json) has the {self._field} {display_name(key)}, which is refused: {why}"
        )


def _expanded_chars(key: str) -> int:
    """At most this many characters remain if all counted repeats are nested and written out."""
    counts = [max(int(number or 1) for number in repeat) for repeat in _REPEAT.findall(key)]
    return len(key) * math.prod(max(count, 1) for count in counts)


def _last_name(key: str) -> str:
    """The last part of a plain name, which a matching module must end with; empty for a pattern."""
    match = _PLAIN_NAME.fullmatch(key)
    return match["last"] if match else ""


NO_PATTERNS = PatternTable("alpha_pattern", {})


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The scaling options of PEFT's `LoraConfig`, `LoHaConfig` and `LoKrConfig`."""

    alpha: float | None = None
    alphas: PatternTable = NO_PATTERNS
    """Exceptions from `alpha`."""
    rank: float | None = None
    ranks: PatternTable = NO_PATTERNS
    """Exceptions from `rank`."""
    rank_stabilized: bool = False
    """Divide alpha by the square root of the rank (rsLoRA)."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads PEFT's fields, except values that are not finite numbers. Raises `InvalidLoraFile` for patterns."""
        alpha = config.get("lora_alpha")
        return cls(
            alpha=_finite_number(config.get("alpha") if alpha is None else alpha),
            alphas=_patterns(config, "alpha_pattern"),
            rank=_finite_number(config.get("r")),
            ranks=_patterns(config, "rank_pattern"),
            rank_stabilized=config.get("use_rslora") is True,
        )

    def scale(self, module: str, rank: int | None) -> float:
        """The factor for `module`, by its name in the model that was trained; 1 without alpha.

        `rank` is that of the matrices, or None if they do not show the rank that was trained.
        """
        alpha = _first(self.alphas.find(module), self.alpha)
        divisor = _first(self.ranks.find(module), self.rank) if rank is None else rank
        if alpha is None or not divisor or divisor < 0:
            return 1.0
        return alpha / (math.sqrt(divisor) if self.rank_stabilized else divisor)


def parse_adapter_config(text: str | bytes) -> PeftConfig:
    """Parses an `adapter_config.json`. A damaged one counts as empty. Raises `InvalidLoraFile` for patterns."""
    return PeftConfig.from_dict(_parse_json_object(text))


def adapter_configs_in_header(metadata: Mapping[str, str]) -> Mapping[str, PeftConfig]:
    """The PEFT configurations in the metadata of a safetensors file, by part (`transformer` or `clip`)."""
    fields = _parse_json_object(metadata.get(ADAPTER_METADATA_KEY, "{}"))
    prefixes = {"transformer": "transformer.", "clip": "text_encoder."}
    configs = {
        part: {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
        for part, prefix in prefixes.items()
    }
    return {part: PeftConfig.from_dict(config) for part, config in configs.items() if config}


def _patterns(config: Mapping[str, Any], field: str) -> PatternTable:
    pattern = config.get(field)
    numbers = pattern if isinstance(pattern, dict) else {}
    return PatternTable(
        field, {key: number for key, value in numbers.items() if (number := _finite_number(value)) is not None}
    )


def _parse_json_object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _finite_number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, int | float) else None


def _first(*numbers: float | None) -> float | None:
    return next((number for number in numbers if number is not None), None)
