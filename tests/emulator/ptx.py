"""PTX, as NVRTC makes it, translated to C++ over the shim, one instruction a line; an unknown one is an error.

It covers what the kernels use and no more. Arithmetic without a rounding (``add.f64``, ``mul.f64``) is left out on
purpose: there the next compiler, ptxas, is free to fuse, and what runs on the device is not what the text says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

C = {
    "pred": "bool",
    **{f"b{n}": f"std::uint{n}_t" for n in (8, 16, 32, 64)},
    **{f"u{n}": f"std::uint{n}_t" for n in (8, 16, 32, 64)},
    **{f"s{n}": f"std::int{n}_t" for n in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
}
WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
INT = "[us](?:16|32|64)"
BITS = "b(?:16|32|64)"
ANY = f"{INT}|{BITS}|f64"
SPECIAL = {"tid": "index", "ctaid": "block_index", "ntid": "block_size", "nctaid": "grid_size"}
ROUND = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OPERATOR = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}
INTEGER = {"div": "ptx::divide", "rem": "ptx::remainder", "min": "std::min", "max": "std::max"}


class UnknownInstruction(Exception):
    """The translator does not know it; the line."""


@dataclass(frozen=True)
class Names:
    """What a kernel has declared: registers and parameters with their types, places in shared memory."""

    kinds: dict[str, str]
    shared: dict[str, int]
    parameters: dict[str, str]


class Operands:
    """The operands of an instruction, as C++ expressions of the types it reads them by."""

    def __init__(self, words: list[str], names: Names, site: int) -> None:
        self.words, self.site = words, site
        self.kinds, self.shared, self.parameters = names.kinds, names.shared, names.parameters

    def kind(self, register: str) -> str:
        """PTX type a register was declared with."""
        return self.kinds[re.sub(r"\d+$", "", register)]

    def read(self, position: int | str, kind: str) -> str:
        """An operand, read as a type."""
        word = self.words[position] if isinstance(position, int) else position
        if special := re.fullmatch(r"%(tid|ctaid|ntid|nctaid)\.([xyz])", word):
            return f"{C[kind]}(emulator::self->{SPECIAL[special[1]]}.{special[2]})"
        if word.startswith("%"):
            name, declared = word[1:], self.kind(word)
            if kind[0] == "f" or declared[0] == "f":
                return name if kind == declared else f"ptx::bits<{C[kind]}>({name})"
            return name if kind == declared == "pred" else f"{C[kind]}({name})"
        if word in self.shared:
            return f"{C[kind]}({self.shared[word]})"
        if bits := re.fullmatch(r"0d([0-9A-F]{16})", word):
            return f"ptx::bits<{C[kind]}>(std::uint64_t(0x{bits[1]}ull))"
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", word):
            return f"{C[kind]}({word}ll)"
        raise UnknownInstruction(f"operand {word}")

    def write(self, position: int | str, kind: str, value: str) -> str:
        """An assignment to a register of a value of a type."""
        word = self.words[position] if isinstance(position, int) else position
        declared = self.kind(word)
        if (declared[0] == "f" and kind != declared) or (kind[0] == "f" and kind != declared):
            value = f"ptx::bits<{C[declared]}>({value})"
        elif kind != "pred":
            # Into a wider register a value goes sign- or zero-extended, as its type says.
            value = f"{C[declared]}({C[kind]}({value}))" if kind[0] != "f" else value
        return f"{word[1:]} = {value};"

    def address(self, position: int) -> str:
        """``[register+offset]`` as a 64-bit number."""
        base, offset = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", self.words[position]).groups()
        return f"std::uint64_t({self.read(base, 'u64')} + {offset or 0})"

    def parts(self, position: int) -> list[str]:
        """``{a, b}``, or the one register."""
        return [word.strip() for word in self.words[position].strip("{}").split(",")]


Rule = Callable[[Operands, re.Match[str]], str]


def _load(o: Operands, m: re.Match[str]) -> str:
    space, n, kind, parts = m[1], int(m[2] or 1), m[3], o.parts(0)
    if space == "param":
        name = o.words[1].strip("[]")
        declared = o.parameters[name]
        same = kind == declared or "f" not in kind + declared
        return o.write(0, kind, f"{C[kind]}({name})" if same else f"ptx::bits<{C[kind]}>({name})")
    place = f"{C[kind]}, {n}"
    if space == "shared":
        source = f"const auto *source = ptx::shared<{place}>(window, SHARED, {o.address(1)});"
        values = [f"source[{k}]" for k in range(n)]
    else:
        source = f"const auto source = ptx::load_global<{place}>({o.address(1)}, {o.site});"
        values = [f"source.part[{k}]" for k in range(n)]
    return f"{{ {source} {' '.join(o.write(part, kind, v) for part, v in zip(parts, values, strict=True))} }}"


def _store(o: Operands, m: re.Match[str]) -> str:
    space, n, kind, parts = m[1], int(m[2] or 1), m[3], o.parts(1)
    place, values = f"{C[kind]}, {n}", [o.read(part, kind) for part in parts]
    if space == "shared":
        stores = " ".join(f"target[{k}] = {value};" for k, value in enumerate(values))
        return f"{{ auto *target = ptx::shared<{place}>(window, SHARED, {o.address(0)}); {stores} }}"
    return f"ptx::store_global<{place}>({o.address(0)}, {{{{{', '.join(values)}}}}}, {o.site});"


def _move(o: Operands, m: re.Match[str]) -> str:
    kind, target, source = m[1], o.parts(0), o.parts(1)
    half = f"b{int(kind[1:]) // 2}" if kind != "pred" else ""
    if len(target) == 2:
        whole, width = o.read(1, kind), half[1:]
        low, high = (
            o.write(target[0], half, f"{C[half]}(whole)"),
            o.write(target[1], half, f"{C[half]}(whole >> {width})"),
        )
        return f"{{ const auto whole = {whole}; {low} {high} }}"
    if len(source) == 2:
        low, high = (f"{C[kind]}({o.read(part, half)})" for part in source)
        return o.write(0, kind, f"{high} << {half[1:]} | {low}")
    return o.write(0, kind, o.read(1, kind))


def _shuffle(o: Operands, m: re.Match[str]) -> str:
    target, inside = [*o.words[0].split("|"), ""][:2]
    call = ", ".join(o.read(k, "u32") for k in (1, 2, 3, 4))
    known = f" {inside[1:]} = inside;" if inside else ""
    value = o.write(target, "b32", f"ptx::shuffle(ptx::{m[1].upper()}, {call}, inside)")
    return f"{{ bool inside = false; {value}{known} }}"


def _convert(o: Operands, m: re.Match[str]) -> str:
    rounding, to, source = m[1], m[2], m[3]
    value = o.read(1, source)
    if source == "f64":
        rounded = f"{ROUND[rounding]}({value})"
        return o.write(0, to, rounded if to == "f64" else f"emulator_to_integer<{C[to]}>({rounded})")
    return o.write(0, to, f"{C[to]}({value})")


def _binary(o: Operands, m: re.Match[str]) -> str:
    kind = m[2]
    unsigned = kind.replace("s", "u")  # sums and products wrap
    return o.write(0, kind, f"{C[unsigned]}({o.read(1, unsigned)} {OPERATOR[m[1]]} {o.read(2, unsigned)})")


def _wide(o: Operands, kind: str) -> str:
    wide = WIDE[kind]
    return f"{C[wide]}({o.read(1, kind)}) * {C[wide]}({o.read(2, kind)})"


def _vote(o: Operands, m: re.Match[str]) -> str:
    call = f"__{m[1]}_sync({o.read(2, 'u32')}, {o.read(1, 'pred')})"
    return o.write(0, "b32", call) if m[1] == "ballot" else f"{o.words[0][1:]} = {call};"


def _compare(o: Operands, m: re.Match[str]) -> str:
    sign, kind = (COMPARE | UNSIGNED)[m[1]], m[2]
    x, y = o.read(1, kind), o.read(2, kind)
    # Of doubles, "ne" is false for NaN, which C++'s != is not.
    test = f"{x} < {y} || {x} > {y}" if (m[1], kind) == ("ne", "f64") else f"{x} {sign} {y}"
    return f"{o.words[0][1:]} = {test};"


def _unordered(o: Operands, m: re.Match[str]) -> str:
    """Comparisons of doubles that are true for NaN: not the opposite."""
    x, y = o.read(1, "f64"), o.read(2, "f64")
    opposite = {"equ": f"{x} < {y} || {x} > {y}", "neu": f"{x} == {y}"}
    opposite |= {"ltu": f"{x} >= {y}", "leu": f"{x} > {y}", "gtu": f"{x} <= {y}", "geu": f"{x} < {y}"}
    return f"{o.words[0][1:]} = !({opposite[m[1]]});"


def _atomic(o: Operands, m: re.Match[str]) -> str:
    returns = m[1] == "atom"
    call = f"atomic{m[2].title()}(ptx::word({o.address(int(returns))}, {o.site}), {o.read(1 + returns, 'u32')})"
    return o.write(0, "u32", call) if returns else f"{call};"


def _barrier(o: Operands, m: re.Match[str]) -> str:
    if o.words != ["0"]:
        raise ValueError("a barrier of part of a block")
    return f"emulator::sync_block({o.site});"


def _block_vote(o: Operands, m: re.Match[str]) -> str:
    if len(o.words) != 3 or o.words[1] != "0":
        raise ValueError("a barrier of part of a block")
    return f"{o.words[0][1:]} = emulator::vote_block({o.site}, {o.read(2, 'pred')}) != 0;"


def _words(o: Operands, *positions: int) -> str:
    return ", ".join(o.read(position, "u32") for position in positions)


RULES: tuple[tuple[str, Rule], ...] = (
    (rf"ld\.(param|shared|global)(?:\.nc)?(?:\.v([24]))?\.({ANY}|[bus]8)", _load),
    (rf"st\.(shared|global)(?:\.v([24]))?\.({ANY}|[bus]8)", _store),
    (rf"mov\.({ANY}|pred)", _move),
    (r"cvta\.to\.(?:global|shared)\.u64", lambda o, m: o.write(0, "u64", o.read(1, "u64"))),
    (rf"cvt\.(?:(r[nzmp]i|rn)\.)?({INT}|[us]8|f64)\.({INT}|[us]8|f64)", _convert),
    (rf"(add|sub|mul(?=\.lo))(?:\.lo)?\.({INT})", _binary),
    (rf"(and|or|xor)\.({BITS})", _binary),
    (
        r"(and|or|xor)\.pred",
        lambda o, m: f"{o.words[0][1:]} = bool({o.read(1, 'pred')} {OPERATOR[m[1]]} {o.read(2, 'pred')});",
    ),
    (r"not\.pred", lambda o, m: f"{o.words[0][1:]} = !{o.read(1, 'pred')};"),
    (rf"not\.({BITS})", lambda o, m: o.write(0, m[1], f"{C[m[1]]}(~{o.read(1, m[1])})")),
    (rf"neg\.({INT})", lambda o, m: o.write(0, m[1], f"{C[m[1]]}(0 - {o.read(1, m[1].replace('s', 'u'))})")),
    (rf"mul\.wide\.({INT})", lambda o, m: o.write(0, WIDE[m[1]], _wide(o, m[1]))),
    (
        rf"mad\.wide\.({INT})",
        lambda o, m: o.write(0, WIDE[m[1]], f"{_wide(o, m[1])} + {o.read(3, WIDE[m[1]])}"),
    ),
    (
        rf"mad\.lo\.({INT})",
        lambda o, m: o.write(
            0,
            m[1],
            f"{' * '.join(o.read(k, m[1].replace('s', 'u')) for k in (1, 2))} + {o.read(3, m[1].replace('s', 'u'))}",
        ),
    ),
    (
        rf"(div|rem|min|max)\.({INT})",
        lambda o, m: o.write(0, m[2], f"{INTEGER[m[1]]}<{C[m[2]]}>({o.read(1, m[2])}, {o.read(2, m[2])})"),
    ),
    (
        rf"(shl|shr)\.({BITS}|{INT})",
        lambda o, m: o.write(0, m[2], f"ptx::{m[1]}({o.read(1, m[2])}, {o.read(2, 'u32')})"),
    ),
    (r"shf\.(l|r)\.wrap\.b32", lambda o, m: o.write(0, "b32", f"__funnelshift_{m[1]}({_words(o, 1, 2, 3)})")),
    (r"prmt\.b32", lambda o, m: o.write(0, "b32", f"ptx::permute({_words(o, 1, 2, 3)})")),
    (r"(clz|popc)\.b32", lambda o, m: o.write(0, "u32", f"__{m[1]}({o.read(1, 'u32')})")),
    (
        r"bfe\.([us](?:32|64))",
        lambda o, m: o.write(0, m[1], f"ptx::extract<{C[m[1]]}>({o.read(1, m[1])}, {_words(o, 2, 3)})"),
    ),
    (
        r"bfi\.(b(?:32|64))",
        lambda o, m: o.write(0, m[1], f"ptx::insert({o.read(1, m[1])}, {o.read(2, m[1])}, {_words(o, 3, 4)})"),
    ),
    (rf"setp\.({'|'.join(COMPARE)})\.({ANY})", _compare),
    (rf"setp\.({'|'.join(UNSIGNED)})\.(u(?:16|32|64))", _compare),
    (r"setp\.(equ|neu|ltu|leu|gtu|geu)\.f64", _unordered),
    (rf"selp\.({ANY})", lambda o, m: o.write(0, m[1], f"{o.read(3, 'pred')} ? {o.read(1, m[1])} : {o.read(2, m[1])}")),
    (
        r"(add|sub|mul|div)\.rn\.f64",
        lambda o, m: o.write(0, "f64", f"{o.read(1, 'f64')} {OPERATOR[m[1]]} {o.read(2, 'f64')}"),
    ),
    (
        r"fma\.rn\.f64",
        lambda o, m: o.write(0, "f64", f"std::fma({', '.join(o.read(k, 'f64') for k in (1, 2, 3))})"),
    ),
    (r"neg\.f64", lambda o, m: o.write(0, "f64", f"-{o.read(1, 'f64')}")),
    (r"(?:bar\.sync|barrier\.sync(?:\.aligned)?)", _barrier),
    (r"bar\.red\.or\.pred", _block_vote),
    (r"bar\.warp\.sync", lambda o, m: f"__syncwarp({o.read(0, 'u32')});"),
    (r"shfl\.sync\.(up|down|bfly|idx)\.b32", _shuffle),
    (r"vote\.sync\.(any|all|ballot)\.(?:pred|b32)", _vote),
    (r"(atom|red)\.global\.(or(?=\.b32)|add(?=\.u32))\.[bu]32", _atomic),
    (r"bra(?:\.uni)?", lambda o, m: f"goto {_label(o.words[0])};"),
    (r"ret|exit", lambda o, m: "return;"),
)

ENTRY = re.compile(r"\.visible \.entry (\w+)\(\s*(.*?)\s*\)\s*((?:\.\w+ [^\n{]*\n)*)\{\n(.*?)\n\}", re.DOTALL)


def translate(ptx: str, name: str) -> str:
    """Translate one kernel.

    Parameters
    ----------
    ptx : str
        What NVRTC made.
    name : str
        The kernel.

    Returns
    -------
    str
        C++ for `emulator.cpp.Kernel`: a function of the kernel's name that takes pointers as 64-bit numbers.

    Raises
    ------
    UnknownInstruction
        With the line.
    """
    entries = {entry[1]: entry for entry in ENTRY.finditer(re.sub(r"//[^\n]*", "", ptx))}
    if name not in entries:
        raise UnknownInstruction(f"no kernel {name}")
    _, parameters, directives, body = entries[name].groups()
    words = [parameter.split() for parameter in parameters.split(",")]  # .param .u64 .ptr .global .align 8 name
    names = Names({}, {}, {parameter: kind.strip(".") for _, kind, *_, parameter in words})
    registers, lines, window = [], [], 0
    for statement, site in zip(_statements(body), count(1)):
        if declared := re.fullmatch(r"\.reg \.(\w+)\s+(%\w+)<(\d+)>", statement):
            kind, prefix, n = declared.groups()
            names.kinds[prefix] = kind
            start = f"ptx::poison<{C[kind]}>()" if kind != "pred" else "false"  # a bool cannot be poisoned
            registers.append(f"{C[kind]} {', '.join(f'{prefix[1:]}{k} = {start}' for k in range(int(n)))};")
        elif declared := re.fullmatch(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", statement):
            window = -(-window // int(declared[1])) * int(declared[1])
            names.shared[declared[2]] = window
            window += int(declared[3])
        elif declared := re.fullmatch(r"\.reg \.pred %(\w+)", statement):  # of a scope, in which it hides another
            lines.append(f"bool {declared[1]} = false;")
        elif statement in "{}":
            lines.append(statement)
        elif statement.startswith(".pragma"):
            continue  # for the next compiler
        elif statement.endswith(":"):
            lines.append(f"{_label(statement[:-1])}:;")
        else:
            lines.append(_instruction(statement, names, site))
    most = re.search(r"\.maxntid (\d+), (\d+), (\d+)", directives)
    threads = math.prod(map(int, most.groups())) if most else 1024
    return "\n".join(
        [
            '#include "ptx.h"',
            '#pragma GCC diagnostic ignored "-Wunused-variable"',
            '#pragma GCC diagnostic ignored "-Wunused-but-set-variable"',
            f"constexpr std::size_t SHARED = {window};",
            "alignas(128) static EMULATOR_SHARED unsigned char window[SHARED + 1];",
            f"static void {name}({', '.join(f'{C[kind]} {word}' for word, kind in names.parameters.items())})",
            "{",
            f"    ptx::enter(window, SHARED, {threads});",
            *(f"    {line}" for line in [*registers, *lines]),
            "}",
        ]
    )


def _statements(body: str) -> list[str]:
    found = re.findall(r"\s*(?:([{}])|([$\w]+:)(?!:)|([^;]+?)\s*;)", body)
    return [scope or label or " ".join(statement.split()) for scope, label, statement in found]


def _instruction(statement: str, names: Names, site: int) -> str:
    guard, opcode, rest = re.fullmatch(r"(?:@(!?%\w+) )?(\S+)\s*(.*)", statement).groups()
    operands = Operands(re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest), names, site)
    for pattern, rule in RULES:
        if match := re.fullmatch(pattern, opcode):
            try:
                line = rule(operands, match)
            except (KeyError, IndexError, AttributeError, ValueError) as error:
                raise UnknownInstruction(statement) from error
            return f"if ({guard.replace('%', '')}) {line}" if guard else line
    raise UnknownInstruction(statement)


def _label(name: str) -> str:
    return name.replace("$", "label_")
