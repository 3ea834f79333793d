"""The kernels of `kernels`, written in the language of LLVM.

Each is a function of one argument, a row of numbers of 64 bits (addresses, counts, and fp32 numbers by their bits), the last of
which is how many units of work there are: a thread of OpenMP that calls it does its share of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from .kernels import BLOCK, LANES, NARROW_ROWS, PANEL, PARTS, ROWS, THREADS, WIDE

AHEAD = 64
"""Inputs between a weight and the one that is asked for."""
WORD, INDEX, SINGLE, POINTER = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
VECTOR, WORDS = ir.VectorType(SINGLE, LANES), ir.VectorType(WORD, LANES)
NOTHING = ir.VoidType()


def written() -> str:
    """The module: `product`, `narrow`, `tiled`, `rms_norm` and `rounded`."""
    module = ir.Module()
    _product(module, "product", narrow=False)
    _product(module, "narrow", narrow=True)
    _tiled(module)
    _rms_norm(module)
    _rounded(module)
    return str(module)


def _product(module: ir.Module, name: str, narrow: bool) -> None:
    """product(x, w, start, out, count, tall, inputs, outputs / 32): `count` rows of x by weights, behind what each output starts
    with, `tall` rows by 32 outputs at a time.

    Weights lie in panels of 64 outputs, of each input one number an output; or, `narrow`, in panels of 32 outputs, of each two
    inputs one word an output: both numbers in bf16, the first one in the lower half.
    """
    panel, inputs_of_step, most = (LANES * WIDE, 2, NARROW_ROWS) if narrow else (PANEL, 1, ROWS)
    tiles = [_tile(module, f"{name}_{rows}", rows, panel, inputs_of_step) for rows in range(1, most + 1)]
    with _shared_out(module, name, 8) as (build, job, unit):
        x, w, start, out = (build.inttoptr(number, POINTER) for number in job[:4])
        count, tall, inputs, _ = job[4:]
        outputs = build.mul(job[-1], INDEX(LANES * WIDE))
        output, next_one = (build.mul(each, INDEX(LANES * WIDE)) for each in (unit, build.add(unit, INDEX(1))))
        steps = build.udiv(inputs, INDEX(inputs_of_step))
        weight, following = (_weights(build, w, each, steps, panel) for each in (output, next_one))
        with _each(build, INDEX(0), count, tall) as (row, _):
            states = _behind(build, x, build.mul(row, inputs))
            to = _behind(build, out, build.add(build.mul(row, outputs), output))
            given = [states, weight, following, _behind(build, start, output), to, inputs, outputs]
            left = build.sub(count, row)
            rows = build.select(build.icmp_unsigned("<", left, tall), left, tall)
            blocks = [build.append_basic_block() for _ in tiles]
            after = build.append_basic_block()
            which = build.switch(rows, blocks[-1])
            for number, (tile, block) in enumerate(zip(tiles, blocks, strict=True), start=1):
                if number < most:
                    which.add_case(INDEX(number), block)
                build.position_at_end(block)
                build.call(tile, given)
                build.branch(after)
            build.position_at_end(after)


def _weights(build: ir.IRBuilder, w: Any, output: Any, steps: Any, panel: int) -> Any:
    """Where those of an output begin, those of the next beside them."""
    within = build.urem(output, INDEX(panel))
    return _behind(build, w, build.add(build.mul(build.sub(output, within), steps), within))


def _tile(module: ir.Module, name: str, rows: int, panel: int, inputs_of_step: int) -> ir.Function:
    """tile(x, w, following, start, out, inputs, outputs): so many rows by 32 outputs; towards its end it asks for the weights
    that follow."""
    tile = _declared(module, name, NOTHING, *[POINTER] * 5, INDEX, INDEX)
    tile.linkage = "internal"
    build = ir.IRBuilder(tile.append_basic_block())
    x, w, following, start, out, inputs, outputs = tile.args
    prefetch = _declared(module, "llvm.prefetch.p0", NOTHING, POINTER, WORD, WORD, WORD)
    begun = [_loaded(build, _behind(build, start, INDEX(LANES * v)), VECTOR) for v in range(WIDE)]
    steps = build.udiv(inputs, INDEX(inputs_of_step))
    with _each(build, INDEX(0), steps, INDEX(1), begun * rows) as (step, sums):
        here = _behind(build, w, build.mul(step, INDEX(panel)))
        later = build.add(step, INDEX(AHEAD))
        mine = build.icmp_unsigned("<", later, steps)
        distance = build.mul(build.select(mine, later, build.sub(later, steps)), INDEX(panel))
        asked = _behind(build, build.select(mine, w, following), distance)
        for v in range(WIDE):  # to read, into the second cache, data
            build.call(prefetch, [_behind(build, asked, INDEX(LANES * v)), WORD(0), WORD(2), WORD(1)])
        places = [_behind(build, here, INDEX(LANES * v)) for v in range(WIDE)]
        if inputs_of_step == 1:
            weights = [[_loaded(build, place, VECTOR) for place in places]]
        else:
            pairs = [_loaded(build, place, WORDS) for place in places]
            first = [build.shl(pair, ir.Constant(WORDS, [16] * LANES)) for pair in pairs]
            second = [build.and_(pair, ir.Constant(WORDS, [0xFFFF0000] * LANES)) for pair in pairs]
            weights = [[build.bitcast(word, VECTOR) for word in words] for words in (first, second)]
        before = build.mul(step, INDEX(inputs_of_step))
        for i, of_input in enumerate(weights):
            for r in range(rows):
                own = _behind(build, x, build.add(build.add(build.mul(inputs, INDEX(r)), before), INDEX(i)))
                number = _everywhere(build, _loaded(build, own, SINGLE))
                for v, weight in enumerate(of_input):
                    sums[r * WIDE + v] = _fma(build, number, weight, sums[r * WIDE + v])
    for r in range(rows):
        for v in range(WIDE):
            to = build.add(build.mul(outputs, INDEX(r)), INDEX(LANES * v))
            _store(build, sums[r * WIDE + v], _behind(build, out, to))
    build.ret_void()
    return tile


def _tiled(module: ir.Module) -> None:
    """tiled(x, w, start, out, scratch, shape, count, tall, inputs, outputs / 32, chunks): the product of many rows by `narrow`
    weights, on AMX, `tall` rows at a time.

    A number of fp32 is the sum of three of bf16, eight digits each, to the last bit; each is multiplied by weights that are of
    bf16, without rounding, and all sums are of fp32.

    Args:
        scratch: of each thread what `tall` rows are cut into, and 64 bytes. shape: of the tiles, as LDTILECFG reads it.
        count: rows of x; `out` has room for a multiple of 32.
    """
    first, further = (_block(module, name, asks=asks) for name, asks in (("first_block", True), ("block", False)))
    configure, configured = (_declared(module, f"llvm.x86.{name}tilecfg", NOTHING, POINTER) for name in ("ld", "st"))
    with _shared_out(module, "tiled", 11) as (build, job, chunk):
        x, w, start, out, scratch, shape = (build.inttoptr(number, POINTER) for number in job[:6])
        count, tall, inputs, units = job[6:10]
        part = build.mul(build.mul(tall, inputs), INDEX(2))
        whole = build.mul(part, INDEX(PARTS))
        me = build.zext(build.call(_declared(module, THREADS[0], WORD), []), INDEX)
        parts = _bytes_behind(build, scratch, build.mul(me, build.add(whole, INDEX(64))))
        before = build.mul(chunk, tall)
        left = build.sub(count, before)
        rows = build.select(build.icmp_unsigned("<", left, tall), left, tall)
        filled = _multiple(build, rows)
        _cut(
            build,
            _behind(build, x, build.mul(before, inputs)),
            parts,
            part,
            build.mul(rows, inputs),
            build.mul(filled, inputs),
        )
        others = _bytes_behind(build, parts, whole)  # oneDNN may come back to its own tiles
        build.call(configured, [others])
        build.call(configure, [shape])
        outputs, panel = build.mul(units, INDEX(BLOCK)), build.mul(inputs, INDEX(2 * BLOCK))
        with _each(build, INDEX(0), units, INDEX(1)) as (unit, _):
            weights, following = (
                _bytes_behind(build, w, build.mul(each, panel)) for each in (unit, build.add(unit, INDEX(1)))
            )
            output = build.mul(unit, INDEX(BLOCK))
            with _each(build, INDEX(0), filled, INDEX(BLOCK)) as (row, _):
                own = _bytes_behind(build, parts, build.mul(build.mul(row, inputs), INDEX(2)))
                to = _behind(build, out, build.add(build.mul(build.add(before, row), outputs), output))
                given = [own, part, weights, following, _behind(build, start, output), to, inputs, outputs]
                with build.if_else(build.icmp_unsigned("==", row, INDEX(0))) as (begins, goes_on):
                    with begins:
                        build.call(first, given)
                    with goes_on:
                        build.call(further, given)
        build.call(configure, [others])


def _cut(build: ir.IRBuilder, x: Any, parts: Any, part: Any, numbers: Any, filled: Any) -> None:
    """Numbers of fp32 as sums of three of bf16, each a part; zeros up to `filled`."""
    halves, upper = ir.VectorType(ir.IntType(16), LANES), ir.Constant(WORDS, [0xFFFF0000] * LANES)

    def put(half: Any, number: int, i: Any) -> None:
        place = build.add(build.mul(part, INDEX(number)), build.mul(i, INDEX(2)))
        build.store(half, _bytes_behind(build, parts, place)).align = 2

    with _each(build, INDEX(0), numbers, INDEX(LANES)) as (i, _):
        rest = _loaded(build, _behind(build, x, i), VECTOR)
        for number in range(PARTS):
            bits = build.and_(build.bitcast(rest, WORDS), upper)
            put(build.trunc(build.lshr(bits, ir.Constant(WORDS, [16] * LANES)), halves), number, i)
            rest = build.fsub(rest, build.bitcast(bits, VECTOR))
    short = build.icmp_unsigned("<", numbers, filled)
    with build.if_then(short), _each(build, numbers, filled, INDEX(LANES)) as (i, _):
        for number in range(PARTS):
            put(ir.Constant(halves, [0] * LANES), number, i)


def _block(module: ir.Module, name: str, asks: bool) -> ir.Function:
    """block(parts, part, w, following, start, out, inputs, outputs): 32 rows by 32 outputs, in four tiles of sums. The first one
    of a panel asks for the one that follows."""
    block = _declared(module, name, NOTHING, POINTER, INDEX, *[POINTER] * 4, INDEX, INDEX)
    block.linkage = "internal"
    build = ir.IRBuilder(block.append_basic_block())
    parts, part, w, following, start, out, inputs, outputs = block.args
    tile = ir.IntType(8)
    load, store = (
        _declared(module, f"llvm.x86.tile{name}64", NOTHING, tile, POINTER, INDEX) for name in ("loadd", "stored")
    )
    multiply = _declared(module, "llvm.x86.tdpbf16ps", NOTHING, tile, tile, tile)
    prefetch = _declared(module, "llvm.prefetch.p0", NOTHING, POINTER, WORD, WORD, WORD)
    of_rows, of_weights, line = [tile(4), tile(5)], [tile(6), tile(7)], 4 * LANES
    places = [(r, c, tile(2 * r + c)) for r in range(2) for c in range(2)]
    for _, c, sums in places:
        build.call(load, [sums, _behind(build, start, INDEX(LANES * c)), INDEX(0)])
    with _each(build, INDEX(0), build.udiv(inputs, INDEX(BLOCK)), INDEX(1)) as (step, _):
        reached = build.mul(step, INDEX(line * BLOCK))  # a panel has a line of two registers for each two inputs
        for i in range(BLOCK if asks else 0):
            asked = _bytes_behind(build, following, build.add(reached, INDEX(line * i)))
            build.call(prefetch, [asked, WORD(0), WORD(2), WORD(1)])
        for c, weights in enumerate(of_weights):
            build.call(load, [weights, _bytes_behind(build, w, build.add(reached, INDEX(line * c))), INDEX(2 * line)])
        for number in range(PARTS):
            own = _bytes_behind(build, parts, build.add(build.mul(part, INDEX(number)), build.mul(step, INDEX(line))))
            for r, rows in enumerate(of_rows):
                below = _bytes_behind(build, own, build.mul(inputs, INDEX(2 * LANES * r)))
                build.call(load, [rows, below, build.mul(inputs, INDEX(2))])
            for r, c, sums in places:
                build.call(multiply, [sums, of_rows[r], of_weights[c]])
    for r, c, sums in places:
        to = _behind(build, out, build.add(build.mul(outputs, INDEX(LANES * r)), INDEX(LANES * c)))
        build.call(store, [sums, to, build.mul(outputs, INDEX(4))])
    build.ret_void()
    return block


def _multiple(build: ir.IRBuilder, rows: Any) -> Any:
    """The next multiple of a block."""
    return build.and_(build.add(rows, INDEX(BLOCK - 1)), INDEX(-BLOCK))


def _rms_norm(module: ir.Module) -> None:
    """rms_norm(x, weight, out, eps, around, width, inner, stride, rows): x / rms(x) * (around + weight), of rows of `width`
    numbers, `inner` of which lie together and so many numbers behind those before them."""
    root = _declared(module, "llvm.sqrt.f32", SINGLE, SINGLE)
    with _shared_out(module, "rms_norm", 9) as (build, job, row):
        x, weight, out = (build.inttoptr(number, POINTER) for number in job[:3])
        eps, around = (build.bitcast(build.trunc(number, WORD), SINGLE) for number in job[3:5])
        width, inner, stride = job[5:8]
        apart = build.mul(build.udiv(row, inner), stride)
        own = _behind(build, x, build.add(apart, build.mul(build.urem(row, inner), width)))
        to = _behind(build, out, build.mul(row, width))
        with _each(build, INDEX(0), width, INDEX(LANES), [_same(0.0)]) as (i, sums):
            some = _loaded(build, _behind(build, own, i), VECTOR)
            sums[0] = _fma(build, some, some, sums[0])
        total = _folded(build, sums[0], build.fadd)
        mean = build.fdiv(total, build.uitofp(width, SINGLE))
        inverse = build.fdiv(SINGLE(1.0), build.call(root, [build.fadd(mean, eps)]))
        scale, shift = _everywhere(build, inverse), _everywhere(build, around)
        with _each(build, INDEX(0), width, INDEX(LANES)) as (i, _):
            normed = build.fmul(_loaded(build, _behind(build, own, i), VECTOR), scale)
            by = build.fadd(shift, _loaded(build, _behind(build, weight, i), VECTOR))
            _store(build, build.fmul(normed, by), _behind(build, to, i))


def _rounded(module: ir.Module) -> None:
    """rounded(x, codes, largest, width, rows): of each row the largest magnitude, at least the smallest number that has all its
    digits, and round(x * (127 / largest)) + 128 as bytes."""
    byte = ir.VectorType(ir.IntType(8), LANES)
    largest_of, magnitude, nearest = (
        _declared(module, f"llvm.{name}.v{LANES}f32", VECTOR, *[VECTOR] * count)
        for name, count in (("maximum", 2), ("fabs", 1), ("rint", 1))
    )
    to_words = _declared(module, f"llvm.fptosi.sat.v{LANES}i32.v{LANES}f32", WORDS, VECTOR)  # of no number: 0
    with _shared_out(module, "rounded", 5) as (build, job, row):
        x, codes, largest = (build.inttoptr(number, POINTER) for number in job[:3])
        width = job[3]
        before = build.mul(row, width)
        own = _behind(build, x, before)
        with _each(build, INDEX(0), width, INDEX(LANES), [_same(2.0**-126)]) as (i, most):
            some = build.call(magnitude, [_loaded(build, _behind(build, own, i), VECTOR)])
            most[0] = build.call(largest_of, [most[0], some])
        most_of_all = _folded(build, most[0], lambda one, other: build.call(largest_of, [one, other]))
        _store(build, most_of_all, _behind(build, largest, row))
        scale = _everywhere(build, build.fdiv(SINGLE(127.0), most_of_all))
        with _each(build, INDEX(0), width, INDEX(LANES)) as (i, _):
            number = build.fmul(_loaded(build, _behind(build, own, i), VECTOR), scale)
            whole = build.call(to_words, [build.call(nearest, [number])])
            code = build.xor(build.trunc(whole, byte), ir.Constant(byte, [-128] * LANES))
            build.store(code, build.gep(codes, [build.add(before, i)], source_etype=ir.IntType(8))).align = 1


@contextmanager
def _shared_out(module: ir.Module, name: str, count: int) -> Iterator[tuple[ir.IRBuilder, list[Any], Any]]:
    """A function over a row of numbers; what is built inside is done for each unit of a thread's share."""
    function = _declared(module, name, NOTHING, POINTER)
    build = ir.IRBuilder(function.append_basic_block())
    row = [build.gep(function.args[0], [INDEX(i)], source_etype=INDEX) for i in range(count)]
    job = [build.load(place, typ=INDEX) for place in row]
    me, threads = (build.zext(build.call(_declared(module, each, WORD), []), INDEX) for each in THREADS)
    first = build.udiv(build.mul(job[-1], me), threads)
    last = build.udiv(build.mul(job[-1], build.add(me, INDEX(1))), threads)
    with build.if_then(build.icmp_unsigned("<", first, last)), _each(build, first, last, INDEX(1)) as (unit, _):
        yield build, job, unit
    build.ret_void()


@contextmanager
def _each(
    build: ir.IRBuilder, first: Any, last: Any, step: Any, carried: Sequence[Any] = ()
) -> Iterator[tuple[Any, list[Any]]]:
    """for number in range(first, last, step), once at least. What goes from one turn into the next stands in the list: in it what
    came in, behind the loop what came out."""
    before, body, after = build.block, build.append_basic_block(), build.append_basic_block()
    build.branch(body)
    build.position_at_end(body)
    number = build.phi(INDEX)
    number.add_incoming(first, before)
    held = [build.phi(value.type) for value in carried]
    for phi, value in zip(held, carried, strict=True):
        phi.add_incoming(value, before)
    values: list[Any] = list(held)
    yield number, values
    following = build.add(number, step)
    for phi, value in zip((number, *held), (following, *values), strict=True):
        phi.add_incoming(value, build.block)
    build.cbranch(build.icmp_unsigned("<", following, last), body, after)
    build.position_at_end(after)


def _declared(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
    known = module.globals.get(name)
    return known if known is not None else ir.Function(module, ir.FunctionType(result, arguments), name)


def _behind(build: ir.IRBuilder, address: Any, numbers: Any) -> Any:
    return build.gep(address, [numbers], source_etype=SINGLE)


def _bytes_behind(build: ir.IRBuilder, address: Any, count: Any) -> Any:
    return build.gep(address, [count], source_etype=ir.IntType(8))


def _loaded(build: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    value = build.load(address, typ=kind)
    value.align = 4
    return value


def _store(build: ir.IRBuilder, value: Any, address: Any) -> None:
    build.store(value, address).align = 4


def _fma(build: ir.IRBuilder, factor: Any, other: Any, added: Any) -> Any:
    fma: Callable[..., Any] = _declared(build.module, f"llvm.fma.v{LANES}f32", VECTOR, VECTOR, VECTOR, VECTOR)
    return build.call(fma, [factor, other, added])


def _everywhere(build: ir.IRBuilder, value: Any) -> Any:
    one = build.insert_element(VECTOR(ir.Undefined), value, WORD(0))
    return build.shuffle_vector(one, VECTOR(ir.Undefined), ir.Constant(WORDS, [0] * LANES))


def _same(number: float) -> Any:
    return ir.Constant(VECTOR, [number] * LANES)


def _folded(build: ir.IRBuilder, vector: Any, both: Callable[[Any, Any], Any]) -> Any:
    """What all numbers of a register give together, halves first."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        upper = ir.Constant(WORDS, [i + lanes if i < lanes else i for i in range(LANES)])
        vector = both(vector, build.shuffle_vector(vector, vector, upper))
    return build.extract_element(vector, WORD(0))
